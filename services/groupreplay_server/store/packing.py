"""Commands packed for Redis by hiredis, in a quarter of the time; redis-py's own packing is kept for payloads."""

from functools import cache
from typing import Any, cast

import hiredis
from redis.asyncio.connection import AbstractConnection

Argument = str | bytes | memoryview | int | float


class _HiredisPacking:
    """Packs commands of small arguments; one that carries a payload is left to redis-py, which does not copy it."""

    def pack_command(self, *arguments: Argument) -> list[bytes]:
        first = arguments[0]
        if first == "SET" or not isinstance(first, str) or " " in first:
            return cast(list[bytes], super().pack_command(*arguments))  # type: ignore[misc]
        try:
            return [hiredis.pack_command(cast(Any, arguments))]
        except TypeError:  # an argument of another type, which redis-py may know
            return cast(list[bytes], super().pack_command(*arguments))  # type: ignore[misc]


@cache
def packing_fast(connection_class: type[AbstractConnection]) -> type[AbstractConnection]:
    """Return a class of connections like this one that packs with hiredis."""
    return type(connection_class.__name__, (_HiredisPacking, connection_class), {"__slots__": ()})
