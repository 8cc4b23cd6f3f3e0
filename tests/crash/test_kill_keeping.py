"""SIGKILL of the service while a table is on its way to a file, or back."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest
import redis
from processes import ServerProcess, wait_until
from samples import make_group, same
from table_user import TableUser

from groupreplay import AsyncClient, SnapshotFile, TableConfig
from groupreplay.v1.replay_service_pb2_grpc import ReplayServiceStub
from groupreplay_server.store.keys import RESTORES, TableKeys

NAMES = [f"g{number:02}" for number in range(40)]


@pytest.fixture
def process(clean_redis: redis.Redis, redis_url: str, tmp_path: Path) -> Iterator[ServerProcess]:
    """A service of the test's own, on the session's Redis."""
    running = ServerProcess(tmp_path, redis_url)
    running.start()
    yield running
    running.kill()


@pytest.fixture
async def client(process: ServerProcess) -> AsyncIterator[AsyncClient]:
    """A client that goes on trying while the service is away."""
    async with AsyncClient(process.grpc_address, timeout_s=60.0) as connected:
        yield connected


@pytest.fixture
async def table(client: AsyncClient, clean_redis: redis.Redis) -> TableUser:
    """A table of 40 groups of 3 MB, half of them replay."""
    await client.create_table(run="run", table="train", config=TableConfig())
    user = TableUser(client, clean_redis, "run", "train")
    await user.insert_many([make_group(name, columns={"x": np.full(3_000_000, 7, np.uint8)}) for name in NAMES])
    await user.train(20, step=1)
    return user


class KillAt:
    """Kills and starts a service when a transfer has come so far; once."""

    def __init__(self, process: ServerProcess, share: float) -> None:
        self._process = process
        self._share = share
        self.kills = 0

    def __call__(self, done: int, total: int) -> None:
        """Take note of how far it is."""
        if not self.kills and done >= self._share * total:
            self.kills += 1
            self._process.kill()
            self._process.start()


@pytest.mark.parametrize("share", [0.0, 0.5])
async def test_a_snapshot_begins_again_when_the_service_comes_back(
    table: TableUser, process: ServerProcess, tmp_path: Path, share: float
) -> None:
    """The file is whole, and of one moment."""
    kill = KillAt(process, share)
    kept = await table.client.snapshot(path=tmp_path / "t", progress=kill, **table.names)
    assert kill.kills == 1
    assert (kept.fresh, kept.replay) == (20, 20)
    assert sorted(each.header.group_id for each in SnapshotFile(tmp_path / "t").groups()) == NAMES


@pytest.mark.parametrize("share", [0.0, 0.4, 0.9])
async def test_a_restore_begins_again_when_the_service_comes_back(
    table: TableUser, process: ServerProcess, tmp_path: Path, share: float
) -> None:
    """What the dead service had written is undone first; the table is whole."""
    await table.client.snapshot(path=tmp_path / "t", **table.names)
    kill = KillAt(process, share)
    made = await table.client.restore(tmp_path / "t", table="copy", progress=kill)
    assert kill.kills == 1
    assert (made.fresh, made.replay) == (20, 20)
    originals = {each.header.group_id: each.group for each in SnapshotFile(tmp_path / "t").groups()}
    batch = await table.client.next_batch(run="run", table="copy", batch_size=20)
    for delivered in batch.groups:
        same(delivered.group, originals[delivered.group.group_id])
    assert not table.redis.exists(RESTORES)
    payloads = table.redis.scan_iter("gr1:payload:run/copy/*", count=1000)
    async with asyncio.timeout(60):
        while len(list(payloads)) > 40:
            await table.describe()
            payloads = table.redis.scan_iter("gr1:payload:run/copy/*", count=1000)


async def test_what_nobody_restores_any_further_is_undone(
    table: TableUser, process: ServerProcess, tmp_path: Path
) -> None:
    """Service and caller both died: once the time of the restore is up, the next service to start leaves no key."""
    await table.client.snapshot(path=tmp_path / "t", **table.names)
    parts = list(SnapshotFile(tmp_path / "t").restore_parts("other", "copy", "mine"))
    state = TableKeys("other", "copy").key("state")
    async with grpc.aio.insecure_channel(process.grpc_address) as channel:
        stub: Any = ReplayServiceStub(channel)
        call = stub.Restore()
        for part in parts[:20]:
            await call.write(part)
        async with asyncio.timeout(60):
            while not list(table.redis.scan_iter("gr1:payload:other/*")):
                await table.describe()
        process.kill()
    assert table.redis.exists(state)
    table.redis.hset(state, "restoring_until_ms", 1)
    process.start()
    wait_until(lambda: not list(table.redis.scan_iter("*other*", count=1000)), "no key is left")
    assert not table.redis.exists(RESTORES)
