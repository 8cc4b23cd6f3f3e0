"""The answer is lost after the request was applied; the client asks again, and the service applies it once."""

from collections.abc import AsyncIterator

import numpy as np
import pytest
import redis
from lossy_proxy import LossyProxy, is_grpc_answer, lossy_proxy
from samples import effective, ids, make_group
from table_user import TableUser, connect

from groupreplay import GroupState, InsertOutcome, PushOutcome, TableConfig
from groupreplay_server.app import RunningServer


@pytest.fixture
async def proxy(server: RunningServer) -> AsyncIterator[LossyProxy]:
    """A proxy before the service."""
    async with lossy_proxy(server.grpc_address, is_grpc_answer) as running:
        yield running


@pytest.fixture(params=["async", "sync"])
async def table(
    request: pytest.FixtureRequest, proxy: LossyProxy, clean_redis: redis.Redis
) -> AsyncIterator[TableUser]:
    """A table that is reached through the proxy."""
    async with connect(request.param, proxy.address, timeout_s=20.0) as client:
        await client.create_table(run="run", table="train", config=TableConfig())
        yield TableUser(client, clean_redis, "run", "train")


async def test_an_insert_is_applied_once(proxy: LossyProxy, table: TableUser) -> None:
    """The second try finds the group, and says so."""
    proxy.lose_answers(2)
    assert await table.insert(make_group("a")) == [InsertOutcome.DUPLICATE]
    assert proxy.lost == 2
    assert await table.counters() == {"inserted": 1, "inserted_effective": 1, "duplicate": 2}
    assert ids(await table.take(1)) == ["a"]


async def test_a_stream_of_large_groups_is_applied_once(proxy: LossyProxy, table: TableUser) -> None:
    """A window that was half answered is sent again as a whole, and every group is there once."""
    columns = {"x": np.zeros(1_500_000, np.uint8)}
    proxy.lose_answers(1)
    results = await table.insert_many(effective("a", "b", "c", columns=columns))
    assert {result.outcome for result in results} <= {InsertOutcome.INSERTED, InsertOutcome.DUPLICATE}
    assert proxy.lost == 1
    assert (await table.counters())["inserted"] == 3
    assert ids(await table.take(3)) == ["a", "b", "c"]


async def test_pieces_are_pushed_once(proxy: LossyProxy, table: TableUser) -> None:
    """The group has each rollout once, though the answers to its first and to its last piece were lost."""
    options = {"group_size": 2, **table.names}
    proxy.lose_answers(1)
    first = await table.client.push_rollout(make_group("a", rewards=(0.0,)), piece_id="0", **options)
    assert (first.outcome, first.rollouts) == (PushOutcome.DUPLICATE, 1)
    proxy.lose_answers(1)
    last = await table.client.push_rollout(make_group("a", rewards=(1.0,)), piece_id="1", **options)
    assert last.outcome is PushOutcome.DUPLICATE
    assert last.insert is not None
    assert proxy.lost == 2
    [delivered] = (await table.take(1)).groups
    assert delivered.group.rewards.tolist() == [0.0, 1.0]


async def test_a_batch_is_taken_once(proxy: LossyProxy, table: TableUser) -> None:
    """The lease id that the client chose brings the same batch again."""
    await table.insert(*effective("a", "b", "c", "d"))
    proxy.lose_answers(2)
    assert ids(await table.take(2, timeout_s=10.0)) == ["a", "b"]
    assert proxy.lost == 2
    state = await table.describe()
    assert (state.leased, state.leases, state.fresh, state.counters["batches"]) == (2, 1, 2, 1)


async def test_a_batch_in_shares_is_taken_once(proxy: LossyProxy, table: TableUser) -> None:
    """Its outline and its payloads are asked for again, and are those of one lease."""
    await table.insert(*effective("a", "b", "c"))
    proxy.lose_answers(1)
    outline = await table.client.lease_batch(batch_size=2, lease_id="l", timeout_s=10.0, **table.names)
    assert [group.group_id for group in outline.groups] == ["a", "b"]
    proxy.lose_answers(1)
    [read] = await table.client.read_lease(["b"], lease_id="l", **table.names)
    assert (read.group.group_id, read.times_sampled) == ("b", 1)
    assert proxy.lost == 2
    state = await table.describe()
    assert (state.leases, state.fresh, state.counters["batches"]) == (1, 1, 1)


async def test_a_commit_is_applied_once(proxy: LossyProxy, table: TableUser) -> None:
    """The repeated commit is told that it had been made, and nothing more happens."""
    await table.insert(*effective("a"))
    batch = await table.take(1)
    proxy.lose_answers(2)
    assert await table.commit(batch, step=1) is True
    assert (await table.counters())["leases_committed"] == 1
    assert await table.locate("a") == [GroupState.REPLAY]


async def test_a_release_is_applied_once(proxy: LossyProxy, table: TableUser) -> None:
    """Groups go back to their place once, and their count of returns is one."""
    await table.insert(*effective("a"))
    batch = await table.take(1)
    proxy.lose_answers()
    await table.release(batch)
    assert [delivered.redeliveries for delivered in (await table.take(1)).groups] == [1]


async def test_a_policy_is_published_once(proxy: LossyProxy, table: TableUser) -> None:
    """The repeated call finds its own version, and is no conflict."""
    proxy.lose_answers(2)
    published = await table.advance(3)
    assert proxy.lost == 2
    assert published == await table.client.get_policy(run="run")


async def test_a_table_is_made_once(proxy: LossyProxy, table: TableUser) -> None:
    """The repeated call finds the table, with its own configuration."""
    proxy.lose_answers(2)
    made = await table.client.create_table(run="run", table="other", config=TableConfig(max_staleness=2))
    assert made == await table.client.describe_table(run="run", table="other")


async def test_an_admission_is_granted_once(proxy: LossyProxy, table: TableUser) -> None:
    """What was granted with the lost answer is not lost to the other producers."""
    await table.client.create_table(run="run", table="bounded", config=TableConfig(ahead_groups=4))
    bounded = TableUser(table.client, table.redis, "run", "bounded")
    proxy.lose_answers(2)
    assert (await bounded.admit("one", 3)).groups == 3
    assert (await bounded.admit("two", 3)).groups == 1


async def test_a_watch_goes_on_after_its_connection_broke(proxy: LossyProxy, table: TableUser) -> None:
    """No version is shown twice, and none is missed for good; version 0 still gets its weights."""
    watch = table.client.watch_policy(run="run")
    assert (await anext(watch)).weights_uri == ""
    proxy.lose_answers()
    await table.client.list_tables()  # loses its answer, and breaks the connection of the watch with it
    assert proxy.lost == 1
    await table.advance(0)
    assert (await anext(watch)).weights_uri == "w0"
    await table.advance(2)
    assert (await anext(watch)).version == 2
