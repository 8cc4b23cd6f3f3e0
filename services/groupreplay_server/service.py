"""The use cases of replay as a service. Front doors decode a request, call one of these, encode the answer."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence

from groupreplay.errors import (
    BatchNotReadyError,
    GroupReplayError,
    InvalidRequestError,
    UnknownRunError,
    UnknownTableError,
)
from groupreplay.groups import MAX_POLICY_VERSION, check_name, now_ms
from groupreplay.parts import MESSAGE_BYTES, AssembledGroup
from groupreplay.types import Admission, GroupState, InsertOutcome, InsertResult, Policy, Table, TableConfig
from groupreplay_server.headers import read_group
from groupreplay_server.janitor import Janitor
from groupreplay_server.store.keys import TableKeys
from groupreplay_server.store.records import BatchNotReady, LeasedBatch, LeasedGroup
from groupreplay_server.store.redis_store import RedisStore
from groupreplay_server.wakeups import WakeUps

MAX_BATCH_SIZE = 65536
MAX_LOCATE = 10_000
MAX_WAIT_S = 86_400.0
DEFAULT_LEASE_S = 600.0
DEFAULT_ADMISSION_S = 120.0
_PAYLOADS_AT_ONCE = 64


class ReplayService:
    """Everything the service does, over one store. Stateless but for caches: any replica serves any call."""

    def __init__(self, store: RedisStore, wakeups: WakeUps, janitor: Janitor) -> None:
        self._store = store
        self._wakeups = wakeups
        self._janitor = janitor
        self._configs: dict[tuple[str, str], TableConfig] = {}

    # Tables

    async def create_table(self, run: str, table: str, config: TableConfig) -> tuple[Table, bool]:
        """Make a table; return it, and whether it is new."""
        check_name(run, "run")
        check_name(table, "table")
        created = await self._store.create_table(run, table, config)
        return await self._store.describe_table(run, table), created

    async def describe_table(self, run: str, table: str) -> Table:
        """Return a table's state at one moment."""
        self._check_names(run, table)
        return await self._store.describe_table(run, table)

    async def list_tables(self, run: str = "") -> list[Table]:
        """Return the state of all tables, or of one run's."""
        if run:
            check_name(run, "run")
        tables = []
        for names in await self._store.list_tables(run):
            try:
                tables.append(await self._store.describe_table(*names))
            except (UnknownRunError, UnknownTableError):
                continue  # named by a CreateTable that did not get further
        return tables

    async def table_config(self, run: str, table: str) -> TableConfig:
        """Return a table's configuration, which never changes; cached."""
        config = self._configs.get((run, table))
        if config is None:
            self._check_names(run, table)
            config = (await self._store.describe_table(run, table)).config
            self._configs[run, table] = config
        return config

    # Groups

    async def insert(self, run: str, table: str, groups: Sequence[AssembledGroup]) -> list[InsertResult]:
        """Store groups as fresh; a group that is refused does not hold up the others."""
        config = await self.table_config(run, table)
        results: dict[int, InsertResult] = {}
        accepted = []
        for index, group in enumerate(groups):
            try:
                if group.error is not None:
                    raise group.error
                accepted.append((index, read_group(group.header, group.payload, config)))
            except GroupReplayError as error:
                results[index] = InsertResult(
                    group_id=group.header.group_id[:128], outcome=InsertOutcome.REFUSED, error=error
                )
        if accepted:
            stored = await self._store.insert_groups(run, table, [group for _, group in accepted])
            results |= {index: result for (index, _), result in zip(accepted, stored, strict=True)}
        return [results[index] for index in range(len(groups))]

    async def locate_groups(self, run: str, table: str, group_ids: Sequence[str]) -> list[GroupState]:
        """Say where groups are."""
        self._check_names(run, table)
        if len(group_ids) > MAX_LOCATE:
            raise InvalidRequestError(f"{len(group_ids)} group_ids in one call, at most {MAX_LOCATE}; ask in pages")
        return await self._store.locate_groups(run, table, group_ids)

    # Batches and leases

    async def next_batch(
        self, run: str, table: str, *, batch_size: int, lease_id: str, lease_s: float, timeout_s: float, holder: str
    ) -> LeasedBatch:
        """Wait for a complete batch and lease it.

        Raises:
            BatchNotReadyError: the timeout passed; the message says what is missing.
        """
        keys = self._check_names(run, table)
        check_name(lease_id, "lease_id")
        _check_range("batch_size", batch_size, 1, MAX_BATCH_SIZE)
        _check_range("lease_s", lease_s, 1, MAX_WAIT_S)
        _check_range("timeout_s", timeout_s, 0, MAX_WAIT_S)
        deadline = time.monotonic() + timeout_s
        call_id = secrets.token_hex(8)
        with self._wakeups.watch(keys.topic) as watch:
            try:
                # Set before the look, or an insert right after it is missed. What is wanted beyond batch_size, for
                # prompts that repeat, shrinks when another call takes them, so it is no reason to sleep on.
                watch.at_least = {"fresh": batch_size}
                while True:
                    left_s = deadline - time.monotonic()
                    found = await self._store.take_batch(
                        run,
                        table,
                        lease_id=lease_id,
                        batch_size=batch_size,
                        lease_ms=_milliseconds(lease_s),
                        holder=holder[:128],
                        wait_ms=_milliseconds(max(left_s, 0)),
                        call_id=call_id,
                    )
                    if isinstance(found, LeasedBatch):
                        self._janitor.mark(run, table)
                        return found
                    if left_s <= 0:
                        raise BatchNotReadyError(await self._what_is_missing(run, table, batch_size, found, timeout_s))
                    await watch.wait(_until(left_s, found.next_deadline_ms))
            except BaseException:
                # The caller is gone or got an error; admission must not count on it. A dead Redis is no new error here.
                await asyncio.shield(self._stop_waiting(run, table, call_id))
                raise

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

    async def batch_payloads(
        self, run: str, table: str, batch: LeasedBatch
    ) -> AsyncIterator[tuple[LeasedGroup, bytes]]:
        """Yield the groups of a batch with their payloads, reading some megabytes ahead at most."""
        groups = batch.groups
        start, size = 0, _PAYLOADS_AT_ONCE
        while start < len(groups):
            page = groups[start : start + size]
            payloads = await self._store.read_payloads(run, table, page)
            for group, payload in zip(page, payloads, strict=True):
                yield group, payload
            start += len(page)
            mean_bytes = max(1, sum(map(len, payloads)) // len(page))
            size = max(1, min(_PAYLOADS_AT_ONCE, 2 * MESSAGE_BYTES // mean_bytes))

    async def commit(self, run: str, table: str, *, lease_id: str, step: int) -> bool:
        """End a lease after training; return True if this very commit was made before."""
        self._check_names(run, table)
        check_name(lease_id, "lease_id")
        _check_range("step", step, 0, 2**53 - 1)
        repeated = await self._store.commit_lease(run, table, lease_id=lease_id, step=step)
        self._janitor.mark(run, table)
        return repeated

    async def release(self, run: str, table: str, *, lease_id: str) -> int:
        """Give the groups of a lease back; return how many fresh ones."""
        self._check_names(run, table)
        check_name(lease_id, "lease_id")
        returned = await self._store.release_lease(run, table, lease_id=lease_id)
        self._janitor.mark(run, table)
        return returned

    async def extend_lease(self, run: str, table: str, *, lease_id: str, lease_s: float) -> int:
        """Move a lease's deadline to lease_s from now; return it in Unix milliseconds."""
        self._check_names(run, table)
        check_name(lease_id, "lease_id")
        _check_range("lease_s", lease_s, 1, MAX_WAIT_S)
        return await self._store.extend_lease(run, table, lease_id=lease_id, lease_ms=_milliseconds(lease_s))

    async def request_admission(
        self, run: str, table: str, *, producer_id: str, max_groups: int, timeout_s: float, admission_s: float
    ) -> Admission:
        """Wait until the table wants groups; grant some, or none after the timeout."""
        keys = self._check_names(run, table)
        check_name(producer_id, "producer_id")
        _check_range("max_groups", max_groups, 1, MAX_BATCH_SIZE)
        _check_range("timeout_s", timeout_s, 0, MAX_WAIT_S)
        _check_range("admission_s", admission_s, 1, MAX_WAIT_S)
        deadline = time.monotonic() + timeout_s
        with self._wakeups.watch(keys.topic) as watch:
            watch.at_least = {"demand": 0}
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
                    return Admission(groups=granted, policy=await self._store.get_policy(run))
                await watch.wait(_until(left_s, next_end_ms))

    # Policy clocks

    async def advance_policy(self, policy: Policy) -> Policy:
        """Publish a policy version."""
        check_name(policy.run, "run")
        _check_range("version", policy.version, 0, MAX_POLICY_VERSION)
        for name, value, limit in (("weights_uri", policy.weights_uri, 4096), ("sha256", policy.weights_sha256, 64)):
            if len(value) > limit:
                raise InvalidRequestError(f"{name} is {len(value)} characters long, at most {limit}")
        return await self._store.advance_policy(policy)

    async def get_policy(self, run: str) -> Policy:
        """Return the current policy of a run."""
        check_name(run, "run")
        return await self._store.get_policy(run)

    async def watch_policy(self, run: str, after_version: int) -> AsyncIterator[Policy]:
        """Yield the current policy if it is above after_version, then each newer one, until the caller leaves."""
        check_name(run, "run")
        sent: Policy | None = None
        with self._wakeups.watch(run) as watch:
            while True:
                watch.at_least = {"policy": after_version}  # before the look, or a version right after it is missed
                policy = await self._store.get_policy(run)
                # Version 0 may get its weights after it was sent without.
                if policy.version > after_version or (sent is not None and policy != sent):
                    yield policy
                    sent, after_version = policy, policy.version
                await watch.wait(MAX_WAIT_S)

    @staticmethod
    def _check_names(run: str, table: str) -> TableKeys:
        check_name(run, "run")
        check_name(table, "table")
        return TableKeys(run, table)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also false for NaN
        raise InvalidRequestError(f"{name} {value} is not in {low:.16g} to {high:.16g}")


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _until(left_s: float, next_end_ms: int) -> float:
    """Seconds to sleep: to the end of the wait, or until a lease or grant ends and things may have changed."""
    return min(left_s, max(next_end_ms - now_ms(), 0) / 1000) if next_end_ms else left_s
