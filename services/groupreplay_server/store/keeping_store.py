"""Whole tables out of Redis and into it: snapshots, and the restores that make new tables of them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from groupreplay.errors import LeaseExpiredError
from groupreplay.types import GroupFeedback, GroupState, Policy, Table
from groupreplay_server.store.backend import Backend
from groupreplay_server.store.connection import text, translated_errors
from groupreplay_server.store.fields import config_to_fields, pairs, policy_from_fields, table_from_reply
from groupreplay_server.store.keys import RESTORES, RUNS, RunKeys, TableKeys
from groupreplay_server.store.records import Payload
from groupreplay_server.store.scripts import Value, call_script


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptGroup:
    """A group in a snapshot, without its payload."""

    group_id: str
    place: GroupState
    """Fresh, leased or replay."""
    header: bytes
    payload_ref: str
    """Empty where no payload is kept, and in a snapshot that comes in."""
    payload_bytes: int
    sequence: int
    effective: bool
    policy_version_min: int
    policy_version_max: int
    prompt_id: str
    task: str
    priority: float
    inserted_ms: int
    feedback: GroupFeedback
    times_sampled: int
    in_leases: int
    """How many of times_sampled are in live leases."""
    redeliveries: int
    reward_mean: float | None
    """None = inserted before it was kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptTable:
    """A table at a snapshot's moment, without its groups."""

    table: Table
    policy: Policy
    taken_at_ms: int
    policy_version_max: int
    sequence: int
    sampled: int
    paced_from_version: int
    paced_from_inserted: int

    @property
    def groups(self) -> int:
        """Groups in it."""
        return self.table.fresh + self.table.leased + self.table.replay


@dataclass(frozen=True, slots=True)
class RestoreAttempt:
    """One try of a restore: the table to make, and what its scripts know it by."""

    run: str
    table: str
    attempt: str
    """Names its payloads, too."""
    hold_ms: int
    """Time without progress after which it is undone."""

    @property
    def keys(self) -> TableKeys:
        """Keys of the table to make."""
        return TableKeys(self.run, self.table)


class KeepingStore:
    """Snapshots and restores in Redis."""

    def __init__(self, redis: Backend, shared: Callable[[TableKeys], dict[str, Any]]) -> None:
        """Use this Redis, which the caller opens and closes; shared returns what all scripts over a table take."""
        self._redis = redis
        self._shared = shared

    # Snapshots

    async def snapshot(
        self, run: str, table: str, *, snapshot_id: str, hold_ms: int
    ) -> tuple[KeptTable, list[KeptGroup]]:
        """Return a table at one moment; payloads that leave afterwards stay for hold_ms."""
        keys = TableKeys(run, table)
        values = self._shared(keys)
        values |= {"snapshot_id": snapshot_id, "hold_until_ms": values["now_ms"] + hold_ms}
        with translated_errors():
            reply = await call_script(self._redis, "snapshot_table", keys.all(), values)
        description, policy, newest, sampled, groups = reply
        state = pairs(description[6])
        found = [_kept_group(group) for group in groups]
        kept = KeptTable(
            # Without what left and is still in a lease.
            table=replace(
                table_from_reply(run, table, description), payload_bytes=sum(group.payload_bytes for group in found)
            ),
            policy=policy_from_fields(run, pairs(policy)),
            taken_at_ms=values["now_ms"],
            policy_version_max=newest,
            sequence=int(state.get("sequence", 0)),
            sampled=sampled,
            paced_from_version=int(state.get("paced_from_version", 0)),
            paced_from_inserted=int(state.get("paced_from_inserted", 0)),
        )
        return kept, found

    async def hold(self, run: str, table: str, *, snapshot_id: str, hold_ms: int) -> bool:
        """Keep payloads for hold_ms from now, 0 = no longer; return False if the hold had ended before."""
        keys = TableKeys(run, table)
        shared = self._shared(keys)
        until_ms = shared["now_ms"] + hold_ms if hold_ms else 0
        values = {**shared, "snapshot_id": snapshot_id, "hold_until_ms": until_ms}
        with translated_errors():
            return bool(await call_script(self._redis, "hold_garbage", keys.all(), values))

    # Restores

    async def begin_restore(self, attempt: RestoreAttempt, kept: KeptTable, restore_id: str) -> bool:
        """Begin to make a table of a snapshot; return False if this very restore was finished before."""
        shared = self._shared(attempt.keys)
        values = {
            **shared,
            "restore_id": restore_id,
            "attempt": attempt.attempt,
            "until_ms": shared["now_ms"] + attempt.hold_ms,
            "newest": kept.policy_version_max,
            "reference": kept.policy.version,
            "groups": kept.groups,
            "bytes": kept.table.payload_bytes,
        }
        config = config_to_fields(kept.table.config)
        with translated_errors():
            await self._redis.sadd(RESTORES, attempt.keys.topic)
            return bool(
                await call_script(self._redis, "begin_restore", attempt.keys.all(), values, list(config.items()))
            )

    async def restore_groups(self, attempt: RestoreAttempt, groups: Sequence[tuple[KeptGroup, Payload]]) -> int:
        """Write groups with their payloads; return how many the table has so far."""
        shared = self._shared(attempt.keys)
        values = {**shared, "attempt": attempt.attempt, "until_ms": shared["now_ms"] + attempt.hold_ms}
        payloads = {
            attempt.keys.payload(f"{group.group_id}/{attempt.attempt}"): payload for group, payload in groups if payload
        }
        records = [_restore_record(group, attempt.attempt if payload else "") for group, payload in groups]
        try:
            with translated_errors():
                written = await call_script(
                    self._redis, "restore_groups", attempt.keys.all(), values, records, payloads=payloads
                )
        except LeaseExpiredError:  # no index names them
            with translated_errors():
                await self._redis.remove_payloads(payloads)
            raise
        return int(written)

    async def finish_restore(self, attempt: RestoreAttempt, kept: KeptTable) -> None:
        """Make the table visible, with a policy clock where its run is new."""
        values = {
            **self._shared(attempt.keys),
            "attempt": attempt.attempt,
            "fill": kept.table.config.fill,
            "snapshot_version": kept.policy.version,
            "paced_from_version": kept.paced_from_version,
        }
        run, label = RunKeys(attempt.run), kept.policy.label
        with translated_errors():
            await self._redis.sadd(RUNS, attempt.run)  # as at create_table, a name without a table does no harm
            await self._redis.sadd(run.tables, attempt.table)
            await call_script(self._redis, "finish_restore", attempt.keys.all(), values, _finish_records(kept))
            if label and await self._redis.hget(run.policy, "label") == label.encode():
                await self._redis.hsetnx(run.labels, label, str(kept.policy.version))
            await self._redis.srem(RESTORES, attempt.keys.topic)

    async def abandon_restore(self, run: str, table: str, attempt: str = "") -> bool:
        """Undo an attempt, or whichever has no time left; return False if another has."""
        keys = TableKeys(run, table)
        with translated_errors():
            free = await call_script(
                self._redis, "abandon_restore", keys.all(), {**self._shared(keys), "attempt": attempt}
            )
            if free:
                await self._redis.srem(RESTORES, keys.topic)
        return bool(free)

    async def unfinished_restores(self) -> list[tuple[str, str]]:
        """Return (run, table) of the restores that are under way or were interrupted."""
        with translated_errors():
            topics = sorted(text(topic) for topic in await self._redis.smembers(RESTORES))
        return [(run, table) for run, _, table in (topic.partition("/") for topic in topics)]


