"""What a scrape shows of tables and Redis: read at most once a second, however many ask, and of so many tables."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from groupreplay.errors import GroupReplayError
from groupreplay_server.store.records import RedisLoad, TableReading
from groupreplay_server.store.redis_store import RedisStore

FRESH_FOR_S = 1.0
RANKED_FOR_S = 30.0
"""How long the choice of tables stands, where there are too many."""
MAX_TABLES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Redis and its tables at one moment."""

    redis_up: bool
    loads: tuple[RedisLoad, ...] = ()
    tables: tuple[TableReading, ...] = ()
    left_out: int = 0
    """Tables beyond the MAX_TABLES that were inserted into last."""


class Measurer:
    """Reads, and remembers for a moment."""

    def __init__(
        self, store: RedisStore, *, max_tables: int = MAX_TABLES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """clock counts seconds."""
        self._store = store
        self._max_tables = max_tables
        self._clock = clock
        self._reading = Reading(redis_up=False)
        self._read_at = self._ranked_at = float("-inf")
        self._ranked: list[tuple[str, str]] = []
        self._one = asyncio.Lock()

    async def read(self) -> Reading:
        """Return what is there now, or was a second ago at most; redis_up is False while Redis is away."""
        async with self._one:
            if self._clock() - self._read_at >= FRESH_FOR_S:
                self._reading = await self._read()
                self._read_at = self._clock()
            return self._reading

    async def _read(self) -> Reading:
        try:
            names = await self._store.list_tables()
            shown = await self._choose(names)
            return Reading(
                redis_up=True,
                loads=await self._store.measures.redis_loads(),
                tables=tuple(await self._store.measures.tables(shown)),
                left_out=len(names) - len(shown),
            )
        except GroupReplayError:
            return Reading(redis_up=False)  # that is what the metrics then say

    async def _choose(self, names: list[tuple[str, str]]) -> list[tuple[str, str]]:
        if len(names) <= self._max_tables:
            return names
        if self._clock() - self._ranked_at >= RANKED_FOR_S:
            self._ranked = await self._store.measures.newest(names, self._max_tables)
            self._ranked_at = self._clock()
        return self._ranked
