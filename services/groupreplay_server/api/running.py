"""Counts the HTTP calls that run, so that a drain can wait for their end."""

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Receive, Scope, Send


class RunningCalls:
    """How many calls run."""

    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()

    def began(self) -> None:
        """Count one more."""
        self._count += 1
        self._none.clear()

    def ended(self) -> None:
        """Count one less."""
        self._count -= 1
        if self._count == 0:
            self._none.set()

    async def none_left(self, within_s: float) -> None:
        """Return when no call runs, or within_s have passed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._none.wait()


class CountCalls:
    """Middleware that counts each call from its request to the end of its answer."""

    def __init__(self, app: ASGIApp, running: RunningCalls) -> None:
        self._app = app
        self._running = running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._running.began()
        try:
            await self._app(scope, receive, send)
        finally:
            self._running.ended()
