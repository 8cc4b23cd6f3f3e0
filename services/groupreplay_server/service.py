"""The use cases of replay as a service. Front doors decode a request, call one of these, encode the answer."""

import time
from collections.abc import AsyncIterator, Sequence

from groupreplay.errors import (
    InvalidRequestError,
    PayloadLostError,
    UnknownRunError,
    UnknownTableError,
)
from groupreplay.groups import MAX_POLICY_VERSION, check_name, now_ms
from groupreplay.parts import AssembledGroup
from groupreplay.table_config import FIXED_FIELDS, Durability, TableConfig
from groupreplay.types import Diagnosis, GroupFeedback, GroupState, InsertResult, Policy, Quota, Table
from groupreplay_server.about import About
from groupreplay_server.batches import Batches
from groupreplay_server.diagnosis import diagnose
from groupreplay_server.feedback import checked_feedback
from groupreplay_server.headers import CheckedGroups
from groupreplay_server.history import Histories
from groupreplay_server.janitor import Janitor
from groupreplay_server.keeping import Keeping
from groupreplay_server.limits import MAX_BATCH_SIZE, MAX_GROUP_IDS, MAX_WAIT_S, check_names, check_range
from groupreplay_server.listing import Listing
from groupreplay_server.partial_groups import PartialGroups
from groupreplay_server.store.records import LeasedBatch, LoggedStep, ReadGroup
from groupreplay_server.store.redis_store import RedisStore
from groupreplay_server.tokens import Tokens
from groupreplay_server.wakeups import WakeUps

MAX_LABEL = 256
CONFIG_CACHE_S = 5.0
"""How long a table's configuration is used before it is read again; the scripts check their limits themselves."""
ROOM_CHECK_S = 2.0
"""How often an insert that waits for room looks by itself: nothing wakes it when another table frees a run's quota."""