def _kept_group(reply: Sequence[Any]) -> KeptGroup:
    group_id = reply[0].decode()
    priority, kl, ess = (float(value) if value else None for value in reply[13:16])
    return KeptGroup(
        group_id=group_id,
        place=GroupState(reply[1].decode()),
        header=reply[2],
        payload_ref=reply[3].decode(),
        payload_bytes=reply[4],
        sequence=reply[5],
        effective=bool(reply[6]),
        policy_version_min=reply[7],
        policy_version_max=reply[8],
        prompt_id=reply[9].decode(),
        task=reply[10].decode(),
        priority=float(reply[11]),
        inserted_ms=reply[12],
        feedback=GroupFeedback(group_id=group_id, priority=priority, kl=kl, ess=ess),
        times_sampled=reply[16],
        in_leases=reply[17],
        redeliveries=reply[18],
        reward_mean=float(reply[19]) if reply[19] else None,
    )


def _restore_record(group: KeptGroup, payload_ref: str) -> tuple[Value, ...]:
    """Return the group as it is once the leases it was in have ended unused."""
    was_leased = group.place is GroupState.LEASED
    feedback = (group.feedback.priority, group.feedback.kl, group.feedback.ess)
    return (
        group.group_id,
        GroupState.FRESH if was_leased else group.place,
        group.header,
        payload_ref,
        group.payload_bytes,
        group.sequence,
        int(group.effective),
        group.policy_version_min,
        group.policy_version_max,
        group.prompt_id,
        group.task,
        group.priority,
        group.inserted_ms,
        *("" if value is None else repr(value) for value in feedback),
        group.times_sampled - group.in_leases,
        group.redeliveries + was_leased,
        "" if group.reward_mean is None else group.reward_mean,
    )


def _finish_records(kept: KeptTable) -> Iterable[tuple[str, str, Value]]:
    yield from (("counters", name, value) for name, value in kept.table.counters.items())
    yield from (("tasks", name, value) for name, value in kept.table.task_counters.items())
    yield from (
        ("policy", name, getattr(kept.policy, name))
        for name in ("version", "weights_uri", "weights_sha256", "published_at_ms", "label")
    )
    yield "state", "sequence", kept.sequence
    yield "state", "sampled", kept.sampled
    yield "state", "last_insert_ms", kept.table.last_insert_ms
    yield "state", "paced_from_inserted", kept.paced_from_inserted
