"""Producers that insert until they are stopped, and what they were told."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from store_user import incoming

from groupreplay.errors import GroupReplayError
from groupreplay.retry import Attempts
from groupreplay.table_config import Durability, TableConfig
from groupreplay.types import GroupState, InsertOutcome
from groupreplay_server.store.records import IncomingGroup, LeasedBatch
from groupreplay_server.store.redis_store import RedisStore

NAMES = ("run", "train")
CALL_TIMEOUT_S = 3.0
"""The deadline that a caller sets; a call that does not end by then is made again."""


@dataclass(slots=True)
class Load:
    """Inserts under one durability, as the SDK would: a retryable error is a call made again."""

    store: RedisStore
    durability: Durability
    acknowledged: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    """When each call was acknowledged."""
    errors: set[str] = field(default_factory=set)
    _progress: asyncio.Condition = field(default_factory=asyncio.Condition)

    @asynccontextmanager
    async def running(self, producers: int = 4) -> AsyncIterator[None]:
        """Insert from several producers at once while the block runs; an insert under way ends before it does."""
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for number in range(producers):
                tasks.create_task(self._produce(f"p{number}", stop))
            try:
                yield
            finally:
                stop.set()

    async def until(self, calls: int) -> None:
        """Wait until so many more calls were acknowledged."""
        async with self._progress:
            wanted = len(self.times) + calls
            await self._progress.wait_for(lambda: len(self.times) >= wanted)

    def longest_gap_s(self) -> float:
        """Return the longest time in which no call was acknowledged."""
        return max(later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False))

    async def lost(self) -> list[str]:
        """Return the acknowledged groups that the table does not have, or whose payload is not what was sent."""
        states = await self.store.locate_groups(*NAMES, self.acknowledged)
        missing = [name for name, state in zip(self.acknowledged, states, strict=True) if state is GroupState.UNKNOWN]
        batch = await self.store.take_batch(
            *NAMES,
            lease_id="all",
            batch_size=len(self.acknowledged) - len(missing),
            lease_ms=60_000,
            holder="test",
            wait_ms=0,
            call_id="all",
        )
        assert isinstance(batch, LeasedBatch)
        payloads = await self.store.read_payloads(*NAMES, batch.groups)
        return missing + [
            group.group_id
            for group, payload in zip(batch.groups, payloads, strict=True)
            if payload != _group(group.group_id).payload
        ]

    async def _produce(self, producer: str, stop: asyncio.Event) -> None:
        number = 0
        while not stop.is_set():
            groups = [_group(f"{producer}-{number + offset}") for offset in range(4)]
            await self._insert(groups)
            self.acknowledged += [group.group_id for group in groups]
            self.times.append(time.monotonic())
            async with self._progress:
                self._progress.notify_all()
            number += len(groups)

    async def _insert(self, groups: list[IncomingGroup]) -> None:
        attempts = Attempts(60.0)
        while True:
            try:
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    results = await self.store.insert_groups(*NAMES, groups, self.durability)
            except GroupReplayError as error:
                self.errors.add(error.reason)
                await asyncio.sleep(attempts.pause_after(error))
            except TimeoutError:
                self.errors.add("DEADLINE")
            else:
                assert InsertOutcome.REFUSED not in {result.outcome for result in results}, results
                return


async def make_table(store: RedisStore) -> None:
    """Make the table, with room for all that is inserted."""
    await store.create_table(*NAMES, TableConfig(fresh_capacity=1_000_000))


def _group(group_id: str) -> IncomingGroup:
    return incoming(group_id, payload=f"payload of {group_id};".encode() * 50)
