"""One Redis server: commands in one round trip on one connection, and the wait for durability behind them."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

from redis.asyncio import Redis
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from groupreplay.server_info import waits_truly
from groupreplay.table_config import Durability
from groupreplay_server.store.durability import (
    Command,
    Wait,
    WaitLimits,
    check_synced_always,
    refuse_without_aof,
    wait_for_disk,
    wait_for_replicas,
)
from groupreplay_server.store.fast_connection import FastConnection, fast_connections

NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Sent:
    """What came back, errors included."""

    replies: list[Any]
    wait: Wait | None = None
    waited: tuple[Any, ...] = ()
    """Replies to the barrier, if any, and to the wait."""

    def check_wait(self) -> None:
        """Raise DurabilityNotReachedError unless what was written is as durable as was asked."""
        if self.wait is not None:
            for reply in self.waited:
                if reply is self.waited[-1] or isinstance(reply, Exception):
                    self.wait.check(reply)


class Node:
    """A server, or whichever is the master behind Sentinel."""

    def __init__(self, client: Redis, limits: WaitLimits, *, moves: bool = False) -> None:
        """Use this client, which decodes nothing; close() closes it. A master behind Sentinel moves."""
        self.client = client
        pool = client.connection_pool
        pool.connection_class = fast_connections(cast(Any, pool.connection_class))
        self._limits = limits
        self._moves = moves
        self._doubted = False
        self._disk: Wait | None = None
        self.running = 0
        """Commands, or rows of commands, that have no answer yet; each holds a connection."""

    async def execute(self, *command: Any, **options: Any) -> Any:
        """Run one command."""
        async with self._connections():
            return await self.client.execute_command(*command, **options)  # type: ignore[no-untyped-call]

    async def send(
        self,
        commands: Sequence[Command],
        durability: Durability = Durability.MEMORY,
        *,
        barrier: str = "",
        options: Mapping[str, Any] = NO_OPTIONS,
    ) -> Sent:
        """Send commands one behind the other, then wait on the same connection.

        A wait covers what its own connection wrote, and a repeated operation may write nothing: then the barrier, a key
        that is written before the wait, makes it cover everything that was there before.
        """
        async with self._connections():
            wait = await self._wait(durability)
            row = list(commands)
            if wait is not None:
                if barrier:
                    row.append(("SET", barrier, ""))
                row.append(wait.command)
            replies = await self._exchange(row, options)
        if wait is not None and isinstance(replies[-1], ResponseError):
            self._disk = None  # another server may answer now, after a failover
        return Sent(replies[: len(commands)], wait, tuple(replies[len(commands) :]))

    async def _exchange(self, commands: Sequence[Command], options: Mapping[str, Any]) -> list[Any]:
        """Send commands on one connection, and once more if that turns out to be dead; return replies and errors."""
        pool = self.client.connection_pool
        connection = cast(FastConnection, await pool.get_connection())  # type: ignore[no-untyped-call]
        try:
            replies = await connection.retry.call_with_retry(
                lambda: connection.exchange(commands), lambda _: connection.disconnect()
            )
        finally:
            await pool.release(connection)
        said = {name: value for name, value in options.items() if name != "keys"}  # those are for redis-py's own caches
        return [self._meaning(command, reply, said) for command, reply in zip(commands, replies, strict=True)]

    def _meaning(self, command: Command, reply: Any, options: Mapping[str, Any]) -> Any:
        """Return a reply as redis-py returns it."""
        meaning = self.client.response_callbacks.get(cast(str, command[0]))
        return reply if meaning is None or isinstance(reply, Exception) else meaning(reply, **options)

    async def close(self) -> None:
        """Close all connections."""
        await self.client.aclose()

    @asynccontextmanager
    async def _connections(self) -> AsyncIterator[None]:
        """Drop idle connections after a call that got no answer: a new one asks the Sentinels who is the master now."""
        if self._doubted:
            self._doubted = False
            await self.client.connection_pool.disconnect(inuse_connections=False)
        self.running += 1
        try:
            yield
        except (asyncio.CancelledError, RedisTimeoutError):
            self._doubted = self._moves
            raise
        finally:
            self.running -= 1

    async def _wait(self, durability: Durability) -> Wait | None:
        if durability is Durability.REPLICAS:
            return wait_for_replicas(self._limits)
        if durability is Durability.AOF:
            self._disk = self._disk or await self._find_disk_wait()
            return self._disk
        return None

    async def _find_disk_wait(self) -> Wait:
        """Find out, before anything is written, how this server can say that a write is on disk."""
        try:
            await self.execute("WAITAOF", 1, 0, 1)
        except ResponseError as error:
            refuse_without_aof(error)
            if "unknown command" not in str(error).lower():
                raise
        else:
            hello = await self.execute("HELLO")
            about = dict(zip(hello[::2], hello[1::2], strict=True))
            if waits_truly(about[b"server"].decode(), about[b"version"].decode()):
                return wait_for_disk(self._limits)
        wait = check_synced_always()
        wait.check(await self.execute(*wait.command))
        return wait
