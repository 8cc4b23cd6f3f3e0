"""Redis Cluster: an index in the slot of its run, payloads spread over all shards.

redis-py's own cluster client routes too, but it cannot keep a command and the wait behind it on one connection, and on
some redirections it closes the connections of every call under way.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any

from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, NoScriptError, ReadOnlyError, TryAgainError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from groupreplay.errors import DurabilityNotReachedError
from groupreplay.table_config import Durability
from groupreplay_server.store.address import HostPort
from groupreplay_server.store.backend import Backend, raise_first, scan_node
from groupreplay_server.store.durability import Command
from groupreplay_server.store.keys import barrier_beside
from groupreplay_server.store.node import NO_OPTIONS, Node
from groupreplay_server.store.scripts import Script, Value
from groupreplay_server.store.topology import Topology

_PAUSES_S = (0.0, 0.02, 0.1, 0.3)
"""Before each attempt: enough for a slot that moves. A failover takes seconds, and the caller calls again."""
_MISDIRECTED = (RedisConnectionError, AskError, ClusterDownError, ReadOnlyError, TryAgainError)  # MovedError is an Ask

Keyed = tuple[str, Command]
"""A command, and before it the key that says where it goes."""


class RedisCluster(Backend):
    """All masters of a cluster."""

    may_miss_messages = True

    def __init__(self, seeds: Sequence[HostPort], connect: Callable[[HostPort], Node]) -> None:
        """Learn the cluster from any of the seeds at the first command."""
        self._topology = Topology(seeds, connect)

    async def ping(self) -> None:
        await self._topology.learn()

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        [reply] = await self._deliver([(args[1], args)], options=options)
        return reply

    async def run_script(
        self,
        script: Script,
        keys: Sequence[str],
        arguments: Sequence[Value],
        *,
        payloads: Mapping[str, bytes | memoryview],
        durability: Durability,
    ) -> Any:
        if payloads:
            try:
                await self._deliver([(key, ("SET", key, payload)) for key, payload in payloads.items()], durability)
            except DurabilityNotReachedError:  # the script did not run, so nothing will ever name them
                await self.remove_payloads(payloads)
                raise
        barrier = barrier_beside(keys[0]) if durability is not Durability.MEMORY else ""
        try:
            [reply] = await self._deliver([(keys[0], script.by_hash(keys, arguments))], durability, barrier)
        except NoScriptError:
            [reply] = await self._deliver([(keys[0], script.in_full(keys, arguments))], durability, barrier)
        return reply

    async def read_payloads(self, keys: Sequence[str]) -> list[bytes | None]:
        return await self._deliver([(key, ("GET", key)) for key in keys])

    async def remove_payloads(self, keys: Iterable[str]) -> None:
        await self._deliver([(key, ("UNLINK", key)) for key in keys])

    async def scan_pages(self, pattern: str, count: int) -> AsyncIterator[list[str]]:
        for master in await self._topology.masters():
            async for page in scan_node(self._topology.node(master), pattern, count):
                yield page

    async def nodes(self) -> list[Node]:
        return [self._topology.node(master) for master in await self._topology.masters()]

    async def subscriber(self) -> Redis:
        await self._topology.learn()  # whoever answers is alive
        return self._topology.node(self._topology.answered).client

    async def close(self) -> None:
        await self._topology.close()

    async def _deliver(
        self,
        commands: Sequence[Keyed],
        durability: Durability = Durability.MEMORY,
        barrier: str = "",
        options: Mapping[str, Any] = NO_OPTIONS,
    ) -> list[Any]:
        """Send each command to the master that has its key, all masters at once; return the replies in order.

        What finds nobody, or the wrong one, is sent again, as every command of the store may be.
        """
        replies: list[Any] = [None] * len(commands)
        left = list(range(len(commands)))
        for pause_s in _PAUSES_S:
            await asyncio.sleep(pause_s)
            by_master = defaultdict(list)
            for index in left:
                by_master[await self._topology.master_of(key_slot(_bytes(commands[index][0])))].append(index)
            answers = await asyncio.gather(
                *(
                    self._send(master, [commands[index][1] for index in indexes], durability, barrier, options)
                    for master, indexes in by_master.items()
                )
            )
            for indexes, answer in zip(by_master.values(), answers, strict=True):
                for index, reply in zip(indexes, answer, strict=True):
                    replies[index] = reply
            left = [index for index in left if isinstance(replies[index], _MISDIRECTED)]
            if not left:
                break
        return raise_first(replies)

    async def _send(
        self,
        master: HostPort,
        commands: Sequence[Command],
        durability: Durability,
        barrier: str,
        options: Mapping[str, Any],
    ) -> list[Any]:
        """Send commands to one master; return the replies, errors and a wait that came short among them."""
        version = self._topology.version
        try:
            sent = await self._topology.node(master).send(commands, durability, barrier=barrier, options=options)
        except asyncio.CancelledError:  # perhaps for want of an answer
            self._topology.doubt(version, last=master)
            raise
        except (RedisConnectionError, RedisTimeoutError, OSError) as error:
            self._topology.doubt(version, last=master)
            return [error] * len(commands)
        replies = list(sent.replies)
        for index, reply in enumerate(sent.replies):
            if isinstance(reply, MovedError):
                self._topology.doubt(version, first=master)
            elif isinstance(reply, AskError):
                target = (reply.host or master[0], reply.port)
                asked = await self._send(target, [("ASKING",), commands[index]], durability, barrier, options)
                replies[index] = asked[1]
            elif isinstance(reply, ClusterDownError | ReadOnlyError):
                self._topology.doubt(version, last=master)
        try:
            sent.check_wait()
        except DurabilityNotReachedError as shortfall:
            return [reply if isinstance(reply, Exception) else shortfall for reply in replies]
        return replies


def _bytes(key: str | bytes) -> bytes:
    return key if isinstance(key, bytes) else key.encode()
