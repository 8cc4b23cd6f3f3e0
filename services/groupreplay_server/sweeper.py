"""Removes payloads that no group names: what is left when a server dies between writing them and their index."""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass

from groupreplay.errors import GroupReplayError
from groupreplay.groups import now_ms
from groupreplay_server.store.orphans import OrphanStore, PayloadName

_log = logging.getLogger(__name__)
GRACE_S = 600.0
KEYS_PER_S = 5000
_PAGE = 500
_ROUND_S = 300.0
_TERM_S = 3 * _ROUND_S
_MOST_REMEMBERED = 1_000_000


class Sweeper:
    """Looks at every payload again and again; runs in every server, but only the one in office does something.

    An orphan is removed when it was one a grace period ago and still is. Inserts that began half that period after it
    was first seen, or before, are refused from then on, so that none that was held up can name what is gone; the half
    is for servers whose clocks differ.
    """

    def __init__(
        self,
        store: OrphanStore,
        *,
        grace_s: float = GRACE_S,
        keys_per_s: int = KEYS_PER_S,
        elapsed_s: Callable[[], float] = time.monotonic,
        clock_ms: Callable[[], int] = now_ms,
    ) -> None:
        self._store = store
        self._grace_s = grace_s
        self._pause_s = _PAGE / keys_per_s
        self._elapsed_s = elapsed_s
        self._clock_ms = clock_ms
        self._holder = secrets.token_hex(8)
        self._seen: dict[PayloadName, _Sight] = {}

    async def run(self) -> None:
        """Sweep until cancelled."""
        task = asyncio.current_task()
        while task is None or not task.cancelling():  # a reconnecting client may swallow the cancellation
            await asyncio.sleep(_ROUND_S)
            try:
                if removed := await self.sweep():
                    _log.warning("removed %d payloads that no group named; a server died while it inserted", removed)
            except GroupReplayError as error:
                _log.warning("sweeping orphaned payloads waits: %s", error)

    async def sweep(self) -> int:
        """Look at every payload once, unless another server is in office; return how many were removed."""
        seen: dict[PayloadName, _Sight] = {}
        removed = 0
        async with aclosing(self._store.pages(_PAGE)) as pages:
            while await self._in_office() and (page := await anext(pages, None)) is not None:
                removed += await self._look(page, seen)
                await asyncio.sleep(self._pause_s)
        self._seen = seen
        return removed

    async def _look(self, page: list[PayloadName], seen: dict[PayloadName, "_Sight"]) -> int:
        """Note the orphans of a page, and remove those that were orphans long enough."""
        now = _Sight(self._elapsed_s(), self._clock_ms())  # before looking, or what comes meanwhile would seem older
        due: dict[PayloadName, _Sight] = {}
        for payload in await self._store.unnamed(page):
            first = self._seen.get(payload, now)
            if now.elapsed_s - first.elapsed_s >= self._grace_s and payload in self._seen:
                due[payload] = first
            elif len(seen) < _MOST_REMEMBERED:
                seen[payload] = first
        if not due:
            return 0
        latest_ms = max(first.at_ms for first in due.values())
        return await self._store.remove(list(due), latest_ms + round(self._grace_s * 500))

    async def _in_office(self) -> bool:
        return await self._store.hold_office(self._holder, round(_TERM_S * 1000))


@dataclass(frozen=True, slots=True)
class _Sight:
    """When a payload was first seen as an orphan."""

    elapsed_s: float
    at_ms: int