class ReplayService:
    """Everything the service does, over one store. Stateless but for caches: any replica serves any call."""

    def __init__(self, store: RedisStore, wakeups: WakeUps, janitor: Janitor, about: About, tokens: Tokens) -> None:
        self.batches = Batches(store, wakeups, janitor)
        self.about = about
        self.tokens = tokens
        self.listing = Listing(store.listing)
        self.histories = Histories(store.history)
        self.keeping = Keeping(store, self.batches, janitor)
        self.partial_groups = PartialGroups(store, janitor, self.table_config)
        self.atropos = store.atropos
        self._store = store
        self._wakeups = wakeups
        self._janitor = janitor
        self._configs: dict[tuple[str, str], tuple[TableConfig, float]] = {}

    # Tables

    async def create_table(self, run: str, table: str, config: TableConfig) -> tuple[Table, bool]:
        """Make a table; return it, and whether it is new."""
        check_name(run, "run")
        check_name(table, "table")
        created = await self._store.create_table(run, table, config)
        return await self._store.describe_table(run, table), created

    async def describe_table(self, run: str, table: str) -> Table:
        """Return a table's state at one moment."""
        check_names(run, table)
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
        """Return a table's configuration, as it was some seconds ago at most."""
        config, until = self._configs.get((run, table), (None, 0.0))
        if config is None or time.monotonic() >= until:
            config = (await self.describe_table(run, table)).config
            self._configs[run, table] = config, time.monotonic() + CONFIG_CACHE_S
        return config

    async def update_table(self, run: str, table: str, config: TableConfig) -> Table:
        """Change the limits of a table while it runs; return it.

        Raises:
            InvalidRequestError: the change concerns what cannot change while a table lives.
        """
        before = (await self.describe_table(run, table)).config
        for name in FIXED_FIELDS:
            if getattr(before, name) != getattr(config, name):
                raise InvalidRequestError(
                    f"{name} of table {run}/{table} is {getattr(before, name)} and cannot become "
                    f"{getattr(config, name)}: it decides over order and weight of what is there; make a new table"
                )
        await self._store.update_table(run, table, config)
        self._configs.pop((run, table), None)
        self._janitor.mark(run, table)
        return await self._store.describe_table(run, table)

    async def reset_table(self, run: str, table: str) -> int:
        """Remove every group of a table; return how many."""
        check_names(run, table)
        removed = await self._store.reset_table(run, table)
        self._janitor.mark(run, table)
        return removed

    # Groups

    async def insert(
        self, run: str, table: str, groups: Sequence[AssembledGroup]
    ) -> tuple[list[InsertResult], Durability]:
        """Store groups, and say what they have reached; a group that is refused does not hold up the others."""
        return await self.insert_checked(await self.check(run, table, groups))

    async def check(self, run: str, table: str, groups: Sequence[AssembledGroup]) -> CheckedGroups:
        """Hold groups to what the table takes; nothing is stored yet."""
        return CheckedGroups(run, table, groups, await self.table_config(run, table))

    async def insert_checked(self, groups: CheckedGroups) -> tuple[list[InsertResult], Durability]:
        """Store what was accepted; return a result for each group, in their order, and what they have reached."""
        results = dict(groups.refused)
        if groups.accepted:
            stored = await self._store.insert_groups(
                groups.run, groups.table, list(groups.accepted.values()), durability=groups.durability
            )
            results |= zip(groups.accepted, stored, strict=True)
        return [results[index] for index in range(len(results))], groups.durability

    async def insert_when_room(
        self, run: str, table: str, groups: Sequence[AssembledGroup], *, timeout_s: float
    ) -> list[InsertResult]:
        """Store groups, for senders that cannot come again: what is refused for want of room waits until there is.

        After timeout_s what is still refused is returned as insert does.
        """
        deadline = time.monotonic() + timeout_s
        with self._wakeups.watch(check_names(run, table).topic) as watch:
            watch.at_least = {"demand": 0, "config": 0}
            results, _ = await self.insert(run, table, groups)
            while (left_s := deadline - time.monotonic()) > 0:
                waiting = [index for index, it in enumerate(results) if it.error is not None and it.error.retryable]
                if not waiting:
                    break
                await watch.wait(min(left_s, ROOM_CHECK_S))
                again, _ = await self.insert(run, table, [groups[index] for index in waiting])
                for index, result in zip(waiting, again, strict=True):
                    results[index] = result
        return results

    async def locate_groups(self, run: str, table: str, group_ids: Sequence[str]) -> list[GroupState]:
        """Say where groups are."""
        _check_ids(run, table, group_ids)
        return await self._store.locate_groups(run, table, group_ids)

    async def read_groups(self, run: str, table: str, group_ids: Sequence[str]) -> list[ReadGroup]:
        """Return the groups that the table holds, without taking them."""
        _check_ids(run, table, group_ids)
        return await self._store.read_groups(run, table, group_ids)

    async def delete_groups(self, run: str, table: str, group_ids: Sequence[str]) -> int:
        """Remove groups that are fresh or in replay; return how many were."""
        _check_ids(run, table, group_ids)
        removed = await self._store.delete_groups(run, table, group_ids)
        self._janitor.mark(run, table)
        return removed

    async def update_priorities(self, run: str, table: str, feedback: Sequence[GroupFeedback]) -> list[str]:
        """Take note of what callers found out about groups; return the ids that the table does not hold."""
        check_names(run, table)
        checked = await checked_feedback(self._store, run, table, feedback)
        unknown = await self._store.update_priorities(run, table, checked)
        if any(item.log_ratios is not None for item in checked):
            self._janitor.mark(run, table)  # those before are garbage
        return unknown

    # What a table can tell

    async def beat(self, run: str, table: str, *, producer_id: str, interval_s: float, status: str) -> Policy:
        """Take note that a producer is there; return the run's policy."""
        check_names(run, table)
        check_name(producer_id, "producer_id")
        check_range("interval_s", interval_s, 1, MAX_WAIT_S)
        await self._store.note_beat(run, table, producer_id=producer_id, interval_s=interval_s, status=status[:256])
        return await self._store.policies.get(run)

    async def diagnose(self, run: str, table: str, batch_size: int) -> Diagnosis:
        """Say why a batch is, or is not, ready."""
        check_names(run, table)
        check_range("batch_size", batch_size, 1, MAX_BATCH_SIZE)
        vitals = await self._store.read_vitals(run, table, batch_size)
        state = await self._store.describe_table(run, table)
        return diagnose(state, vitals, batch_size=batch_size, now_ms=now_ms())

    async def lineage(self, run: str, table: str, step: int) -> LoggedStep:
        """Return what a committed training step was given."""
        check_names(run, table)
        check_range("step", step, 0, 2**53 - 1)
        return await self._store.read_lineage(run, table, step)

    async def step_to_replay(self, run: str, table: str, step: int) -> LeasedBatch:
        """Return the batch of a committed training step.

        Raises:
            PayloadLostError: groups of it are gone.
        """
        logged = await self.lineage(run, table, step)
        if logged.missing:
            raise PayloadLostError(
                f"{logged.missing} of the {len(logged.batch.groups)} groups of step {step} have left table "
                f"{run}/{table}; "
                "lineage_payload_steps keeps those of so many newest steps readable, GetLineage still tells their ids"
            )
        return logged.batch

    # Runs: policy clocks and quotas

    async def advance_policy(self, policy: Policy) -> Policy:
        """Publish a policy version."""
        _check_policy(policy)
        return await self._store.policies.advance(policy)

    async def rewind_policy(self, policy: Policy, *, step: int, rewind_id: str) -> Policy:
        """Move a run's policy clock back, and its tables with it."""
        _check_policy(policy)
        check_range("step", step, 0, 2**53 - 1)
        check_name(rewind_id, "rewind_id")
        rewound = await self._store.policies.rewind(policy, step=step, rewind_id=rewind_id)
        for names in await self._store.list_tables(policy.run):
            self._janitor.mark(*names)
        return rewound

    async def resolve_policy(self, run: str, label: str) -> int:
        """Return the version that a label names."""
        check_name(run, "run")
        return await self._store.policies.resolve(run, label[:MAX_LABEL])

    async def get_quota(self, run: str) -> Quota:
        """Return a run's quota, and what its tables hold."""
        check_name(run, "run")
        return await self._store.policies.quota(run)

    async def set_quota(self, run: str, *, max_groups: int | None, max_bytes: int | None) -> Quota:
        """Limit what all tables of a run hold together."""
        check_name(run, "run")
        for name, value in (("max_groups", max_groups), ("max_bytes", max_bytes)):
            check_range(name, value or 0, 0, 2**53 - 1)
        return await self._store.policies.quota(run, (max_groups, max_bytes))

    async def get_policy(self, run: str) -> Policy:
        """Return the current policy of a run."""
        check_name(run, "run")
        return await self._store.policies.get(run)

    async def watch_policy(self, run: str, after_version: int) -> AsyncIterator[Policy]:
        """Yield the current policy if it is above after_version, then each change, until the caller leaves."""
        check_name(run, "run")
        sent: Policy | None = None
        with self._wakeups.watch(run) as watch:
            watch.at_least = {"policy": 0}  # before the look, or a version right after it is missed
            while True:
                policy = await self._store.policies.get(run)
                # Version 0 may get its weights after it was sent without, and the clock may go back.
                if policy != sent and (sent is not None or policy.version > after_version):
                    yield policy
                    sent = policy
                await watch.wait(MAX_WAIT_S)


def _check_ids(run: str, table: str, group_ids: Sequence[str]) -> None:
    check_names(run, table)
    if len(group_ids) > MAX_GROUP_IDS:
        raise InvalidRequestError(f"{len(group_ids)} group_ids in one call, at most {MAX_GROUP_IDS}; ask in pages")


def _check_policy(policy: Policy) -> None:
    check_name(policy.run, "run")
    check_range("version", policy.version, 0, MAX_POLICY_VERSION)
    limits = (("weights_uri", 4096), ("weights_sha256", 64), ("label", MAX_LABEL))
    for name, limit in limits:
        if len(getattr(policy, name)) > limit:
            raise InvalidRequestError(f"{name} is {len(getattr(policy, name))} characters long, at most {limit}")
