"""What the metrics show of tables and of Redis, read in a bounded number of round trips."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from groupreplay.errors import UnknownRunError, UnknownTableError
from groupreplay_server.store.backend import Backend
from groupreplay_server.store.connection import translated_errors
from groupreplay_server.store.fields import producers_from_reply, table_from_reply
from groupreplay_server.store.keys import TableKeys
from groupreplay_server.store.records import RedisLoad, TableReading
from groupreplay_server.store.redis_facts import read_redis_loads
from groupreplay_server.store.scripts import call_script

_AT_ONCE = 32


class MeasureStore:
    """Reads for the metrics."""

    def __init__(self, redis: Backend, shared: Callable[[TableKeys], dict[str, Any]]) -> None:
        self._redis = redis
        self._shared = shared

    async def redis_loads(self) -> tuple[RedisLoad, ...]:
        """Return how every Redis server that we write to fares."""
        return await read_redis_loads(self._redis)

    async def tables(self, names: Sequence[tuple[str, str]]) -> list[TableReading]:
        """Return what there is to show of these tables; those that are not there (any more) are left out."""
        found: list[TableReading] = []
        for start in range(0, len(names), _AT_ONCE):
            readings = await asyncio.gather(*(self._table(*name) for name in names[start : start + _AT_ONCE]))
            found += [reading for reading in readings if reading is not None]
        return found

    async def newest(self, names: Sequence[tuple[str, str]], count: int) -> list[tuple[str, str]]:
        """Return the tables that were inserted into last, at most count of them, in the order given."""
        last: dict[tuple[str, str], int] = {}
        for start in range(0, len(names), _AT_ONCE):
            page = names[start : start + _AT_ONCE]
            last |= dict(zip(page, await asyncio.gather(*(self._last_insert_ms(*name) for name in page)), strict=True))
        kept = set(sorted(names, key=lambda name: (last[name], name), reverse=True)[:count])
        return [name for name in names if name in kept]

    async def _table(self, run: str, table: str) -> TableReading | None:
        keys = TableKeys(run, table)
        try:
            with translated_errors():
                reply = await call_script(self._redis, "measure_table", keys.all(), self._shared(keys))
        except (UnknownRunError, UnknownTableError):
            return None  # named by a CreateTable that did not get further
        described, published_at_ms, rewinds, waiting, producers = reply
        return TableReading(
            table=table_from_reply(run, table, described),
            published_at_ms=published_at_ms,
            rewinds=rewinds,
            waiting=waiting,
            producers=producers_from_reply(producers),
        )

    async def _last_insert_ms(self, run: str, table: str) -> int:
        with translated_errors():
            return int(await self._redis.hget(TableKeys(run, table).key("state"), "last_insert_ms") or 0)
