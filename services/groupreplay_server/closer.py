"""Closes partial groups whose time is over, and those that a server left complete when it died."""

import asyncio
import logging

from groupreplay.errors import GroupReplayError
from groupreplay.groups import now_ms
from groupreplay_server.partial_groups import PartialGroups
from groupreplay_server.store.redis_store import RedisStore
from groupreplay_server.wakeups import WakeUps

_log = logging.getLogger(__name__)
_RETRY_S = 1.0

Names = tuple[str, str]


class Closer:
    """Sleeps until the next moment that it knows of, from messages, and from Redis whenever messages may be missing."""

    def __init__(self, store: RedisStore, partial_groups: PartialGroups, wakeups: WakeUps) -> None:
        self._store = store
        self._partial_groups = partial_groups
        self._looks: dict[Names, int] = {}
        """(run, table) -> Unix milliseconds."""
        self._must_learn = True
        self._changed = asyncio.Event()
        wakeups.listen("closing", self._hear)

    def _hear(self, topic: str | None, time_ms: int) -> None:
        if topic is None:
            self._must_learn = True
        else:
            run, _, table = topic.partition("/")
            self._look_at((run, table), time_ms)
        self._changed.set()

    def _look_at(self, names: Names, time_ms: int) -> None:
        self._looks[names] = min(time_ms, self._looks.get(names, time_ms))

    async def run(self) -> None:
        """Close groups until cancelled."""
        while True:
            try:
                if self._must_learn:
                    self._must_learn = False
                    await self._learn()
                await self._close_due()
            except GroupReplayError as error:
                _log.warning("partial groups wait to be closed: %s", error)
                self._must_learn = True
                await asyncio.sleep(_RETRY_S)
                continue
            await self._sleep()

    async def _learn(self) -> None:
        for names in await self._store.list_tables():
            await self._learn_table(names)

    async def _learn_table(self, names: Names) -> None:
        time_ms = await self._store.pieces.next_look_ms(*names)
        if time_ms is not None:
            self._look_at(names, time_ms)

    async def _close_due(self) -> None:
        now = now_ms()
        for names in [names for names, time_ms in self._looks.items() if time_ms <= now]:
            del self._looks[names]
            for group_id in await self._store.pieces.due(*names):
                await self._close(names, group_id)
            await self._learn_table(names)

    async def _close(self, names: Names, group_id: str) -> None:
        try:
            result = await self._partial_groups.close(*names, group_id)
        except GroupReplayError as error:  # the claim ends, and it is tried again
            _log.warning("partial group %s of table %s/%s waits to be closed: %s", group_id, *names, error)
            await asyncio.sleep(_RETRY_S)
            return
        if result is not None and result.error is not None:
            _log.info("partial group %s of table %s/%s: %s", group_id, *names, result.error)

    async def _sleep(self) -> None:
        """Wait for the next moment, or for a message."""
        left_s = (min(self._looks.values()) - now_ms()) / 1000 if self._looks else None
        try:
            async with asyncio.timeout(None if left_s is None else max(left_s, 0)):
                await self._changed.wait()
        except TimeoutError:
            pass
        self._changed.clear()
