"""Tables, groups, leases and policy clocks in Redis: each operation is one atomic script."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from secrets import token_hex
from typing import Any, cast

from groupreplay.errors import (
    DurabilityNotReachedError,
    GroupReplayError,
    PayloadLostError,
    StoreUnavailableError,
    TableExistsError,
    UnknownRunError,
    error_from_reason,
)
from groupreplay.groups import now_ms
from groupreplay.server_info import RedisServer
from groupreplay.table_config import Durability, TableConfig
from groupreplay.types import GroupFeedback, GroupSource, GroupState, InsertOutcome, InsertResult, Table
from groupreplay_server.store.atropos_store import AtroposStore
from groupreplay_server.store.backend import Backend
from groupreplay_server.store.connection import text, translated_errors
from groupreplay_server.store.feedback_calls import call_with_feedback, with_log_ratios
from groupreplay_server.store.fields import (
    changed_fields,
    config_from_fields,
    config_to_fields,
    pairs,
    table_from_reply,
    vitals_from_reply,
)
from groupreplay_server.store.history_store import HistoryStore
from groupreplay_server.store.keeping_store import KeepingStore, KeptGroup
from groupreplay_server.store.keys import RUNS, RunKeys, TableKeys
from groupreplay_server.store.listing_store import ListingStore
from groupreplay_server.store.measure_store import MeasureStore
from groupreplay_server.store.payload_cache import PayloadCache
from groupreplay_server.store.piece_store import PieceStore
from groupreplay_server.store.policy_store import PolicyStore
from groupreplay_server.store.records import (
    BatchNotReady,
    IncomingGroup,
    KeptLogRatios,
    LeasedBatch,
    LeasedGroup,
    LoggedStep,
    Payload,
    ReadGroup,
    TableVitals,
)
from groupreplay_server.store.redis_facts import read_redis_servers
from groupreplay_server.store.scripts import call_script

_GARBAGE_PAGE = 256


def random_seed() -> str:
    """Return 32 hexadecimal digits that nobody can foresee."""
    return token_hex(16)


class RedisStore:
    """All that is kept, by use case. Redis errors come out as GroupReplayError."""

    def __init__(
        self,
        redis: Backend,
        clock: Callable[[], int] = now_ms,
        new_seed: Callable[[], str] = random_seed,
        cache: PayloadCache | None = None,
    ) -> None:
        """Use this Redis, which the caller opens and closes.

        clock returns Unix milliseconds; new_seed returns the 32 hexadecimal digits that a call draws with.
        """
        self._redis = redis
        self._cache = cache or PayloadCache()
        self._now_ms = clock
        self._new_seed = new_seed
        self.policies = PolicyStore(redis, clock)
        self.keeping = KeepingStore(redis, self._shared)
        self.listing = ListingStore(redis, self._shared)
        self.history = HistoryStore(redis, self._shared)
        self.measures = MeasureStore(redis, self._shared)
        self.pieces = PieceStore(redis, clock, new_seed)
        self.atropos = AtroposStore(redis)

    async def ping(self) -> None:
        """Raise StoreUnavailableError unless Redis answers."""
        with translated_errors():
            await self._redis.ping()

    async def redis_servers(self) -> tuple[RedisServer, ...]:
        """Return what every Redis server that we write to says of itself."""
        return await read_redis_servers(self._redis)

    # Tables

    async def create_table(self, run: str, table: str, config: TableConfig) -> bool:
        """Make a table, and its run's policy clock; return False if it was there with the same configuration."""
        keys = TableKeys(run, table)
        with translated_errors():
            await self._redis.sadd(RUNS, run)  # in a slot of its own
            await self._redis.sadd(RunKeys(run).tables, table)
            created, found = await call_script(
                self._redis, "create_table", keys.all(), self._shared(keys), config_to_fields(config).items()
            )
        existing = config_from_fields(pairs(found))
        if existing != config:
            differing = ", ".join(
                f"{field.name} is {getattr(existing, field.name)!s}, not {getattr(config, field.name)!s}"
                for field in fields(TableConfig)
                if getattr(existing, field.name) != getattr(config, field.name)
            )
            raise TableExistsError(
                f"table {keys.topic} exists with another configuration: {differing}; take another name or its values"
            )
        return bool(created)

    async def describe_table(self, run: str, table: str) -> Table:
        """Return the table's state at one moment."""
        keys = TableKeys(run, table)
        with translated_errors():
            reply = await call_script(self._redis, "describe_table", keys.all(), self._shared(keys))
        return table_from_reply(run, table, reply)

    async def update_table(self, run: str, table: str, config: TableConfig) -> None:
        """Change the limits of a table; what must not change is the caller's to check."""
        keys = TableKeys(run, table)
        with translated_errors():
            await call_script(self._redis, "update_table", keys.all(), self._shared(keys), changed_fields(config))

    async def reset_table(self, run: str, table: str) -> int:
        """Remove every group of a table; return how many."""
        keys = TableKeys(run, table)
        with translated_errors():
            return int(await call_script(self._redis, "reset_table", keys.all(), self._shared(keys)))

    async def list_tables(self, run: str = "") -> list[tuple[str, str]]:
        """Return (run, table) of every table, or of one run's."""
        with translated_errors():
            runs = [run] if run else sorted(text(name) for name in await self._redis.smembers(RUNS))
            found = []
            for name in runs:
                tables = sorted(text(name) for name in await self._redis.smembers(RunKeys(name).tables))
                found += [(name, table) for table in tables]
        if run and not found:
            raise UnknownRunError(f"there is no run {run}; creating its first table makes it")
        return found

    # Groups

    async def insert_groups(
        self, run: str, table: str, groups: Sequence[IncomingGroup], durability: Durability = Durability.MEMORY
    ) -> list[InsertResult]:
        """Store groups as fresh, in order; each is inserted, found to be a duplicate, or refused with its reason.

        Raises:
            DurabilityNotReachedError: they may be stored; the same call finds duplicates, and waits for them.
        """
        keys = TableKeys(run, table)
        refs = [token_hex(8) if group.payload is not None else "" for group in groups]
        payload_keys = [keys.payload(f"{group.group_id}/{ref}") for group, ref in zip(groups, refs, strict=True)]
        try:
            with translated_errors():
                records = [_insert_record(group, ref) for group, ref in zip(groups, refs, strict=True)]
                replies = await call_script(
                    self._redis,
                    "insert_groups",
                    keys.all(),
                    self._shared(keys),
                    records,
                    payloads={
                        key: group.payload
                        for key, group in zip(payload_keys, groups, strict=True)
                        if group.payload is not None
                    },
                    durability=durability,
                )
        except GroupReplayError as error:
            if isinstance(error, DurabilityNotReachedError):  # its script has run, and said what is not needed
                await self.collect_garbage(run, table)
            elif not isinstance(error, StoreUnavailableError):  # then the index may name them
                await self._unlink(key for key, ref in zip(payload_keys, refs, strict=True) if ref)
            raise
        results = [_insert_result(group, reply.decode()) for group, reply in zip(groups, replies, strict=True)]
        sent = {
            key: (group.payload, result.outcome)
            for key, group, result in zip(payload_keys, groups, results, strict=True)
            if group.payload is not None
        }
        inserted = {key: payload for key, (payload, outcome) in sent.items() if outcome is InsertOutcome.INSERTED}
        self._cache.put(inserted)
        if len(inserted) < len(sent):
            await self.collect_garbage(run, table)
        return results

    async def locate_groups(self, run: str, table: str, group_ids: Sequence[str]) -> list[GroupState]:
        """Say where each group is."""
        keys = TableKeys(run, table)
        with translated_errors():
            states = await call_script(
                self._redis, "locate_groups", keys.all(), self._shared(keys), [(group_id,) for group_id in group_ids]
            )
        return [GroupState(state.decode()) for state in states]

    async def delete_groups(self, run: str, table: str, group_ids: Sequence[str]) -> int:
        """Remove groups that are fresh or in replay; return how many were."""
        keys = TableKeys(run, table)
        records = [(group_id,) for group_id in group_ids]
        with translated_errors():
            return sum(await call_script(self._redis, "delete_groups", keys.all(), self._shared(keys), records))

    async def read_groups(self, run: str, table: str, group_ids: Sequence[str]) -> list[ReadGroup]:
        """Return the groups that the table holds, without taking them."""
        keys = TableKeys(run, table)
        records = [(group_id,) for group_id in group_ids]
        with translated_errors():
            replies = await call_script(self._redis, "read_groups", keys.all(), self._shared(keys), records)
        return [
            ReadGroup(group_id, reply[1], reply[2].decode(), reply[3], reply[4], _kept_log_ratios(reply[5:]))
            for group_id, reply in zip(group_ids, replies, strict=True)
            if len(reply) > 1
        ]

    async def update_priorities(self, run: str, table: str, feedback: Sequence[GroupFeedback]) -> list[str]:
        """Take note of what callers found out about groups; return the ids that the table does not hold."""
        keys = TableKeys(run, table)
        found = await call_with_feedback(self._redis, "update_priorities", keys, self._shared(keys), feedback)
        return [item.group_id for item, known in zip(feedback, found, strict=True) if not known]

    async def read_payloads(
        self, run: str, table: str, groups: Sequence[LeasedGroup | ReadGroup | KeptGroup]
    ) -> list[Payload]:
        """Return the payloads of groups, empty where none is kept.

        Raises:
            PayloadLostError: the store has no payload that the index names.
        """
        keys = TableKeys(run, table)
        kept = {g.group_id: keys.payload(f"{g.group_id}/{g.payload_ref}") for g in groups if g.payload_ref}
        found = {group_id: self._cache.get(key) for group_id, key in kept.items()}
        if absent := [group_id for group_id, payload in found.items() if payload is None]:
            with translated_errors():
                found |= zip(absent, await self._redis.read_payloads([kept[it] for it in absent]), strict=True)
            if not isinstance(groups[0], KeptGroup):  # a snapshot reads all there is, once
                self._cache.put({kept[it]: payload for it in absent if (payload := found[it]) is not None})
        lost = [group_id for group_id, payload in found.items() if payload is None]
        if lost:
            raise PayloadLostError(
                f"table {keys.topic}: the payload of {len(lost)} groups is gone from Redis, the first is {lost[0]}; "
                "Redis must run with maxmemory-policy noeviction, and nobody else may delete its keys"
            )
        return [cast(Payload, found.get(group.group_id, b"")) for group in groups]

    async def with_log_ratios(self, run: str, table: str, group: ReadGroup) -> ReadGroup:
        """Return a group with the log ratios that were fed back."""
        return await with_log_ratios(self._redis, TableKeys(run, table), group)

    async def read_headers(self, run: str, table: str, group_ids: Sequence[str]) -> list[bytes | None]:
        """Return the headers of groups, None where there is none, and change nothing: no lease ends by it."""
        if not group_ids:
            return []
        with translated_errors():
            found = await self._redis.hmget(TableKeys(run, table).key("headers"), list(group_ids))
        return cast(list[bytes | None], found)

    # Batches and leases

    async def take_batch(
        self,
        run: str,
        table: str,
        *,
        lease_id: str,
        batch_size: int,
        lease_ms: int,
        holder: str,
        wait_ms: int,
        call_id: str,
    ) -> LeasedBatch | BatchNotReady:
        """Lease the next batch, or say what is missing and let admission know that this call waits for wait_ms."""
        keys = TableKeys(run, table)
        shared = self._shared(keys)
        values = {
            **shared,
            "lease_id": lease_id,
            "batch_size": batch_size,
            "deadline_ms": shared["now_ms"] + lease_ms,
            "holder": holder,
            "wait_until_ms": shared["now_ms"] + wait_ms,
            "call_id": call_id,
        }
        with translated_errors():
            return _batch(lease_id, await call_script(self._redis, "take_batch", keys.all(), values))

    async def draw_sample(
        self, run: str, table: str, *, lease_id: str, batch_size: int, lease_ms: int, holder: str
    ) -> LeasedBatch | BatchNotReady:
        """Lease a draw of replay groups, or say how many are there."""
        keys = TableKeys(run, table)
        shared = self._shared(keys)
        values = {
            **shared,
            "lease_id": lease_id,
            "batch_size": batch_size,
            "deadline_ms": shared["now_ms"] + lease_ms,
            "holder": holder,
        }
        with translated_errors():
            return _batch(lease_id, await call_script(self._redis, "draw_sample", keys.all(), values))

    async def stop_waiting(self, run: str, table: str, call_id: str) -> None:
        """Forget that a NextBatch call waits."""
        with translated_errors():
            await self._redis.hdel(TableKeys(run, table).key("waiting"), call_id)

    async def commit_lease(
        self,
        run: str,
        table: str,
        *,
        lease_id: str,
        step: int,
        feedback: Sequence[GroupFeedback] = (),
        durability: Durability = Durability.MEMORY,
    ) -> bool:
        """End a lease after training; return True if this very commit was made before.

        Raises:
            DurabilityNotReachedError: it is committed; the same call waits for that to become durable.
        """
        keys = TableKeys(run, table)
        values = {**self._shared(keys), "lease_id": lease_id, "step": step}
        return bool(
            await call_with_feedback(self._redis, "commit_lease", keys, values, feedback, durability=durability)
        )

    async def read_lease(self, run: str, table: str, *, lease_id: str) -> LeasedBatch:
        """Return the batch of a live lease."""
        keys = TableKeys(run, table)
        with translated_errors():
            reply = await call_script(
                self._redis, "read_lease", keys.all(), {**self._shared(keys), "lease_id": lease_id}
            )
        return cast(LeasedBatch, _batch(lease_id, reply))

    async def release_lease(self, run: str, table: str, *, lease_id: str) -> int:
        """Give the groups of a lease back; return how many fresh ones."""
        keys = TableKeys(run, table)
        with translated_errors():
            return int(
                await call_script(
                    self._redis, "release_lease", keys.all(), {**self._shared(keys), "lease_id": lease_id}
                )
            )

    async def extend_lease(self, run: str, table: str, *, lease_id: str, lease_ms: int) -> int:
        """Move the deadline of a live lease; return it."""
        keys = TableKeys(run, table)
        values = {**self._shared(keys), "lease_id": lease_id, "deadline_ms": self._now_ms() + lease_ms}
        with translated_errors():
            return int(await call_script(self._redis, "extend_lease", keys.all(), values))

    async def request_admission(
        self, run: str, table: str, *, producer_id: str, max_groups: int, admission_ms: int
    ) -> tuple[int, int]:
        """Grant a producer groups; return how many, and when a lease or another grant ends (0 = none)."""
        keys = TableKeys(run, table)
        values = {
            **self._shared(keys),
            "producer_id": producer_id,
            "max_groups": max_groups,
            "until_ms": self._now_ms() + admission_ms,
        }
        with translated_errors():
            granted, next_end_ms = await call_script(self._redis, "request_admission", keys.all(), values)
        return granted, next_end_ms

    # What a table can tell

    async def read_lineage(self, run: str, table: str, step: int) -> LoggedStep:
        """Return what a committed training step was given."""
        keys = TableKeys(run, table)
        with translated_errors():
            reply = await call_script(self._redis, "read_lineage", keys.all(), {**self._shared(keys), "step": step})
        batch, lease_id, holder, seed, committed_ms, consumed, missing = reply
        return LoggedStep(
            step=step,
            batch=cast(LeasedBatch, _batch(lease_id.decode(), batch)),
            holder=holder.decode(),
            seed=seed.decode(),
            committed_at_ms=committed_ms,
            consumed=tuple(group_id.decode() for group_id in consumed),
            missing=missing,
        )

    async def note_beat(self, run: str, table: str, *, producer_id: str, interval_s: float, status: str) -> None:
        """Take note that a producer is there."""
        keys = TableKeys(run, table)
        values = {**self._shared(keys), "producer_id": producer_id, "interval_s": interval_s, "status": status}
        with translated_errors():
            await call_script(self._redis, "note_beat", keys.all(), values)

    async def read_vitals(self, run: str, table: str, batch_size: int) -> TableVitals:
        """Return what decides whether a batch is ready, and who is there."""
        keys = TableKeys(run, table)
        with translated_errors():
            reply = await call_script(
                self._redis, "diagnose_table", keys.all(), {**self._shared(keys), "batch_size": batch_size}
            )
        return vitals_from_reply(reply)

    # Payloads that no group needs

    async def collect_garbage(self, run: str, table: str) -> int:
        """Remove the payloads of groups that left, unless a snapshot is being read; return how many."""
        keys = TableKeys(run, table)
        removed = 0
        with translated_errors():
            while members := await call_script(
                self._redis, "list_garbage", keys.all(), {**self._shared(keys), "at_most": _GARBAGE_PAGE}
            ):
                names = [keys.payload(text(member)) for member in members]
                self._cache.drop(names)
                await self._redis.remove_payloads(names)
                await self._redis.zrem(keys.key("garbage"), *members)
                removed += len(members)
        return removed

    def _shared(self, keys: TableKeys) -> dict[str, Any]:
        return {"now_ms": self._now_ms(), "topic": keys.topic, "seed": self._new_seed()}

    async def _unlink(self, payload_keys: Iterable[str]) -> None:
        with translated_errors():
            await self._redis.remove_payloads(payload_keys)


