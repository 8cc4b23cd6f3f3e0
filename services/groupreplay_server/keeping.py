"""Snapshots of tables that are in use, and new tables made of them."""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, TypeVar

from groupreplay.errors import GroupReplayError, InvalidRequestError, LeaseExpiredError
from groupreplay.groups import check_name, now_ms
from groupreplay.parts import MESSAGE_BYTES
from groupreplay.types import Table
from groupreplay_server.batches import Batches
from groupreplay_server.janitor import Janitor
from groupreplay_server.limits import check_names
from groupreplay_server.store.keeping_store import KeptGroup, KeptTable, RestoreAttempt
from groupreplay_server.store.records import Payload
from groupreplay_server.store.redis_store import RedisStore

_log = logging.getLogger(__name__)
HOLD_S = 300.0
"""How long a reader or a writer may stand still: then payloads are no longer kept for the one, and what the other
wrote is undone."""
_PAGE_GROUPS = 256
_Result = TypeVar("_Result")

Groups = AsyncIterator[tuple[KeptGroup, Payload]]
"""Groups with their payloads, empty where none is kept."""


class Keeping:
    """Snapshot and Restore."""

    def __init__(
        self,
        store: RedisStore,
        batches: Batches,
        janitor: Janitor,
        *,
        hold_s: float = HOLD_S,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._batches = batches
        self._janitor = janitor
        self._hold_s = hold_s
        self._hold_ms = round(hold_s * 1000)
        self._seconds = seconds

    @asynccontextmanager
    async def snapshot(self, run: str, table: str) -> AsyncIterator[tuple[KeptTable, Groups]]:
        """Yield a table as it is now, and its groups to be read while others use it.

        Raises:
            LeaseExpiredError: nobody read on for too long, and payloads may be gone.
        """
        check_names(run, table)
        snapshot_id = secrets.token_hex(8)
        try:
            kept, groups = await self._store.keeping.snapshot(
                run, table, snapshot_id=snapshot_id, hold_ms=self._hold_ms
            )
            yield kept, self._payloads(run, table, groups, snapshot_id)
        finally:
            await asyncio.shield(self._let_go(run, table, snapshot_id))

    async def _payloads(self, run: str, table: str, groups: Sequence[KeptGroup], snapshot_id: str) -> Groups:
        held_at = self._seconds()
        async for group, payload in self._batches.payloads(run, table, groups):
            yield group, payload
            if self._seconds() - held_at > self._hold_s / 3:
                held_at = self._seconds()
                if not await self._store.keeping.hold(run, table, snapshot_id=snapshot_id, hold_ms=self._hold_ms):
                    raise LeaseExpiredError(
                        f"the snapshot of table {run}/{table} was not read on for {self._hold_s:g} s, and payloads are "
                        "kept no longer than that for a reader; take another one, on a faster link or disk"
                    )

    async def _let_go(self, run: str, table: str, snapshot_id: str) -> None:
        with suppress(GroupReplayError):  # then the hold ends by itself
            await self._store.keeping.hold(run, table, snapshot_id=snapshot_id, hold_ms=0)
            self._janitor.mark(run, table)

    async def restore(self, kept: KeptTable, restore_id: str, groups: Groups) -> Table:
        """Make a new table, named as kept.table is, all of it or nothing; return it. The same again changes nothing.

        Raises:
            TableExistsError: the table exists.
            FuturePolicyVersionError: the run's clock stands below the version of a group.
            LeaseExpiredError: no group came for too long, or another attempt took over.
        """
        attempt = self._attempt(kept, restore_id)
        store = self._store.keeping
        try:
            if await store.begin_restore(attempt, kept, restore_id):
                written = 0
                async for page in _pages(_aged(groups, now_ms() - kept.taken_at_ms)):
                    written = await _to_its_end(store.restore_groups(attempt, page))
                if written != kept.groups:
                    raise InvalidRequestError(
                        f"the snapshot for table {attempt.keys.topic} says that it has {kept.groups} groups, and "
                        f"{written} different ones came: it is truncated or damaged"
                    )
                await store.finish_restore(attempt, kept)
        except BaseException:
            await asyncio.shield(self._abandon(attempt))
            raise
        return await self._store.describe_table(attempt.run, attempt.table)

    async def ask_restore(self, kept: KeptTable, restore_id: str) -> None:
        """Raise what a restore would raise before it has groups."""
        attempt = self._attempt(kept, restore_id)
        try:
            await self._store.keeping.begin_restore(attempt, kept, restore_id)
        finally:
            await asyncio.shield(self._abandon(attempt))

    def _attempt(self, kept: KeptTable, restore_id: str) -> RestoreAttempt:
        check_names(kept.table.run, kept.table.table)
        check_name(restore_id, "restore_id")
        return RestoreAttempt(kept.table.run, kept.table.table, secrets.token_hex(8), self._hold_ms)

    async def _abandon(self, attempt: RestoreAttempt) -> None:
        with suppress(GroupReplayError):  # then run() of one of the servers does it
            await self._store.keeping.abandon_restore(attempt.run, attempt.table, attempt.attempt)
            await self._store.collect_garbage(attempt.run, attempt.table)

    async def run(self) -> None:
        """Undo, until cancelled, the restores whose server died."""
        while True:
            try:
                for names in await self._store.keeping.unfinished_restores():
                    if await self._store.keeping.abandon_restore(*names):
                        self._janitor.mark(*names)
            except GroupReplayError as error:
                _log.warning("interrupted restores wait to be undone: %s", error)
            await asyncio.sleep(self._hold_s)


async def _to_its_end(write: Coroutine[Any, Any, _Result]) -> _Result:
    """Let a write end before a cancellation goes on, or Redis may get it after what undoes it."""
    task = asyncio.ensure_future(write)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


async def _aged(groups: Groups, by_ms: int) -> Groups:
    """Yield groups that are as old now as they were at the snapshot: in a file no time to live passes."""
    async for group, payload in groups:
        yield replace(group, inserted_ms=group.inserted_ms + by_ms), payload


async def _pages(groups: Groups) -> AsyncIterator[list[tuple[KeptGroup, Payload]]]:
    page: list[tuple[KeptGroup, Payload]] = []
    size = 0
    async for group, payload in groups:
        page.append((group, payload))
        size += len(payload)
        if len(page) == _PAGE_GROUPS or size >= 2 * MESSAGE_BYTES:
            yield page
            page, size = [], 0
    if page:
        yield page
