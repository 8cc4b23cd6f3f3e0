"""Snapshots of tables that are in use, and restores that are interrupted."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import grpc
import numpy as np
import pytest
import redis
from samples import effective, make_group, same
from table_user import MakeTable, TableUser

from groupreplay import (
    BatchNotReadyError,
    GroupState,
    InvalidRequestError,
    PayloadLostError,
    RolloutGroup,
    SnapshotFile,
    TableConfig,
    TableExistsError,
)
from groupreplay.parts import MESSAGE_BYTES
from groupreplay.retry import error_from_rpc
from groupreplay.snapshot_file import SnapshotWriter
from groupreplay.v1 import replay_service_pb2 as pb
from groupreplay_server.store.keys import RESTORES

pytestmark = pytest.mark.parametrize("client_kind", ["async"])
LARGE = MESSAGE_BYTES + 1_000_000
Spoil = Callable[[list[pb.SnapshotPart]], list[pb.SnapshotPart]]


def large(*group_ids: str) -> list[RolloutGroup]:
    """Return groups larger than a message, so that a reader has to come back for each."""
    return [make_group(name, columns={"x": np.full(LARGE, number, np.uint8)}) for number, name in enumerate(group_ids)]


async def test_payloads_that_leave_while_a_snapshot_is_read_are_in_it(
    make_table: MakeTable, stub: Any, tmp_path: Path
) -> None:
    """Its reader sees the table as it was, and what nobody needs any more goes when the reader is done."""
    table = await make_table()
    names = [f"g{number}" for number in range(12)]
    await table.insert_many(large(*names))
    path = tmp_path / "t"
    with SnapshotWriter(path) as writer:
        parts = stub.Snapshot(pb.SnapshotRequest(run=table.run, table=table.table))
        async for part in parts:
            writer.add(part)
            if part.HasField("header"):
                assert await table.client.reset_table(**table.names) == 12
                await table.insert(*effective("later"))
                assert payload_keys(table) == 13
    async with asyncio.timeout(60):
        while payload_keys(table) > 1:
            await table.describe()
    kept = {each.header.group_id: each.group for each in SnapshotFile(path).groups()}
    assert list(kept) == names
    assert [int(kept[name].columns["x"][-1]) for name in names] == list(range(12))
    assert table.redis.exists(table.key("holds")) == 0


def payload_keys(table: TableUser) -> int:
    """Return how many payloads of a run Redis has."""
    return len(list(table.redis.scan_iter(f"gr1:payload:{table.run}/*", count=1000)))


async def test_a_reader_that_went_away_holds_nothing(make_table: MakeTable, stub: Any) -> None:
    """The service notices that its connection ended."""
    table = await make_table()
    await table.insert_many(large(*(f"g{number}" for number in range(12))))
    parts = stub.Snapshot(pb.SnapshotRequest(run=table.run, table=table.table))
    assert (await parts.read()).HasField("header")
    await table.client.reset_table(**table.names)
    parts.cancel()
    async with asyncio.timeout(60):
        while payload_keys(table):
            await table.describe()


async def test_the_hold_of_a_reader_that_crashed_ends_by_itself(make_table: MakeTable) -> None:
    """Its deadline passes; then the next look at the garbage takes it away."""
    table = await make_table()
    await table.insert(*effective("a", "b"))
    table.redis.zadd(table.key("holds"), {"reader": 2**50})
    assert await table.client.delete_groups(["a"], **table.names) == 1
    assert await table.train(1, step=1) == ["b"]
    assert payload_keys(table) == 2
    table.redis.zadd(table.key("holds"), {"reader": 1})
    await table.client.delete_groups(["b"], **table.names)
    async with asyncio.timeout(60):
        while payload_keys(table):
            await table.describe()
    assert table.redis.exists(table.key("holds")) == 0


async def test_snapshots_under_load_are_of_one_moment(make_table: MakeTable, tmp_path: Path) -> None:
    """Inserts, batches, commits, releases and evictions go on: each file's counts are those of its groups."""
    table = await make_table(replay_capacity=20)
    done = asyncio.Event()

    async def produce() -> None:
        number = 0
        while not done.is_set():
            groups = [make_group(f"g{number + i:05}", columns={"x": np.full(50_000, i, np.uint8)}) for i in range(8)]
            await table.insert_many(groups)
            number += 8

    async def train() -> None:
        step = 0
        while not done.is_set():
            try:
                batch = await table.take(6, timeout_s=0.2)
            except BatchNotReadyError:
                continue
            step += 1
            if step % 5:
                await table.commit(batch, step)
            else:
                await table.release(batch)

    async with asyncio.TaskGroup() as tasks:
        workers = [tasks.create_task(produce()), tasks.create_task(train())]
        for number in range(8):
            path = tmp_path / f"{number}"
            await table.client.snapshot(path=path, **table.names)
        done.set()
        await asyncio.gather(*workers)
    inserted = []
    for number in range(8):
        file = SnapshotFile(tmp_path / f"{number}")
        groups = list(file.groups())
        state = file.table
        places = [group.place for group in groups]
        gone = sum(count for name, count in state.counters.items() if name.startswith("gone_"))
        assert state.counters.get("inserted", 0) == len(groups) + gone
        found = [places.count(place) for place in (GroupState.FRESH, GroupState.LEASED, GroupState.REPLAY)]
        assert found == [state.fresh, state.leased, state.replay]
        assert sum(len(group.payload) for group in groups) == state.payload_bytes
        # Groups arrive in order and fresh ones are taken in order: what is fresh is the last that were inserted.
        fresh = [group.header.group_id for group in groups if group.place is GroupState.FRESH]
        last = state.counters.get("inserted", 0)
        assert fresh[-1:] in ([], [f"g{last - 1:05}"])
        for group in groups:
            assert int(group.group.columns["x"][0]) == int(group.header.group_id[1:]) % 8
        inserted.append(last)
        copy = await table.client.restore(tmp_path / f"{number}", table=f"copy-{number}")
        assert (copy.fresh, copy.replay, copy.counters) == (state.fresh + state.leased, state.replay, state.counters)
    assert inserted == sorted(inserted)
    assert len(set(inserted)) > 1


