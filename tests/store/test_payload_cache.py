"""Payloads that a server keeps beside Redis: bounded, and handed out for what the index names only."""

from collections.abc import AsyncIterator

import pytest
import redis
from store_user import StoreUser, incoming

from groupreplay import Fill, Sampler, TableConfig
from groupreplay_server.store.connection import open_redis
from groupreplay_server.store.payload_cache import PayloadCache
from groupreplay_server.store.records import LeasedBatch, Payload
from groupreplay_server.store.redis_store import RedisStore

SAMPLED = TableConfig(fill=Fill.SAMPLE, sampler=Sampler.FIFO)
NAMES = ("run", "train")


@pytest.fixture
async def cached(clean_redis: redis.Redis, redis_url: str) -> AsyncIterator[tuple[StoreUser, PayloadCache]]:
    """A store with a cache, and the cache."""
    cache = PayloadCache(2**20)
    async with open_redis(redis_url) as connection:
        yield StoreUser(RedisStore(connection, cache=cache), connection, clean_redis), cache


async def draw(store: RedisStore, lease_id: str) -> list[Payload]:
    """Return the payloads of a draw of two."""
    batch = await store.draw_sample(*NAMES, lease_id=lease_id, batch_size=2, lease_ms=60_000, holder="")
    assert isinstance(batch, LeasedBatch)
    return await store.read_payloads(*NAMES, batch.groups)


def test_the_payloads_used_last_stay_within_the_limit() -> None:
    """What was not asked for longest goes first; one that is larger than all of it is not kept."""
    cache = PayloadCache(10)
    cache.put({"a": b"1234"})
    cache.put({"b": b"1234"})
    assert cache.get("a") == b"1234"
    cache.put({"c": memoryview(b"0123456789")[:4]})
    cache.put({"d": b"x" * 11})
    assert [cache.get(name) for name in "abcd"] == [b"1234", None, b"0123", None]
    assert (cache.size_bytes, cache.hits, cache.misses) == (8, 3, 2)
    cache.drop(["a", "never there"])
    assert cache.size_bytes == 4


def test_a_small_view_is_not_kept_with_its_message() -> None:
    """A message of megabytes must not stay in memory for one small group of it."""
    cache = PayloadCache(100)
    cache.put({"a": memoryview(bytes(2**20))[:10]})
    assert isinstance(cache.get("a"), bytes)
    assert cache.size_bytes == 10


def test_a_message_counts_whole_until_its_last_payload_left() -> None:
    """Most of it is payloads, so it is kept without a copy: no more memory is taken than the limit says."""
    cache = PayloadCache(100)
    message = memoryview(bytes(range(40)))
    cache.put({"a": message[:12], "b": message[20:32]})
    assert isinstance(cache.get("a"), memoryview)
    assert (cache.get("b"), cache.size_bytes) == (bytes(range(20, 32)), 40)
    cache.drop(["a"])
    assert (cache.get("a"), cache.size_bytes) == (None, 40)
    cache.put({"c": b"x" * 40})
    cache.put({"b": b"of a repeated call"})
    cache.put({"d": b"x" * 30})
    assert [cache.get(name) is None for name in "bcd"] == [True, False, False]
    assert cache.size_bytes == 70
    cache.drop("bcd")
    assert cache.size_bytes == 0


async def test_what_was_inserted_here_is_drawn_without_reading_redis(
    cached: tuple[StoreUser, PayloadCache],
) -> None:
    """The same bytes come from memory, and from Redis for another server."""
    user, cache = cached
    await user.store.create_table(*NAMES, SAMPLED)
    await user.store.insert_groups(*NAMES, [incoming("a"), incoming("b")])
    here = await draw(user.store, "one")
    assert (cache.hits, cache.misses) == (2, 0)
    other = RedisStore(user.connection, cache=(others := PayloadCache(2**20)))
    assert await draw(other, "two") == here
    assert await draw(other, "three") == here
    assert (others.hits, others.misses) == (2, 2)


async def test_a_group_that_left_leaves_the_cache_too(cached: tuple[StoreUser, PayloadCache]) -> None:
    """Its memory is free for others as soon as Redis has let go of it."""
    user, cache = cached
    await user.store.create_table(*NAMES, SAMPLED)
    await user.store.insert_groups(*NAMES, [incoming("a"), incoming("b")])
    assert cache.size_bytes > 0
    await user.store.delete_groups(*NAMES, ["a", "b"])
    await user.store.collect_garbage(*NAMES)
    assert cache.size_bytes == 0


async def test_a_refused_or_repeated_group_is_not_kept(cached: tuple[StoreUser, PayloadCache]) -> None:
    """Only what the index names is."""
    user, cache = cached
    await user.store.create_table(*NAMES, SAMPLED)
    await user.store.insert_groups(*NAMES, [incoming("a")])
    size = cache.size_bytes
    await user.store.insert_groups(*NAMES, [incoming("a"), incoming("b", policy_version_max=9)])
    assert cache.size_bytes == size