def _insert_record(group: IncomingGroup, payload_ref: str) -> tuple[str | bytes | int | float, ...]:
    return (
        group.group_id,
        group.header,
        group.policy_version_min,
        group.policy_version_max,
        group.reward_std,
        len(group.payload) if group.payload is not None else 0,
        payload_ref,
        group.prompt_id,
        group.producer_id,
        group.task,
        group.priority,
        group.reward_mean,
    )


def _kept_log_ratios(reply: Sequence[Any]) -> KeptLogRatios | None:
    return KeptLogRatios(reply[0].decode(), *reply[1:]) if reply else None


def _insert_result(group: IncomingGroup, reply: str) -> InsertResult:
    if reply in {"INSERTED", "DUPLICATE"}:
        return InsertResult(group_id=group.group_id, outcome=InsertOutcome(reply.lower()))
    reason, _, message = reply.partition(" ")
    return InsertResult(
        group_id=group.group_id, outcome=InsertOutcome.REFUSED, error=error_from_reason(reason, message)
    )


def _batch(lease_id: str, reply: Sequence[Any]) -> LeasedBatch | BatchNotReady:
    if reply[0] == 0:
        return BatchNotReady(*reply[1:])
    deadline_ms, policy_version, slots, fresh, fresh_effective, groups = reply[1:]
    return LeasedBatch(
        lease_id=lease_id,
        deadline_ms=deadline_ms,
        policy_version=policy_version,
        batch_size=slots,
        fresh=fresh,
        fresh_effective=fresh_effective,
        groups=tuple(_leased_group(group) for group in groups),
    )


def _leased_group(reply: Sequence[Any]) -> LeasedGroup:
    header, group_id, payload_ref, is_replay, staleness, times_sampled, redeliveries, probability, importance = reply
    return LeasedGroup(
        group_id=group_id.decode(),
        header=header,
        payload_ref=payload_ref.decode(),
        source=GroupSource.REPLAY if is_replay else GroupSource.FRESH,
        staleness=staleness,
        times_sampled=times_sampled,
        redeliveries=redeliveries,
        probability=float(probability),
        importance_weight=float(importance),
    )
