"""Shows that a refused call left no trace."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from table_user import TableUser

from groupreplay import Table
from groupreplay_server.store.keys import SWEEPER


@asynccontextmanager
async def unchanged(table: TableUser) -> AsyncIterator[None]:
    """Assert that a block leaves every key of Redis as it was; counting a refusal is all it may do."""
    before, state = _keys(table), await _state(table)
    yield
    assert await _state(table) == state
    assert _keys(table) == before


async def _state(table: TableUser) -> Table:
    return replace(await table.describe(), counters=await table.counters(), task_counters={})


def _keys(table: TableUser) -> dict[bytes, Any]:
    others = {table.key("counters").encode(), table.key("tasks").encode(), SWEEPER.encode()}
    return {key: _value(table, key) for key in table.redis.scan_iter() if key not in others}


def _value(table: TableUser, key: bytes) -> Any:
    """Return what is under a key; a look into a hash that has just grown changes the order of its dump."""
    return table.redis.hgetall(key) if table.redis.type(key) == b"hash" else table.redis.dump(key)
