"""The seam between the store and how Redis is deployed: what spans keys, and may span servers, is named here."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, Literal

from redis.asyncio import Redis
from redis.commands.core import AsyncDataAccessCommands
from redis.exceptions import NoScriptError

from groupreplay.table_config import Durability
from groupreplay_server.store.durability import Command
from groupreplay_server.store.keys import barrier_beside
from groupreplay_server.store.node import Node
from groupreplay_server.store.scripts import Script, Value


class Backend(AsyncDataAccessCommands, ABC):
    """Redis as the store sees it.

    Commands on data that redis-py has as methods (hgetall, zrange, ...) are for one key each, which says where they go.
    """

    _is_async_client: Literal[True] = True  # redis-py's own marks of a client, for its types and its commands
    _event_dispatcher: Any = None
    may_miss_messages = False
    """Whether a subscription can lose messages without its connection being broken."""

    async def ping(self) -> None:
        """Return when a server answers."""
        await self.execute_command("PING")

    @abstractmethod
    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run one command where its key is."""

    @abstractmethod
    async def run_script(
        self,
        script: Script,
        keys: Sequence[str],
        arguments: Sequence[Value],
        *,
        payloads: Mapping[str, bytes | memoryview],
        durability: Durability,
    ) -> Any:
        """Write payloads, then run a script over the keys of one slot, unless one of the payloads was refused.

        Raises:
            DurabilityNotReachedError: it ran, or its payloads were written, and the wait came short. Repeating the call
                waits again for everything, also where the script finds that it has nothing left to do.
        """

    @abstractmethod
    async def read_payloads(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return what is under each of these keys, wherever they are."""

    @abstractmethod
    async def remove_payloads(self, keys: Iterable[str]) -> None:
        """Remove these keys, wherever they are."""

    @abstractmethod
    def scan_pages(self, pattern: str, count: int) -> AsyncIterator[list[str]]:
        """Yield all keys that match, some `count` looked at per page; a key may come twice."""

    @abstractmethod
    async def nodes(self) -> list[Node]:
        """Return every server that commands go to."""

    @abstractmethod
    async def subscriber(self) -> Redis:
        """Return a client of a server that gets every published message."""

    @abstractmethod
    async def close(self) -> None:
        """Close all connections."""


class SingleRedis(Backend):
    """One server, or the master behind Sentinel: payloads and script are one transaction in one round trip."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        return await self._node.execute(*args, **options)

    async def run_script(
        self,
        script: Script,
        keys: Sequence[str],
        arguments: Sequence[Value],
        *,
        payloads: Mapping[str, bytes | memoryview],
        durability: Durability,
    ) -> Any:
        barrier = barrier_beside(keys[0]) if durability is not Durability.MEMORY else ""
        writes: list[Command] = [("MSET", *(part for item in payloads.items() for part in item))] if payloads else []
        try:
            return await self._write([*writes, script.by_hash(keys, arguments)], durability, barrier)
        except NoScriptError:  # the payloads are there
            return await self._write([script.in_full(keys, arguments)], durability, barrier)

    async def _write(self, commands: list[Command], durability: Durability, barrier: str) -> Any:
        """Send in a transaction, or the index may name what Redis did not take; return the last reply."""
        if len(commands) > 1:
            sent = await self._node.send([("MULTI",), *commands, ("EXEC",)], durability, barrier=barrier)
            replies = raise_first(raise_first(sent.replies)[-1])
        else:
            sent = await self._node.send(commands, durability, barrier=barrier)
            replies = raise_first(sent.replies)
        sent.check_wait()
        return replies[-1]

    async def read_payloads(self, keys: Sequence[str]) -> list[bytes | None]:
        values: list[bytes | None] = await self._node.execute("MGET", *keys)
        return values

    async def remove_payloads(self, keys: Iterable[str]) -> None:
        if names := list(keys):
            await self._node.execute("UNLINK", *names)

    def scan_pages(self, pattern: str, count: int) -> AsyncIterator[list[str]]:
        return scan_node(self._node, pattern, count)

    async def nodes(self) -> list[Node]:
        return [self._node]

    async def subscriber(self) -> Redis:
        return self._node.client

    async def close(self) -> None:
        await self._node.close()


async def scan_node(node: Node, pattern: str, count: int) -> AsyncIterator[list[str]]:
    """Yield the keys of one server that match."""
    cursor: int | bytes = 0
    while True:
        cursor, keys = await node.execute("SCAN", cursor, "MATCH", pattern, "COUNT", count)
        yield [key.decode() for key in keys]
        if not int(cursor):
            return


def raise_first(replies: list[Any]) -> list[Any]:
    """Return the replies; the first error among them is raised instead."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies
