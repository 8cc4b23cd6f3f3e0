"""Batches, samples, leases and admission: the calls of trainers and of producers that wait."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from groupreplay.errors import BatchNotReadyError, GroupReplayError, InvalidRequestError
from groupreplay.groups import check_name, now_ms
from groupreplay.table_config import Durability
from groupreplay.types import Admission, GroupFeedback
from groupreplay.v1.group_pb2 import GroupHeader
from groupreplay_server.feedback import checked_feedback
from groupreplay_server.janitor import Janitor
from groupreplay_server.limits import MAX_BATCH_SIZE, MAX_GROUP_IDS, MAX_WAIT_S, check_names, check_range
from groupreplay_server.store.keeping_store import KeptGroup
from groupreplay_server.store.records import BatchNotReady, LeasedBatch, LeasedGroup, Payload, ReadGroup
from groupreplay_server.store.redis_store import RedisStore
from groupreplay_server.wakeups import WakeUps

DEFAULT_LEASE_S = 600.0
DEFAULT_ADMISSION_S = 120.0
_PAGE_GROUPS = 64
_PAGE_BYTES = 4 * 2**20
GroupT = TypeVar("GroupT", LeasedGroup, ReadGroup, KeptGroup)


class Batches:
    """What trainers take and give back, and what producers may make."""

    def __init__(self, store: RedisStore, wakeups: WakeUps, janitor: Janitor) -> None:
        self._store = store
        self._wakeups = wakeups
        self._janitor = janitor

    async def next_batch(
        self, run: str, table: str, *, batch_size: int, lease_id: str, lease_s: float, timeout_s: float, holder: str
    ) -> LeasedBatch:
        """Wait for a complete batch and lease it.

        Raises:
            BatchNotReadyError: the timeout passed; the message says what is missing.
        """
        call_id = secrets.token_hex(8)

        def look(left_s: float) -> Awaitable[LeasedBatch | BatchNotReady]:
            return self._store.take_batch(
                run,
                table,
                lease_id=lease_id,
                batch_size=batch_size,
                lease_ms=_milliseconds(lease_s),
                holder=holder[:128],
                wait_ms=_milliseconds(max(left_s, 0)),
                call_id=call_id,
            )

        _check_request(run, table, lease_id=lease_id, batch_size=batch_size, lease_s=lease_s, timeout_s=timeout_s)
        try:
            # What is wanted beyond batch_size, for prompts that repeat, shrinks when another call takes them, so it is
            # no reason to sleep on.
            found = await self._wait(run, table, look, {"fresh": batch_size}, timeout_s)
            if isinstance(found, LeasedBatch):
                return found
            raise BatchNotReadyError(await self._what_is_missing(run, table, batch_size, found, timeout_s))
        except BaseException:
            # The caller is gone or got an error; admission must not count on it. A dead Redis is no new error here.
            await asyncio.shield(self._stop_waiting(run, table, call_id))
            raise

    async def sample(
        self, run: str, table: str, *, batch_size: int, lease_id: str, lease_s: float, timeout_s: float, holder: str
    ) -> LeasedBatch:
        """Wait until replay and the rate limit allow a draw, and lease it.

        Raises:
            BatchNotReadyError: the timeout passed; the message says what is missing.
        """

        def look(left_s: float) -> Awaitable[LeasedBatch | BatchNotReady]:
            return self._store.draw_sample(
                run,
                table,
                lease_id=lease_id,
                batch_size=batch_size,
                lease_ms=_milliseconds(lease_s),
                holder=holder[:128],
            )

        _check_request(run, table, lease_id=lease_id, batch_size=batch_size, lease_s=lease_s, timeout_s=timeout_s)
        found = await self._wait(run, table, look, {"replay": 1}, timeout_s)
        if isinstance(found, LeasedBatch):
            return found
        raise BatchNotReadyError(await self._what_holds_samples(run, table, found, timeout_s))

    async def _wait(
        self,
        run: str,
        table: str,
        look: Callable[[float], Awaitable[LeasedBatch | BatchNotReady]],
        at_least: dict[str, int],
        timeout_s: float,
    ) -> LeasedBatch | BatchNotReady:
        """Look, and look again whenever something of use may have happened, until the timeout."""
        deadline = time.monotonic() + timeout_s
        with self._wakeups.watch(check_names(run, table).topic) as watch:
            watch.at_least = at_least | {"policy": 0}  # before the look, or an insert right after it is missed
            while True:
                left_s = deadline - time.monotonic()
                found = await look(left_s)
                if isinstance(found, LeasedBatch):
                    self._janitor.mark(run, table)
                    return found
                if left_s <= 0:
                    return found
                await watch.wait(_until(left_s, found.next_deadline_ms))

    async def _stop_waiting(self, run: str, table: str, call_id: str) -> None:
        try:
            await self._store.stop_waiting(run, table, call_id)
        except GroupReplayError:
            return  # its entry names a time after which it no longer counts

    async def _what_is_missing(
        self, run: str, table: str, batch_size: int, found: BatchNotReady, timeout_s: float
    ) -> str:
        state = await self._store.describe_table(run, table)
        kind = "effective fresh" if state.config.fill.value == "resample" else "fresh"
        age_s = (now_ms() - state.last_insert_ms) / 1000
        last = f"the last insert was {age_s:.1f} s ago" if state.last_insert_ms else "nothing was ever inserted"
        return (
            f"table {run}/{table} has {found.available} of the {found.wanted} {kind} groups that a batch of "
            f"{batch_size} needs, after waiting {round(timeout_s, 3):g} s: {last}; {state.fresh} fresh "
            f"({state.fresh_effective} effective), {state.leased} in {state.leases} leases, {state.replay} in replay, "
            f"policy version {state.policy_version}; see that producers run and that their groups reach this table"
        )

    async def _what_holds_samples(self, run: str, table: str, found: BatchNotReady, timeout_s: float) -> str:
        state = await self._store.describe_table(run, table)
        limit = state.config.rate_limit
        inserted, drawn = (state.counters.get(name, 0) for name in ("inserted", "delivered_replay"))
        rate = (
            f"; its rate limit allows {limit.samples_per_insert:g} samples per insert, {inserted} were inserted and "
            f"{drawn} drawn"
            if limit
            else ""
        )
        return (
            f"table {run}/{table} has {found.available} of the {found.wanted} replay groups that a sample needs, or "
            f"none that may be drawn, after waiting {round(timeout_s, 3):g} s{rate}; policy version "
            f"{state.policy_version}; insert more groups, or look at max_staleness, min_staleness, max_times_sampled "
            "and max_kl of the table"
        )

    async def payloads(self, run: str, table: str, groups: Sequence[GroupT]) -> AsyncIterator[tuple[GroupT, Payload]]:
        """Yield groups with their payloads, reading a page of some megabytes ahead; empty where none is kept."""
        async with aclosing(_read_ahead(groups, lambda page: self._store.read_payloads(run, table, page))) as pages:
            async for each in pages:
                yield each

    async def with_log_ratios(
        self, run: str, table: str, groups: AsyncIterator[tuple[ReadGroup, Payload]]
    ) -> AsyncIterator[tuple[ReadGroup, Payload]]:
        """Yield groups that were read with the log ratios that were fed back, where there are some."""
        async for group, payload in groups:
            yield await self._store.with_log_ratios(run, table, group), payload

    async def commit(
        self,
        run: str,
        table: str,
        *,
        lease_id: str,
        step: int,
        feedback: Sequence[GroupFeedback],
        durability: Durability,
    ) -> bool:
        """End a lease after training; return True if this very commit was made before."""
        check_names(run, table)
        check_name(lease_id, "lease_id")
        check_range("step", step, 0, 2**53 - 1)
        checked = await checked_feedback(self._store, run, table, feedback)
        repeated = await self._store.commit_lease(
            run, table, lease_id=lease_id, step=step, feedback=checked, durability=durability
        )
        self._janitor.mark(run, table)
        return repeated

    async def read_lease(self, run: str, table: str, *, lease_id: str, group_ids: Sequence[str]) -> list[LeasedGroup]:
        """Return some groups of a live lease, in the order asked.

        Raises:
            InvalidRequestError: one of them is not in the lease.
        """
        check_names(run, table)
        check_name(lease_id, "lease_id")
        check_range("the number of group_ids", len(group_ids), 1, MAX_GROUP_IDS)
        batch = await self._store.read_lease(run, table, lease_id=lease_id)
        delivered = {group.group_id: group for group in batch.groups}
        if strange := [group_id for group_id in group_ids if group_id not in delivered]:
            raise InvalidRequestError(
                f"lease {lease_id} of table {run}/{table} has {len(delivered)} groups, and {len(strange)} of those "
                f"asked for are not among them, the first is {strange[0]}; ask for groups of its batch only"
            )
        return [delivered[group_id] for group_id in group_ids]

    async def release(self, run: str, table: str, *, lease_id: str) -> int:
        """Give the groups of a lease back; return how many fresh ones."""
        check_names(run, table)
        check_name(lease_id, "lease_id")
        returned = await self._store.release_lease(run, table, lease_id=lease_id)
        self._janitor.mark(run, table)
        return returned

    async def extend_lease(self, run: str, table: str, *, lease_id: str, lease_s: float) -> int:
        """Move a lease's deadline to lease_s from now; return it in Unix milliseconds."""
        check_names(run, table)
        check_name(lease_id, "lease_id")
        check_range("lease_s", lease_s, 1, MAX_WAIT_S)
        return await self._store.extend_lease(run, table, lease_id=lease_id, lease_ms=_milliseconds(lease_s))

    async def request_admission(
        self, run: str, table: str, *, producer_id: str, max_groups: int, timeout_s: float, admission_s: float
    ) -> Admission:
        """Wait until the table wants groups; grant some, or none after the timeout."""
        keys = check_names(run, table)
        check_name(producer_id, "producer_id")
        check_range("max_groups", max_groups, 1, MAX_BATCH_SIZE)
        check_range("timeout_s", timeout_s, 0, MAX_WAIT_S)
        check_range("admission_s", admission_s, 1, MAX_WAIT_S)
        deadline = time.monotonic() + timeout_s
        with self._wakeups.watch(keys.topic) as watch:
            watch.at_least = {"demand": 0, "policy": 0}
            while True:
                granted, next_end_ms = await self._store.request_admission(
                    run,
                    table,
                    producer_id=producer_id,
                    max_groups=max_groups,
                    admission_ms=_milliseconds(admission_s),
                )
                left_s = deadline - time.monotonic()
                if granted or left_s <= 0:
                    return Admission(groups=granted, policy=await self._store.policies.get(run))
                await watch.wait(_until(left_s, next_end_ms))


async def _read_ahead(
    groups: Sequence[GroupT], read: Callable[[Sequence[GroupT]], Coroutine[Any, Any, list[Payload]]]
) -> AsyncGenerator[tuple[GroupT, Payload]]:
    """Yield groups with their payloads; while those of a page are used, those of the next are being read."""
    pages = _pages(groups)
    page = next(pages, None)
    reading = asyncio.create_task(read(page or ()))
    try:
        while page:
            payloads = await reading
            following = next(pages, None)
            if following:
                reading = asyncio.create_task(read(following))
            for each in zip(page, payloads, strict=True):
                yield each
            page = following
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


def _pages(groups: Sequence[GroupT]) -> Iterator[Sequence[GroupT]]:
    """Cut groups into pages of _PAGE_BYTES of payload, where one alone is no larger."""
    start = size = 0
    for index, group in enumerate(groups):
        payload_bytes = _payload_bytes(group)
        if index > start and (size + payload_bytes > _PAGE_BYTES or index - start == _PAGE_GROUPS):
            yield groups[start:index]
            start, size = index, 0
        size += payload_bytes
    if start < len(groups):
        yield groups[start:]


def _payload_bytes(group: LeasedGroup | ReadGroup | KeptGroup) -> int:
    if isinstance(group, KeptGroup):
        return group.payload_bytes
    return GroupHeader.FromString(group.header).payload_bytes if group.payload_ref else 0


def _check_request(run: str, table: str, *, lease_id: str, batch_size: int, lease_s: float, timeout_s: float) -> None:
    check_names(run, table)
    check_name(lease_id, "lease_id")
    check_range("batch_size", batch_size, 1, MAX_BATCH_SIZE)
    check_range("lease_s", lease_s, 1, MAX_WAIT_S)
    check_range("timeout_s", timeout_s, 0, MAX_WAIT_S)


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _until(left_s: float, next_end_ms: int) -> float:
    """Seconds to sleep: to the end of the wait, or until a lease or grant ends and things may have changed."""
    return min(left_s, max(next_end_ms - now_ms(), 0) / 1000) if next_end_ms else left_s
