"""Log ratios in Redis: how many a table keeps, and that none is left behind or swept away in use."""

from typing import Any

import numpy as np
from kept_ratios import KEPT_BYTES, read_kept_ratios
from store_user import KEYS, StoreUser

from groupreplay.log_ratios import MAX_LOG_RATIO_BYTES
from groupreplay.types import GroupFeedback
from groupreplay_server.store.keys import PAYLOADS
from groupreplay_server.store.orphans import OrphanStore
from groupreplay_server.sweeper import Sweeper


def ratios(group_id: str, tokens: int) -> GroupFeedback:
    """Return feedback with log ratios."""
    return GroupFeedback(group_id=group_id, log_ratios=np.zeros(tokens))


def payload_bytes(store: StoreUser) -> int:
    """Return the bytes under all payload keys."""
    return sum(int(store.redis.strlen(key)) for key in store.redis.scan_iter(f"{PAYLOADS}*"))


async def test_a_table_keeps_64_mib_of_log_ratios_and_drops_those_fed_back_first(store: StoreUser) -> None:
    """So what people may look at never takes the memory that groups need."""
    most, tokens = KEPT_BYTES // MAX_LOG_RATIO_BYTES, MAX_LOG_RATIO_BYTES // 2
    names = [f"g{number:02}" for number in range(most + 2)]
    await store.insert_ids(*names)
    groups_bytes = payload_bytes(store)
    for name in names:
        await store.store.update_priorities(*store.names, [ratios(name, tokens)])
    kept = read_kept_ratios(store.redis, KEYS)
    assert kept.bytes == KEPT_BYTES
    assert kept.groups == set(names[2:])
    await store.store.collect_garbage(*store.names)
    assert payload_bytes(store) == groups_bytes + KEPT_BYTES


async def test_the_sweeper_leaves_log_ratios_that_are_named(store: StoreUser) -> None:
    """It removes those that a server wrote and died before it named them."""
    await store.insert_ids("a")
    await store.store.update_priorities(*store.names, [ratios("a", 3)])
    store.redis.set(KEYS.payload("a/lost"), b"123456")
    sweeper = Sweeper(OrphanStore(store.connection), grace_s=0.0, keys_per_s=10**9)
    assert [await sweeper.sweep(), await sweeper.sweep()] == [0, 1]
    [group] = await store.store.read_groups(*store.names, ["a"])
    assert (await store.store.with_log_ratios(*store.names, group)).log_ratios.data == bytes(6)  # type: ignore[union-attr]


async def test_log_ratios_of_a_call_that_began_too_long_ago_are_not_kept(store: StoreUser) -> None:
    """What it wrote may have been swept away meanwhile; the rest of the feedback holds."""
    await store.insert_ids("a")
    store.redis.hset(KEYS.key("state"), "begun_until_ms", 1000)
    record: tuple[Any, ...] = ("a", "2.0", "", "", "ref", 6)
    await store.call("update_priorities", 1000, record)
    assert read_kept_ratios(store.redis, KEYS).groups == set()
    await store.store.collect_garbage(*store.names)
