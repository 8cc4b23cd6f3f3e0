"""SIGKILL of the service between the last piece of a group and its insert: the group is there, once and whole."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
import redis
from partial_groups import read_partials
from processes import ServerProcess
from samples import make_group
from table_user import TableUser

from groupreplay import AsyncClient, GroupState, PushOutcome, RolloutGroup, TableConfig
from groupreplay.errors import GroupReplayError
from groupreplay_server.store.keys import TableKeys

GROUPS, GROUP_SIZE, KILLS = 30, 4, 3


@pytest.fixture
def process(clean_redis: redis.Redis, redis_url: str, tmp_path: Path) -> Iterator[ServerProcess]:
    """A service of the test's own, on the session's Redis."""
    running = ServerProcess(tmp_path, redis_url)
    running.start()
    yield running
    running.kill()


@pytest.fixture
async def table(process: ServerProcess, clean_redis: redis.Redis) -> AsyncIterator[TableUser]:
    """A table, used by a client that goes on trying while the service is away."""
    async with AsyncClient(process.grpc_address, timeout_s=60.0) as client:
        await client.create_table(run="run", table="train", config=TableConfig())
        yield TableUser(client, clean_redis, "run", "train")


def piece(group_id: str, index: int, **columns: np.ndarray) -> RolloutGroup:
    """Return one rollout."""
    return make_group(group_id, rewards=(float(index),), columns=columns)


async def kill_before_insert(process: ServerProcess, table: TableUser, group_id: str) -> bool:
    """Kill the service when Redis has the last piece of a large group; return whether the insert had not come yet."""
    pixels = np.zeros((3, 4_000_000), np.uint8)
    options = {"group_size": 2, **table.names}
    await table.client.push_rollout(piece(group_id, 0, pixels=pixels), piece_id="0", **options)
    last = asyncio.create_task(
        table.client.push_rollout(piece(group_id, 1, pixels=pixels), piece_id="1", timeout_s=5.0, **options)
    )
    keys = TableKeys(table.run, table.table)
    await asyncio.to_thread(_kill_at_last_piece, process, table, group_id)
    last.cancel()
    await asyncio.gather(last, return_exceptions=True)
    group = read_partials(table.redis, keys).groups.get(group_id)
    return group is not None and group.rollouts == group.group_size


def _kill_at_last_piece(process: ServerProcess, table: TableUser, group_id: str) -> None:
    while not table.redis.hexists(table.key("pieces"), f"{group_id}/1") and table.redis.hexists(
        table.key("opened"), group_id
    ):
        pass
    process.kill()


@pytest.mark.parametrize("repeated", [True, False], ids=["push again", "only wait"])
async def test_a_group_that_was_complete_when_the_service_died_is_inserted_by_its_successor(
    process: ServerProcess, table: TableUser, repeated: bool
) -> None:
    """A push of the last piece again closes it at once; without, the successor does so by itself."""
    for attempt in range(10):
        group_id = f"g{attempt}"
        if await kill_before_insert(process, table, group_id):
            break
        await asyncio.to_thread(process.start)
    else:
        pytest.fail("the service was never killed between the last piece and the insert")
    assert table.redis.hexists(table.key("facts"), group_id) == 0
    await asyncio.to_thread(process.start)
    if repeated:
        pixels = np.zeros((3, 4_000_000), np.uint8)
        result = await table.client.push_rollout(
            piece(group_id, 1, pixels=pixels), group_size=2, piece_id="1", **table.names
        )
        assert result.outcome in {PushOutcome.CLOSED, PushOutcome.DUPLICATE}
    async with asyncio.timeout(30):
        while await table.locate(group_id) != [GroupState.FRESH]:
            pass
    assert (await table.counters())["partial_closed"] == (await table.counters())["inserted"]


async def test_pieces_that_a_killed_service_acknowledged_are_in_their_groups_once(
    process: ServerProcess, table: TableUser
) -> None:
    """Environments push on through crashes: every group is complete, with each rollout once."""
    rng = random.Random(7)
    acknowledged = 0
    progress = asyncio.Condition()

    async def produce(index: int) -> None:
        nonlocal acknowledged
        for number in range(GROUPS):
            await table.client.push_rollout(
                piece(f"g{number}", index), group_size=GROUP_SIZE, piece_id=str(index), **table.names
            )
            acknowledged += 1
            async with progress:
                progress.notify_all()

    async with asyncio.TaskGroup() as tasks:
        for index in range(GROUP_SIZE):
            tasks.create_task(produce(index))
        for kill in range(KILLS):
            until = kill * GROUPS * GROUP_SIZE // KILLS + rng.randint(1, GROUPS * GROUP_SIZE // KILLS - 1)
            async with progress:
                await progress.wait_for(lambda: acknowledged >= until)  # noqa: B023  waited for within the round
            await asyncio.to_thread(process.kill)
            await asyncio.to_thread(process.start)
    await table.until(fresh=GROUPS)
    counters = await table.counters()
    assert (counters["partial_opened"], counters["partial_closed"]) == (GROUPS, GROUPS)
    batch = await table.take(GROUPS, timeout_s=10.0)
    for delivered in batch.groups:
        assert sorted(delivered.group.rewards.tolist()) == [float(index) for index in range(GROUP_SIZE)]


async def test_a_time_that_was_over_while_no_service_ran_is_carried_out_at_the_next_start(
    process: ServerProcess, table: TableUser
) -> None:
    """Deadlines live in Redis: the first service that starts closes or drops what is due."""
    options = {"group_size": 3, "close_after_s": 0.5, **table.names}
    await table.client.push_rollout(piece("short", 0), piece_id="0", min_rollouts=1, **options)
    await table.client.push_rollout(piece("dropped", 0), piece_id="0", **options)
    await asyncio.to_thread(process.kill)
    await asyncio.to_thread(process.start)
    async with asyncio.timeout(30):
        while (await table.counters()).get("partial_dropped") != 1 or await table.locate("short") != [GroupState.FRESH]:
            pass
    with pytest.raises(GroupReplayError, match="group dropped was dropped with 1 of 3"):
        await table.client.push_rollout(piece("dropped", 0), piece_id="0", **options)
