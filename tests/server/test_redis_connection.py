"""The connection between service and Redis breaks at the worst moments, and nothing is lost or done twice."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from invariants import check_invariants
from lossy_proxy import LossyProxy
from processes import RedisProcess
from samples import effective, ids, make_group
from service_user import serve_table, settings
from store_user import incoming
from table_user import TableUser

from groupreplay import (
    AsyncClient,
    BatchNotReadyError,
    GroupFeedback,
    GroupState,
    InsertOutcome,
    InternalError,
    StoreUnavailableError,
    TableConfig,
)
from groupreplay_server.app import running_server
from groupreplay_server.store.connection import listen, open_redis
from groupreplay_server.store.keys import WAKE_CHANNEL
from groupreplay_server.store.redis_store import RedisStore


async def test_an_insert_whose_answer_redis_lost_is_stored_once_with_its_payload(
    redis_proxy: LossyProxy, table: TableUser
) -> None:
    """The connection repeats the command, and the group can be delivered afterwards."""
    await table.insert(*effective("before"))
    redis_proxy.lose_answers()
    assert await table.insert(make_group("a")) == [InsertOutcome.INSERTED]
    assert redis_proxy.lost == 1
    assert ids(await table.take(2)) == ["before", "a"]
    assert (await table.counters())["inserted"] == 2


async def test_every_operation_survives_a_lost_answer_of_redis(redis_proxy: LossyProxy, table: TableUser) -> None:
    """Each script may run twice for one call."""
    await table.insert(*effective("a", "b", "c"))
    redis_proxy.lose_answers()
    batch = await table.take(2)
    assert ids(batch) == ["a", "b"]
    redis_proxy.lose_answers()
    await table.commit(batch, 1, GroupFeedback(group_id="a", log_ratios=np.ones(6)))
    redis_proxy.lose_answers()
    assert (await table.advance(1)).version == 1
    redis_proxy.lose_answers()
    assert (await table.admit("one", 3)).groups == 3
    redis_proxy.lose_answers()
    other = await table.take(1)
    await table.release(other)
    assert redis_proxy.lost == 5
    [stored] = await table.client.get_groups(["a"], log_ratios=True, **table.names)
    assert stored.log_ratios is not None
    assert (stored.log_ratios.values == 1).all()
    counters = await table.counters()
    assert (counters["batches"], counters["leases_committed"], counters["leases_released"]) == (2, 1, 1)
    assert await table.locate("a", "b", "c") == [GroupState.REPLAY, GroupState.REPLAY, GroupState.FRESH]


async def test_a_group_that_comes_while_a_batch_is_looked_for_wakes_it(
    redis_proxy: LossyProxy, table: TableUser, direct_table: TableUser
) -> None:
    """The wake-up overtakes the answer that there is no batch yet, and is not lost."""
    with pytest.raises(BatchNotReadyError):
        await table.take(1)  # Redis knows the script now, so the answer that is held is the script's
    watch = table.client.watch_policy(run="run", after_version=0)
    marker = asyncio.ensure_future(anext(watch))
    redis_proxy.hold_answers()
    waiting = asyncio.create_task(table.take(1, timeout_s=60.0))
    await redis_proxy.holding.wait()
    await direct_table.insert(*effective("a"))
    await direct_table.advance(1)
    assert (await marker).version == 1  # so the service has seen the message of the insert, which came before
    redis_proxy.release_answers()
    assert ids(await asyncio.wait_for(waiting, 20)) == ["a"]


@pytest.mark.parametrize("redis_proxy", [b"HGETALL"], indirect=True)
async def test_a_version_that_comes_while_the_clock_is_read_is_not_missed(
    redis_proxy: LossyProxy, table: TableUser, direct_table: TableUser
) -> None:
    """The wake-up overtakes the answer with the version before, and is not lost."""
    marker = asyncio.create_task(table.take(1, timeout_s=60.0))
    await direct_table.until(missing=1)
    redis_proxy.hold_answers()
    following = asyncio.ensure_future(anext(table.client.watch_policy(run="run", after_version=0)))
    await redis_proxy.holding.wait()
    await direct_table.advance(1)
    await direct_table.insert(*effective("a"))
    assert ids(await marker) == ["a"]  # so the service has seen the message of the clock, which came before
    redis_proxy.release_answers()
    assert (await asyncio.wait_for(following, 20)).version == 1


async def test_an_insert_whose_payload_redis_refuses_leaves_no_group_behind(
    clean_redis: redis.Redis, redis_url: str
) -> None:
    """Index and payload are stored together or not at all."""
    clean_redis.acl_setuser(
        "indexer", enabled=True, nopass=True, categories=["+@all"], keys=["gr1:{*", "gr1:runs"], channels=["*"]
    )
    try:
        async with open_redis(redis_url.replace("unix://", "unix://indexer:x@")) as connection:
            store = RedisStore(connection)
            await store.create_table("run", "train", TableConfig())
            await store.insert_groups("run", "train", [incoming("x", effective=False)])  # Redis knows the script now
            with pytest.raises(InternalError, match=r"(?i)^Redis answered: .*no permissions to access"):
                await store.insert_groups("run", "train", [incoming("a")])
            assert await store.locate_groups("run", "train", ["a"]) == [GroupState.UNKNOWN]
    finally:
        clean_redis.acl_deluser("indexer")


async def test_a_restart_of_redis_is_survived_by_calls_that_wait(own_redis: RedisProcess) -> None:
    """Redis goes and comes back on its data; a call that waited meanwhile is woken and takes what is there."""
    with redis.Redis.from_url(own_redis.url) as connection:
        async with serve_table(own_redis.url, connection) as table:
            await table.insert(*effective("a"))
            waiting = asyncio.create_task(table.take(2, timeout_s=60.0))
            await table.until(missing=1)
            own_redis.kill()
            with pytest.raises(StoreUnavailableError, match=r"Redis did not take the call .*see that it runs"):
                await table.client.insert(make_group("b"), timeout_s=1.0, **table.names)
            retried = asyncio.create_task(table.insert(make_group("b")))
            await asyncio.to_thread(own_redis.start)
            assert await retried == [InsertOutcome.INSERTED]
            assert ids(await asyncio.wait_for(waiting, 30)) == ["a", "b"]
        check_invariants(connection)


async def test_a_redis_that_hangs_fails_calls_within_their_deadline(own_redis: RedisProcess) -> None:
    """A stopped Redis is an error that says so, in time; once it goes on, so does everything, and nothing is twice."""
    with redis.Redis.from_url(own_redis.url) as connection:
        async with serve_table(own_redis.url, connection) as table:
            await table.insert(*effective("a"))
            own_redis.pause()
            async with asyncio.timeout(60):
                with pytest.raises(StoreUnavailableError, match="did not end within the caller's deadline; Redis is"):
                    await table.client.insert(make_group("b"), timeout_s=2.0, **table.names)
            retried = asyncio.create_task(table.insert(make_group("b")))
            taken = asyncio.create_task(table.take(2, timeout_s=30.0))
            own_redis.resume()
            await retried
            assert ids(await taken) == ["a", "b"]
            assert (await table.counters())["inserted"] == 2
        check_invariants(connection)


@pytest.mark.parametrize("redis_proxy", [b"PING"], indirect=True)
async def test_a_subscription_that_gets_no_answers_any_more_is_made_anew(redis_proxy: LossyProxy) -> None:
    """A partition is silent, as a channel without messages is: pings tell them apart, and whoever waits is woken."""
    async with open_redis(f"redis://{redis_proxy.address}", reply_timeout_s=None) as connection:
        messages = listen(connection, WAKE_CHANNEL, quiet_s=0.05)
        assert await anext(messages) is None
        redis_proxy.hold_answers()
        assert await asyncio.wait_for(anext(messages), 20) is None


@pytest.mark.parametrize("where", ["url", "file", "setting"])
async def test_a_password_opens_redis_and_is_written_nowhere(
    clean_redis: redis.Redis, redis_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    """Not into the ready file, the log, or what settings and server look like when they are printed."""
    caplog.set_level("DEBUG")
    secret = tmp_path / "password"
    secret.write_text("s3cret\n")
    ways: dict[str, tuple[str, dict[str, Any]]] = {
        "url": (redis_url.replace("unix://", "unix://somebody:s3cret@"), {}),
        "file": (redis_url, {"redis_username": "somebody", "redis_password_file": secret}),
        "setting": (redis_url, {"redis_username": "somebody", "redis_password": "s3cret"}),
    }
    url, fields = ways[where]
    ready_file = tmp_path / "ready.json"
    chosen = replace(settings(url), ready_file=ready_file, **fields)
    clean_redis.acl_setuser(
        "somebody", enabled=True, passwords=["+s3cret"], categories=["+@all"], keys=["*"], channels=["*"]
    )
    try:
        async with running_server(chosen) as running, AsyncClient(running.grpc_address, timeout_s=20.0) as client:
            assert await client.list_tables() == []
            assert "somebody" in {connected["user"] for connected in clean_redis.client_list()}
    finally:
        clean_redis.acl_deluser("somebody")
    assert "s3cret" not in "".join((ready_file.read_text(), caplog.text, repr(chosen), repr(running)))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"redis_password": "a", "redis_password_file": Path("b")}, "a redis_password and a redis_password_file"),
        ({"durability_min_replicas": 0}, "durability_min_replicas is 0"),
        ({"durability_wait_s": 0.0}, "durability_wait_s is 0"),
        ({"redis_ca_file": Path("ca.pem")}, "is not encrypted, but certificates are set; write rediss"),
        ({"redis_url": "rediss://localhost/0", "redis_ca_file": Path("no-such.pem")}, "no-such.pem"),
        ({"redis_password_file": Path("no-such-file")}, "no-such-file"),
        ({"redis_url": "redis://u:one@localhost/0", "redis_password": "two"}, "has a password, and so have the"),
        ({"redis_url": "", "redis_username": "somebody"}, "are for --redis-url, and that is empty"),
    ],
)
async def test_settings_of_redis_that_contradict_each_other_are_refused(fields: dict[str, Any], said: str) -> None:
    """Before anything is opened, by name."""
    with pytest.raises(OSError, match=said):
        async with running_server(replace(settings("redis://localhost/0"), **fields)):
            pass
