"""Payloads that no group names are removed, and never one that a group names or may come to name."""

import asyncio
from dataclasses import dataclass

import pytest
from redis.exceptions import ResponseError
from store_user import KEYS, StoreUser, incoming

from groupreplay.errors import StoreUnavailableError
from groupreplay.groups import now_ms
from groupreplay.table_config import TableConfig
from groupreplay.types import GroupState
from groupreplay_server.store.keys import PAYLOADS, SWEEPER
from groupreplay_server.store.orphans import OrphanStore, PayloadName
from groupreplay_server.store.records import LeasedBatch
from groupreplay_server.store.scripts import Value
from groupreplay_server.sweeper import GRACE_S, Sweeper

ORPHAN = PayloadName("run", "train", "lost", "ref")


@dataclass(slots=True)
class Clock:
    """A clock that goes when it is told to."""

    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


def sweeper_of(store: StoreUser, clock: Clock | None = None) -> Sweeper:
    """Return a sweeper at full speed: without a grace period, unless it has a clock."""
    orphans = OrphanStore(store.connection)
    if clock is None:
        return Sweeper(orphans, grace_s=0.0, keys_per_s=10**9)
    return Sweeper(orphans, keys_per_s=10**9, elapsed_s=clock)


def payload_keys(store: StoreUser) -> set[str]:
    """Return the keys of all payloads in Redis."""
    return {key.decode() for key in store.redis.scan_iter(f"{PAYLOADS}*")}


def late_insert(group_id: str, payload_ref: str) -> tuple[Value, ...]:
    """Return a group as the insert script takes it."""
    return (group_id, b"header", 0, 0, 0.5, 7, payload_ref, "prompt", "", "", 1.0, 0.5)


async def test_an_orphan_is_removed_after_the_grace_period_and_not_before(store: StoreUser) -> None:
    """Ten minutes after it was first seen, by the sweeper's own clock."""
    clock = Clock()
    sweeper = sweeper_of(store, clock)
    store.redis.set(ORPHAN.key, "payload")
    assert await sweeper.sweep() == 0
    clock.now_s = GRACE_S - 0.001
    assert await sweeper.sweep() == 0
    assert payload_keys(store) == {ORPHAN.key}
    clock.now_s = GRACE_S
    assert await sweeper.sweep() == 1
    assert payload_keys(store) == set()


async def test_an_orphan_of_a_table_that_never_was_is_removed_too(store: StoreUser) -> None:
    """A server that died while it inserted may have had the names wrong."""
    stray = PayloadName("nowhere", "nothing", "lost", "ref")
    store.redis.set(stray.key, "payload")
    sweeper = sweeper_of(store)
    assert [await sweeper.sweep(), await sweeper.sweep()] == [0, 1]
    assert payload_keys(store) == set()


async def test_a_payload_that_is_named_stays_wherever_its_group_is(store: StoreUser) -> None:
    """Fresh, leased, in replay, evicted while a lease holds it, or on its way out by the janitor."""
    await store.store.create_table("run", "small", TableConfig(replay_capacity=1))
    small = StoreUser(store.store, store.connection, store.redis, ("run", "small"))
    await small.insert_ids("evicted")
    await small.take(1, "first")
    await small.commit("first", 1)
    await small.insert_ids("newer")
    await small.insert(incoming("ineffective", effective=False))
    await small.take(2, "second")
    await small.commit("second", 2)  # evicts, and the payload is garbage
    await store.insert_ids("replay", "leased", "fresh")
    await store.take(1, "one")
    await store.commit("one", 1)
    await store.take(1, "two")
    before = payload_keys(store)
    assert len(before) == 5
    sweeper = sweeper_of(store)
    for _ in range(3):
        assert await sweeper.sweep() == 0
    assert payload_keys(store) == before
    assert await store.store.collect_garbage("run", "small") == 1


async def test_an_insert_that_comes_between_look_and_removal_keeps_its_payload(store: StoreUser) -> None:
    """The last look and the decision are one script."""
    orphans = OrphanStore(store.connection)
    store.redis.set(ORPHAN.key, "payload")
    assert await orphans.unnamed([ORPHAN]) == {ORPHAN}
    assert await store.call("insert_groups", now_ms(), late_insert("lost", "ref")) == [b"INSERTED"]
    assert await orphans.remove([ORPHAN], now_ms()) == 0
    assert payload_keys(store) == {ORPHAN.key}


async def test_an_insert_that_was_held_up_until_its_payload_was_swept_is_refused(store: StoreUser) -> None:
    """It would name a payload that is gone; made again, with a payload of its own, it is taken."""
    begun = now_ms()
    store.redis.set(ORPHAN.key, "payload")
    sweeper = sweeper_of(store)
    assert [await sweeper.sweep(), await sweeper.sweep()] == [0, 1]
    with pytest.raises(ResponseError, match=r"^STORE_UNAVAILABLE the insert into table run/train began .*call again"):
        await store.call("insert_groups", begun, late_insert("lost", "ref"))
    assert await store.store.locate_groups(*store.names, ["lost"]) == [GroupState.UNKNOWN]
    await until_taken(store, "lost")
    assert await store.take(1) == ["lost"]


async def until_taken(store: StoreUser, group_id: str) -> None:
    """Insert a group as the SDK would."""
    while True:
        try:
            await store.insert_ids(group_id)
        except StoreUnavailableError:
            await asyncio.sleep(0.001)  # the next millisecond may pass
        else:
            return


async def test_only_one_server_sweeps_and_another_takes_over_when_it_is_gone(store: StoreUser) -> None:
    """The office is a key that expires; who is not in it forgets what it saw."""
    first, second = sweeper_of(store), sweeper_of(store)
    store.redis.set(ORPHAN.key, "payload")
    await first.sweep()
    assert 0 < store.redis.pttl(SWEEPER) <= 900_000
    assert [await second.sweep(), await second.sweep()] == [0, 0]
    store.redis.delete(SWEEPER)  # as its expiry would
    assert await second.sweep() == 0
    assert await first.sweep() == 0
    assert await second.sweep() == 1


async def test_sweeping_under_load_never_removes_what_is_named(store: StoreUser) -> None:
    """Without any grace period, and with servers that die in the middle: no payload lost, no orphan left."""
    sweeper = sweeper_of(store)
    stop = asyncio.Event()

    async def sweep() -> None:
        while not stop.is_set():
            await sweeper.sweep()

    async def produce(producer: int) -> None:
        for number in range(60):
            name = f"p{producer}-{number}"
            if number % 10 == 0:
                await store.connection.set(PayloadName("run", "train", name, "died").key, "payload")
            await until_taken(store, name)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(sweep())
        async with asyncio.TaskGroup() as producers:
            for producer in range(4):
                producers.create_task(produce(producer))
        stop.set()
    batch = await store.look(240)
    assert isinstance(batch, LeasedBatch)
    assert len(await store.store.read_payloads(*store.names, batch.groups)) == 240
    await sweeper.sweep()
    await sweeper.sweep()
    assert payload_keys(store) == {KEYS.payload(f"{group.group_id}/{group.payload_ref}") for group in batch.groups}