# Restores


async def kept_table(make_table: MakeTable, tmp_path: Path, count: int = 12) -> tuple[TableUser, Path]:
    """Return a table of large groups, half of them replay, and its snapshot."""
    table = await make_table(sampler="prioritized")
    await table.insert_many(large(*(f"g{number:02}" for number in range(count))))
    await table.train(count // 2, step=1)
    path = tmp_path / "t"
    await table.client.snapshot(path=path, **table.names)
    return table, path


def first_parts(path: Path, run: str, count: int, restore_id: str = "again") -> list[pb.SnapshotPart]:
    """Return the first messages of a restore, not its last."""
    parts = list(SnapshotFile(path).restore_parts(run, "copy", restore_id))
    assert count < len(parts)
    return parts[:count]


def keys_of(connection: redis.Redis, *parts: str) -> list[bytes]:
    """Return all keys that have one of these in their name, and the list of restores."""
    found = [key for key in connection.scan_iter(count=1000) if any(part.encode() in key for part in parts)]
    return found + list(connection.scan_iter(RESTORES))


async def test_a_restore_that_ends_in_the_middle_leaves_no_key(
    make_table: MakeTable, stub: Any, tmp_path: Path
) -> None:
    """Neither groups nor payloads, nor a run."""
    table, path = await kept_table(make_table, tmp_path)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await stub.Restore(iter(first_parts(path, "other-run", 9)))
    error = error_from_rpc(failed.value, "")
    assert isinstance(error, InvalidRequestError)
    assert "ends in the middle" in str(error)
    assert keys_of(table.redis, "other-run") == []


async def test_a_caller_that_goes_away_leaves_no_key(make_table: MakeTable, stub: Any, tmp_path: Path) -> None:
    """Its table is never seen: not even between its parts."""
    table, path = await kept_table(make_table, tmp_path)
    call = stub.Restore()
    for part in first_parts(path, "other-run", 11):
        await call.write(part)
    async with asyncio.timeout(60):
        while not list(table.redis.scan_iter("gr1:payload:other-run/*")):
            await table.describe()
    assert {listed.run for listed in await table.client.list_tables()} == {table.run}
    with pytest.raises(LookupError):
        await table.client.describe_table(run="other-run", table="copy")
    call.cancel()
    async with asyncio.timeout(60):
        while keys_of(table.redis, "other-run"):
            await table.describe()


async def test_a_name_that_is_being_restored_is_taken(make_table: MakeTable, stub: Any, tmp_path: Path) -> None:
    """By neither another restore nor a new table, until it has come to its end."""
    table, path = await kept_table(make_table, tmp_path)
    call = stub.Restore()
    parts = list(SnapshotFile(path).restore_parts(table.run, "copy", "mine"))
    for part in parts[:6]:
        await call.write(part)
    async with asyncio.timeout(60):
        while not list(table.redis.scan_iter(f"gr1:payload:{table.run}/copy/*")):
            await table.describe()
    with pytest.raises(TableExistsError, match="copy is being restored by another call"):
        await table.client.restore(path, table="copy")
    with pytest.raises(TableExistsError, match="copy is being restored; wait"):
        await table.client.create_table(run=table.run, table="copy", config=TableConfig())
    for part in parts[6:]:
        await call.write(part)
    await call.done_writing()
    assert (await call).table.replay == 6
    with pytest.raises(TableExistsError, match="copy exists"):
        await table.client.restore(path, table="copy")


async def test_the_same_restore_again_changes_nothing(make_table: MakeTable, stub: Any, tmp_path: Path) -> None:
    """Its answer got lost, and the client asks again."""
    table, path = await kept_table(make_table, tmp_path)
    file = SnapshotFile(path)
    first = await stub.Restore(file.restore_parts(table.run, "copy", "mine"))
    await table.client.next_batch(run=table.run, table="copy", batch_size=2)
    again = await stub.Restore(file.restore_parts(table.run, "copy", "mine"))
    assert (first.table.fresh, again.table.fresh, again.table.leased) == (6, 4, 2)


async def test_a_new_attempt_of_a_restore_takes_over(make_table: MakeTable, stub: Any, tmp_path: Path) -> None:
    """The old one's connection broke, and its server does not know yet: it writes nothing any more."""
    table, path = await kept_table(make_table, tmp_path)
    parts = list(SnapshotFile(path).restore_parts(table.run, "copy", "mine"))
    old = stub.Restore()
    for part in parts[:6]:
        await old.write(part)
    async with asyncio.timeout(60):
        while not list(table.redis.scan_iter(f"gr1:payload:{table.run}/copy/*")):
            await table.describe()
    restored = await stub.Restore(iter(parts))
    assert (restored.table.fresh, restored.table.replay) == (6, 6)
    with pytest.raises(grpc.aio.AioRpcError):
        await send_rest(old, parts[6:])
    async with asyncio.timeout(60):
        while payload_keys(table) > 24:  # what it wrote last is removed
            await table.describe()
    batch = await table.client.next_batch(run=table.run, table="copy", batch_size=6)
    originals = {each.header.group_id: each.group for each in SnapshotFile(path).groups()}
    assert len(batch.groups) == 6
    for delivered in batch.groups:
        same(delivered.group, originals[delivered.group.group_id])


async def send_rest(call: Any, parts: list[pb.SnapshotPart]) -> None:
    """Send the other parts of a restore, and wait for its answer."""
    for part in parts:
        await call.write(part)
    await call.done_writing()
    await call


async def test_a_snapshot_that_names_a_group_twice_is_refused(make_table: MakeTable, stub: Any, tmp_path: Path) -> None:
    """Counts would not add up; nothing is left of it."""
    table, path = await kept_table(make_table, tmp_path, 2)
    parts = list(SnapshotFile(path).restore_parts("other-run", "copy", "mine"))
    for part in parts:
        for group in part.groups:
            group.entry.group_id = "same" if group.HasField("entry") else ""
            if not group.entry.group_id:
                group.ClearField("entry")
    with pytest.raises(grpc.aio.AioRpcError, match="says that it has 2 groups, and 1 different ones came"):
        await stub.Restore(iter(parts))
    assert keys_of(table.redis, "other-run") == []


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda parts: parts[1:2], "begins with a part that has its header"),
        (lambda parts: [], "begins with a part that has its header"),
        (lambda parts: [parts[0], parts[2]], "continues a group that never began"),
        (lambda parts: [*parts[:2], parts[3]], "group a of the snapshot: .* payload bytes are missing"),
        (lambda parts: [*parts[:3], parts[-1]], "has 2 groups, and 1 different ones came"),
    ],
)
async def test_streams_that_are_no_snapshot_are_refused(
    make_table: MakeTable, stub: Any, tmp_path: Path, spoil: Spoil, message: str
) -> None:
    """With what is wrong with them, and no trace."""
    table = await make_table()
    await table.insert(*large("a", "b"))
    path = tmp_path / "t"
    await table.client.snapshot(path=path, **table.names)
    parts = list(SnapshotFile(path).restore_parts("other-run", "copy", "mine"))
    with pytest.raises(grpc.aio.AioRpcError, match=message):
        await stub.Restore(iter(spoil(parts)))
    assert keys_of(table.redis, "other-run") == []


def files_in(folder: Path) -> list[Path]:
    """Return the files of a folder."""
    return sorted(folder.iterdir())


@pytest.mark.uncached
async def test_a_payload_that_redis_lost_ends_a_snapshot(make_table: MakeTable, tmp_path: Path) -> None:
    """No file comes out of it."""
    table = await make_table()
    await table.insert(*effective("a", "b"))
    lost = next(iter(table.redis.scan_iter(f"gr1:payload:{table.run}/*")))
    saved = cast(bytes, table.redis.get(lost))
    table.redis.delete(lost)
    with pytest.raises(PayloadLostError):
        await table.client.snapshot(path=tmp_path / "t", **table.names)
    table.redis.set(lost, saved)
    assert files_in(tmp_path) == []
