"""Slots move from one node of a cluster to another under load."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from insert_load import Load, make_table
from redis_groups import TcpRedis, redis_cluster

from groupreplay import Durability
from groupreplay_server.store.connection import open_redis
from groupreplay_server.store.keys import TableKeys
from groupreplay_server.store.redis_store import RedisStore


@pytest.fixture
def masters(tmp_path: Path) -> Iterator[list[TcpRedis]]:
    """Three masters."""
    with redis_cluster(tmp_path) as nodes:
        yield nodes


def move_slot(slot: int, old: TcpRedis, new: TcpRedis, nodes: list[TcpRedis]) -> None:
    """Move a slot as redis-cli --cluster reshard does, one key at a time."""
    new.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", old.ask("CLUSTER", "MYID"))
    old.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", new.ask("CLUSTER", "MYID"))
    while moving := old.ask("CLUSTER", "GETKEYSINSLOT", slot, 1):
        old.ask("MIGRATE", "127.0.0.1", new.port, moving[0], 0, 5000)
    for node in (new, old, *nodes):
        node.ask("CLUSTER", "SETSLOT", slot, "NODE", new.ask("CLUSTER", "MYID"))


async def test_a_table_whose_slot_moves_loses_nothing(masters: list[TcpRedis]) -> None:
    """Calls are sent to where the keys are, and again while they are neither here nor there."""
    keys = TableKeys("run", "train")
    slot = int(masters[0].ask("CLUSTER", "KEYSLOT", keys.key("facts")))
    source = slot // (16384 // 3 + 1)
    old, new = masters[source], masters[(source + 1) % 3]
    async with open_redis(f"redis+cluster://127.0.0.1:{masters[0].port}") as redis:
        load = Load(RedisStore(redis), Durability.MEMORY)
        await make_table(load.store)
        async with load.running():
            await load.until(20)
            await asyncio.to_thread(move_slot, slot, old, new, masters)
            await load.until(20)
        assert await load.lost() == []
        assert load.errors <= {"STORE_UNAVAILABLE"}
        assert new.ask("EXISTS", keys.key("facts")) == 1


async def test_single_keys_are_asked_for_where_they_moved(masters: list[TcpRedis]) -> None:
    """A payload that has left a slot under way is found at its new node, and one that has not at its old one."""
    names = [f"gr1:payload:run/train/{name}/{{tag}}" for name in "ab"]
    slot = int(masters[0].ask("CLUSTER", "KEYSLOT", names[0]))
    source = slot // (16384 // 3 + 1)
    old, new = masters[source], masters[(source + 1) % 3]
    async with open_redis(f"redis+cluster://127.0.0.1:{masters[0].port}") as redis:
        for name in names:
            await redis.set(name, name)
        new.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", old.ask("CLUSTER", "MYID"))
        old.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", new.ask("CLUSTER", "MYID"))
        old.ask("MIGRATE", "127.0.0.1", new.port, names[0], 0, 5000)
        assert await redis.read_payloads(names) == [name.encode() for name in names]
        await redis.remove_payloads(names)
        assert await redis.read_payloads(names) == [None, None]
