"""What durability `replicas` waits for, and what it says when that is not to be had; `aof` is in tests/store."""

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import wait_until
from redis_groups import TcpRedis, redis_cluster, running
from store_user import incoming

from groupreplay.errors import DurabilityNotReachedError
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
"""For waits that must come short; one that must not has the usual time, however busy the machine is."""


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


async def take(store: RedisStore, lease_id: str = "lease") -> LeasedBatch:
    """Take one group."""
    batch = await store.take_batch(
        *NAMES, lease_id=lease_id, batch_size=1, lease_ms=60_000, holder="test", wait_ms=0, call_id="call"
    )
    assert isinstance(batch, LeasedBatch)
    return batch


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
    async with open_redis(master.url, limits=SHORT) as redis, open_redis(master.url) as patient_redis:
        store, patient = await make_store(redis), RedisStore(patient_redis)
        assert await insert(patient, "a", Durability.REPLICAS) is InsertOutcome.INSERTED
        replica.signal(signal.SIGSTOP)
        for _ in range(2):
            with pytest.raises(DurabilityNotReachedError, match=r"0 of 1 replicas had it after 0.1 s; see that they"):
                await insert(store, "b", Durability.REPLICAS)
        assert await where(store, "b") is GroupState.FRESH
        assert await insert(store, "c", Durability.MEMORY) is InsertOutcome.INSERTED
        replica.signal(signal.SIGCONT)
        assert await insert(patient, "b", Durability.REPLICAS) is InsertOutcome.DUPLICATE


async def test_a_group_that_is_trained_on_while_its_insert_waits_keeps_its_payload(
    pair: tuple[TcpRedis, TcpRedis],
) -> None:
    """The wait comes short after the group was evicted, and a step still keeps it to be served again."""
    master, replica = pair
    async with open_redis(master.url, limits=WaitLimits(timeout_s=1.0)) as redis:
        store = RedisStore(redis)
        await store.create_table(*NAMES, TableConfig(replay_capacity=1, lineage_payload_steps=5))
        replica.signal(signal.SIGSTOP)
        inserting = asyncio.create_task(insert(store, "a", Durability.REPLICAS))
        async with asyncio.timeout(60):
            while (await store.describe_table(*NAMES)).fresh == 0:
                pass
        for step, group_id in enumerate(("a", "b"), start=1):
            if group_id != "a":
                await insert(store, group_id, Durability.MEMORY)
            await take(store, f"lease-{step}")
            await store.commit_lease(*NAMES, lease_id=f"lease-{step}", step=step)
        assert await where(store, "a") is GroupState.GONE
        with pytest.raises(DurabilityNotReachedError):
            await inserting
        kept = (await store.read_lineage(*NAMES, 1)).batch.groups
        assert await store.read_payloads(*NAMES, kept) == [b"payload of a"]


async def test_a_repeated_commit_waits_though_it_writes_nothing(pair: tuple[TcpRedis, TcpRedis]) -> None:
    """A wait covers only what its connection wrote, so there is a write of its own before each."""
    master, replica = pair
    how: dict[str, Any] = {"lease_id": "lease", "step": 1, "durability": Durability.REPLICAS}
    async with open_redis(master.url, limits=SHORT) as redis, open_redis(master.url) as patient_redis:
        store, patient = await make_store(redis), RedisStore(patient_redis)
        await insert(store, "a", Durability.MEMORY)
        await take(store)
        replica.signal(signal.SIGSTOP)
        for _ in range(2):
            with pytest.raises(DurabilityNotReachedError):
                await store.commit_lease(*NAMES, **how)
            await redis.execute_command("CLIENT", "KILL", "TYPE", "normal")  # the next call has another connection
        replica.signal(signal.SIGCONT)
        assert await patient.commit_lease(*NAMES, **how) is True
        assert await where(store, "a") is GroupState.REPLAY


async def test_more_replicas_than_there_are_are_never_reached(pair: tuple[TcpRedis, TcpRedis]) -> None:
    """The count that is asked for is a setting."""
    master, _ = pair
    async with open_redis(master.url, limits=WaitLimits(min_replicas=2, timeout_s=0.1)) as redis:
        store = await make_store(redis)
        with pytest.raises(DurabilityNotReachedError, match=r"[01] of 2 replicas"):
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
            async with open_redis(f"redis+cluster://127.0.0.1:{nodes[0].port}") as patient_redis:
                results = await RedisStore(patient_redis).insert_groups(*NAMES, groups, Durability.REPLICAS)
            assert {result.outcome for result in results} == {InsertOutcome.INSERTED}
            spread = [len(master.ask("KEYS", f"{PAYLOADS}*")) for master in masters]
            assert sum(spread) == 30
            assert min(spread) > 0
