"""The use cases of keeping, where a front door would have to be slow."""

from collections.abc import AsyncIterator

import pytest
import redis

from groupreplay import LeaseExpiredError, TableConfig
from groupreplay_server.batches import Batches
from groupreplay_server.janitor import Janitor
from groupreplay_server.keeping import Keeping
from groupreplay_server.store.connection import open_redis
from groupreplay_server.store.records import IncomingGroup
from groupreplay_server.store.redis_store import RedisStore
from groupreplay_server.wakeups import WakeUps


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.seconds = 1_000_000.0

    def ms(self) -> int:
        """Return Unix milliseconds."""
        return round(self.seconds * 1000)


@pytest.fixture
def clock() -> Clock:
    """The clock of store and service."""
    return Clock()


@pytest.fixture
async def store(redis_url: str, clean_redis: redis.Redis, clock: Clock) -> AsyncIterator[RedisStore]:
    """A store with a table of two groups."""
    async with open_redis(redis_url) as connection:
        opened = RedisStore(connection, clock.ms)
        await opened.create_table("run", "train", TableConfig())
        await opened.insert_groups("run", "train", [group("a"), group("b")])
        yield opened


def group(group_id: str) -> IncomingGroup:
    """Return a group as the store takes it."""
    return IncomingGroup(
        group_id=group_id, prompt_id=group_id, producer_id="", policy_version_min=0, policy_version_max=0,
        reward_std=0.5, task="", priority=1.0, reward_mean=0.5, header=b"header", payload=b"payload",
    )  # fmt: skip


@pytest.fixture
def keeping(store: RedisStore, clock: Clock) -> Keeping:
    """Keeping, with holds of a minute."""
    janitor = Janitor(store)
    return Keeping(store, Batches(store, WakeUps(), janitor), janitor, hold_s=60.0, seconds=lambda: clock.seconds)


async def test_a_reader_that_stood_still_for_too_long_is_told_so(keeping: Keeping, clock: Clock) -> None:
    """Its payloads may be gone: it gets an error rather than a file with holes."""
    async with keeping.snapshot("run", "train") as (kept, groups):
        assert kept.groups == 2
        await anext(groups)
        clock.seconds += 61
        with pytest.raises(LeaseExpiredError, match="snapshot of table run/train was not read on for 60 s"):
            await anext(groups)


async def test_a_reader_that_goes_on_keeps_its_hold(keeping: Keeping, store: RedisStore, clock: Clock) -> None:
    """However long it takes in all: what left meanwhile stays for it, and goes when it is done."""
    async with keeping.snapshot("run", "train") as (_, groups):
        await store.reset_table("run", "train")
        async for _, payload in groups:
            assert payload == b"payload"
            assert await store.collect_garbage("run", "train") == 0
            clock.seconds += 59
    assert await store.collect_garbage("run", "train") == 2
