"""Removes payloads that no group needs any more, off the path of any request."""

import asyncio
import logging

from groupreplay.errors import GroupReplayError
from groupreplay_server.store.redis_store import RedisStore

_log = logging.getLogger(__name__)
_RETRY_S = 1.0


class Janitor:
    """Collects the garbage of tables that were marked. What a crash leaves is collected at the table's next mark."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self._marked: set[tuple[str, str]] = set()
        self._event = asyncio.Event()

    def mark(self, run: str, table: str) -> None:
        """Note that groups may have left a table."""
        self._marked.add((run, table))
        self._event.set()

    async def run(self) -> None:
        """Collect until cancelled."""
        task = asyncio.current_task()
        while task is None or not task.cancelling():  # a reconnecting client may swallow the cancellation
            await self._event.wait()
            self._event.clear()
            marked, self._marked = self._marked, set()
            for names in marked:
                try:
                    await self._store.collect_garbage(*names)
                except GroupReplayError as error:
                    _log.warning("payloads of table %s/%s wait to be removed: %s", *names, error)
                    self.mark(*names)
                    await asyncio.sleep(_RETRY_S)
