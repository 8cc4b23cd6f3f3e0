"""Which node of a Redis Cluster has which slot, learnt from the nodes and learnt again when they disagree."""

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from groupreplay_server.store.address import HostPort
from groupreplay_server.store.node import Node

SLOTS = 16384
_ASK_TIMEOUT_S = 2.0


class Topology:
    """The map of slots, and one Node per address."""

    def __init__(self, seeds: Sequence[HostPort], connect: Callable[[HostPort], Node]) -> None:
        self._seeds = tuple(seeds)
        self._connect = connect
        self._nodes: dict[HostPort, Node] = {}
        self._masters: list[HostPort | None] = []
        self._known: set[HostPort] = set()
        self._first: HostPort | None = None
        self._last: HostPort | None = None
        self._lock = asyncio.Lock()
        self.version = 0
        """Counts how often the map was learnt."""
        self.answered: HostPort = self._seeds[0]
        """Who told it last."""

    def node(self, address: HostPort) -> Node:
        """Return the node at an address; nothing is opened."""
        if address not in self._nodes:
            self._nodes[address] = self._connect(address)
        return self._nodes[address]

    async def masters(self) -> list[HostPort]:
        """Return the addresses of all masters that have slots."""
        await self._know()
        return sorted({master for master in self._masters if master})

    async def master_of(self, slot: int) -> HostPort:
        """Return who has a slot."""
        await self._know()
        master = self._masters[slot]
        if master is None:
            self.doubt(self.version)
            raise RedisConnectionError(f"no node of the Redis Cluster has slot {slot}; add one, or repair the cluster")
        return master

    def doubt(self, version: int, *, first: HostPort | None = None, last: HostPort | None = None) -> None:
        """Learn before the next use, unless that was done since the map had this version.

        Args:
            version: of the map that led astray.
            first: a node that knows better.
            last: a node that may not answer.
        """
        if version == self.version:
            self._masters, self._first, self._last = [], first, last

    async def learn(self) -> None:
        """Ask the nodes, one after the other, who has what.

        Raises:
            RedisConnectionError: none of them says.
        """
        errors = []
        for address in self._to_ask():
            try:
                async with asyncio.timeout(_ASK_TIMEOUT_S):
                    ranges = await self.node(address).execute("CLUSTER", "SLOTS")
            except (RedisError, OSError) as error:  # asyncio's TimeoutError is an OSError
                errors.append(f"{address[0]}:{address[1]}: {str(error) or 'no answer'}")
            else:
                self._take(ranges, address)
                for gone in self._nodes.keys() - self._known - set(self._seeds):
                    await self._nodes.pop(gone).close()
                return
        raise RedisConnectionError(f"no node of the Redis Cluster says who has what: {'; '.join(errors)}")

    async def close(self) -> None:
        """Close all connections."""
        for node in self._nodes.values():
            await node.close()

    async def _know(self) -> None:
        while not self._masters:
            async with self._lock:
                if not self._masters:
                    await self.learn()

    def _to_ask(self) -> list[HostPort]:
        known = sorted(self._known)
        first = [] if self._first is None else [self._first]
        ordered = dict.fromkeys([*first, *random.sample(known, len(known)), *self._seeds])
        return sorted(ordered, key=lambda address: address == self._last)  # stable

    def _take(self, ranges: list[list[Any]], answered: HostPort) -> None:
        masters: list[HostPort | None] = [None] * SLOTS
        everybody = set()
        for low, high, *nodes in ranges:
            addresses = [_address(host, port, answered[0]) for host, port, *_ in nodes]
            masters[low : high + 1] = [addresses[0]] * (high + 1 - low)
            everybody.update(addresses)
        self._masters, self._known, self.answered = masters, everybody, answered
        self._first = self._last = None
        self.version += 1


def _address(host: bytes | None, port: int, own: str) -> HostPort:
    """A node that does not know its own address sends none, or a question mark: it is the one that was asked."""
    return (host.decode() if host and host != b"?" else own, port)
