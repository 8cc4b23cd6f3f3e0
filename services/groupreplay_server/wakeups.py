"""Lets blocked calls sleep until Redis says that what they wait for has changed."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterable, Callable, Iterator
from contextlib import contextmanager

from groupreplay.errors import ShuttingDownError


class Watch:
    """One waiting call. A wake-up that comes while the call is busy is kept for its next wait."""

    def __init__(self, closed: asyncio.Event) -> None:
        self._event = asyncio.Event()
        self._closed = closed
        self.at_least: dict[str, int] = {}
        """Kind of message -> the amount below which it is of no use to this call; absent = of no use at all."""

    def notify(self, kind: str, amount: int) -> None:
        """Wake the call if the message is of use to it."""
        if amount >= self.at_least.get(kind, amount + 1):
            self._event.set()

    def wake(self) -> None:
        """Wake the call whatever it waits for."""
        self._event.set()

    async def wait(self, timeout_s: float) -> bool:
        """Sleep until a wake-up or the timeout; return False on timeout.

        Raises:
            ShuttingDownError: the service is draining.
        """
        try:
            async with asyncio.timeout(max(timeout_s, 0)):
                await self._event.wait()
        except TimeoutError:
            return False
        finally:
            self._event.clear()
            if self._closed.is_set():
                raise ShuttingDownError("the service is draining; call again, another replica or its successor answers")
        return True


class WakeUps:
    """Hands messages of the wake channel (`topic kind amount`) to the watches of their topic."""

    def __init__(self) -> None:
        self._watches: dict[str, set[Watch]] = defaultdict(set)
        self._listeners: dict[str, Callable[[str | None, int], None]] = {}
        self._closed = asyncio.Event()

    @contextmanager
    def watch(self, topic: str) -> Iterator[Watch]:
        """Receive wake-ups of a topic: `run/table`, or `run` for its policy clock."""
        watch = Watch(self._closed)
        self._watches[topic].add(watch)
        if self._closed.is_set():
            watch.wake()
        try:
            yield watch
        finally:
            self._watches[topic].discard(watch)
            if not self._watches[topic]:
                del self._watches[topic]

    def listen(self, kind: str, hear: Callable[[str | None, int], None]) -> None:
        """Have every message of a kind heard, by topic and amount; None, 0 when messages may have been missed."""
        self._listeners[kind] = hear

    async def dispatch(self, messages: AsyncIterable[str | None]) -> None:
        """Hand out messages until cancelled; None (messages may have been missed) wakes everybody."""
        async for message in messages:
            if message is None:
                self._wake_all()
                for hear in self._listeners.values():
                    hear(None, 0)
                continue
            topic, kind, amount = message.rsplit(" ", 2)
            if kind in self._listeners:
                self._listeners[kind](topic, int(amount))
            for name in self._topics(topic, kind):
                for watch in self._watches.get(name, ()):
                    watch.notify(kind, int(amount))

    def _topics(self, topic: str, kind: str) -> list[str]:
        """A policy clock concerns its run, and whoever waits at one of the run's tables."""
        return [topic, *(name for name in self._watches if name.startswith(f"{topic}/") and kind == "policy")]

    def close(self) -> None:
        """End all waits, present and future, with ShuttingDownError."""
        self._closed.set()
        self._wake_all()

    def _wake_all(self) -> None:
        for watches in self._watches.values():
            for watch in watches:
                watch.wake()
