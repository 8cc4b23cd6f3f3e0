"""Connections that talk to Redis in a fraction of redis-py's time; payloads go out as they are, without a copy.

Commands are packed by hiredis. A row of commands is one write and one timer; redis-py's pipelines start a task for the
write and a timer for each reply.
"""

import asyncio
import math
from collections.abc import Sequence
from functools import cache
from typing import Any, cast

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

Argument = str | bytes | memoryview | int | float
_WRITES = frozenset({"SET", "MSET"})


class FastConnection(AbstractConnection):
    """Mixed into a class of connections by fast_connections()."""

    async def exchange(self, commands: Sequence[tuple[Argument, ...]]) -> list[Any]:
        """Send commands one behind the other; return the replies, errors of Redis among them.

        Raises:
            RedisConnectionError: the connection broke.
            RedisTimeoutError: not all came within the connection's timeout.
        """
        packed = [piece for command in commands for piece in self.pack_command(*command)]
        await self.connect()  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(self.socket_timeout):
                await self._send_packed_command(packed)
                return [await self._reply() for _ in commands]
        except TimeoutError:
            await self.disconnect(nowait=True)
            raise RedisTimeoutError(f"no answer of Redis within {self.socket_timeout:g} s") from None
        except OSError as error:
            await self.disconnect(nowait=True)
            raise RedisConnectionError(f"the connection to Redis broke: {error}") from error
        except BaseException:  # what is still to come would be taken for the answer to the next command
            await self.disconnect(nowait=True)
            raise

    async def _reply(self) -> Any:
        try:
            return await self.read_response(timeout=math.inf)  # exchange() has the timer
        except ResponseError as error:
            return error

    def pack_command(self, *arguments: Any) -> list[bytes]:
        """Return the pieces of a command: by hiredis, or by hand where that would copy payloads."""
        first = arguments[0]
        if first in _WRITES and len(arguments) % 2:
            return _pack_write(arguments) or self._packed_by_redis_py(arguments)
        if not isinstance(first, str) or " " in first:
            return self._packed_by_redis_py(arguments)
        try:
            return [hiredis.pack_command(cast(Any, arguments))]
        except TypeError:  # an argument of another type, which redis-py may know
            return self._packed_by_redis_py(arguments)

    def _packed_by_redis_py(self, arguments: tuple[Argument, ...]) -> list[bytes]:
        return super().pack_command(*arguments)


def _pack_write(arguments: Sequence[Argument]) -> list[bytes]:
    """Return `SET key value` or `MSET key value ...` with values as they are; empty where they are of other types."""
    pieces: list[bytes] = []
    name = cast(str, arguments[0]).encode()
    before = b"*%d\r\n$%d\r\n%b\r\n" % (len(arguments), len(name), name)
    for key, value in zip(arguments[1::2], arguments[2::2], strict=True):
        if not isinstance(key, str) or not isinstance(value, bytes | memoryview):
            return []
        encoded = key.encode()
        pieces += [b"%b$%d\r\n%b\r\n$%d\r\n" % (before, len(encoded), encoded, len(value)), cast(bytes, value)]
        before = b"\r\n"
    return [*pieces, before] if pieces else []


@cache
def fast_connections(connection_class: type[AbstractConnection]) -> type[AbstractConnection]:
    """Return a class of connections like this one that are fast."""
    return type(connection_class.__name__, (FastConnection, connection_class), {"__slots__": ()})
