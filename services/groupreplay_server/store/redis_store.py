"""Tables, groups, leases and policy clocks in Redis: each operation is one atomic script."""

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import fields
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
from groupreplay.types import (
    Durability,
    Fill,
    GroupSource,
    GroupState,
    InsertOutcome,
    InsertResult,
    Policy,
    Refill,
    Table,
    TableConfig,
)
from groupreplay_server.store.backend import Backend
from groupreplay_server.store.connection import text, translated_errors
from groupreplay_server.store.keys import RUNS, RunKeys, TableKeys
from groupreplay_server.store.records import BatchNotReady, IncomingGroup, LeasedBatch, LeasedGroup
from groupreplay_server.store.scripts import call_script

_GARBAGE_PAGE = 256


class RedisStore:
    """All that is kept, by use case. Redis errors come out as GroupReplayError."""

    def __init__(self, redis: Backend) -> None:
        """Use this Redis, which the caller opens and closes."""
        self._redis = redis

    async def ping(self) -> None:
        """Raise StoreUnavailableError unless Redis answers."""
        with translated_errors():
            await self._redis.ping()

    # Tables

    async def create_table(self, run: str, table: str, config: TableConfig) -> bool:
        """Make a table, and its run's policy clock; return False if it was there with the same configuration."""
        keys = TableKeys(run, table)
        with translated_errors():
            await self._redis.sadd(RUNS, run)  # in a slot of its own
            await self._redis.sadd(RunKeys(run).tables, table)
            created, found = await call_script(
                self._redis, "create_table", keys.all(), _shared(keys), _config_to_fields(config)
            )
        existing = _config_from_fields(_pairs(found))
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
            reply = await call_script(self._redis, "describe_table", keys.all(), _shared(keys))
        config, version, fresh, replay, leased, leases, state_pairs, counters, missing = reply
        state = {name: int(value) for name, value in _pairs(state_pairs).items()}
        return Table(
            run=run,
            table=table,
            config=_config_from_fields(_pairs(config)),
            fresh=fresh,
            fresh_effective=state.get("fresh_effective", 0),
            replay=replay,
            leased=leased,
            leases=leases,
            payload_bytes=state.get("payload_bytes", 0),
            policy_version=version,
            last_insert_ms=state.get("last_insert_ms", 0),
            missing=missing,
            counters={name: int(value) for name, value in sorted(_pairs(counters).items())},
        )

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
        refs = [secrets.token_hex(8) if group.payload is not None else "" for group in groups]
        payload_keys = [keys.payload(f"{group.group_id}/{ref}") for group, ref in zip(groups, refs, strict=True)]
        try:
            with translated_errors():
                records = [_insert_record(group, ref) for group, ref in zip(groups, refs, strict=True)]
                replies = await call_script(
                    self._redis,
                    "insert_groups",
                    keys.all(),
                    _shared(keys),
                    records,
                    payloads={
                        key: group.payload
                        for key, group in zip(payload_keys, groups, strict=True)
                        if group.payload is not None
                    },
                    durability=durability,
                )
        except GroupReplayError as error:
            if not isinstance(error, StoreUnavailableError | DurabilityNotReachedError):  # then the index may name them
                await self._unlink(key for key, ref in zip(payload_keys, refs, strict=True) if ref)
            raise
        results = [_insert_result(group, reply.decode()) for group, reply in zip(groups, replies, strict=True)]
        await self._unlink(
            key
            for key, ref, result in zip(payload_keys, refs, results, strict=True)
            if ref and result.outcome is not InsertOutcome.INSERTED
        )
        return results

    async def locate_groups(self, run: str, table: str, group_ids: Sequence[str]) -> list[GroupState]:
        """Say where each group is."""
        keys = TableKeys(run, table)
        with translated_errors():
            states = await call_script(
                self._redis, "locate_groups", keys.all(), _shared(keys), [(group_id,) for group_id in group_ids]
            )
        return [GroupState(state.decode()) for state in states]

    async def read_payloads(self, run: str, table: str, groups: Sequence[LeasedGroup]) -> list[bytes]:
        """Return the payloads of leased groups.

        Raises:
            PayloadLostError: the store has no payload that the index names.
        """
        keys = TableKeys(run, table)
        names = [keys.payload(f"{group.group_id}/{group.payload_ref}") for group in groups]
        with translated_errors():
            payloads = await self._redis.read_payloads(names)
        lost = [group.group_id for group, payload in zip(groups, payloads, strict=True) if payload is None]
        if lost:
            raise PayloadLostError(
                f"table {keys.topic}: the payload of {len(lost)} groups is gone from Redis, the first is {lost[0]}; "
                "Redis must run with maxmemory-policy noeviction, and nobody else may delete its keys"
            )
        return cast(list[bytes], payloads)

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
        now = now_ms()
        with translated_errors():
            reply = await call_script(
                self._redis,
                "take_batch",
                keys.all(),
                {
                    "now_ms": now,
                    "topic": keys.topic,
                    "lease_id": lease_id,
                    "batch_size": batch_size,
                    "deadline_ms": now + lease_ms,
                    "holder": holder,
                    "wait_until_ms": now + wait_ms,
                    "call_id": call_id,
                },
            )
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

    async def stop_waiting(self, run: str, table: str, call_id: str) -> None:
        """Forget that a NextBatch call waits."""
        with translated_errors():
            await self._redis.hdel(TableKeys(run, table).key("waiting"), call_id)

    async def commit_lease(
        self, run: str, table: str, *, lease_id: str, step: int, durability: Durability = Durability.MEMORY
    ) -> bool:
        """End a lease after training; return True if this very commit was made before.

        Raises:
            DurabilityNotReachedError: it is committed; the same call waits for that to become durable.
        """
        keys = TableKeys(run, table)
        with translated_errors():
            repeated = await call_script(
                self._redis,
                "commit_lease",
                keys.all(),
                {**_shared(keys), "lease_id": lease_id, "step": step},
                durability=durability,
            )
        return bool(repeated)

    async def release_lease(self, run: str, table: str, *, lease_id: str) -> int:
        """Give the groups of a lease back; return how many fresh ones."""
        keys = TableKeys(run, table)
        with translated_errors():
            return int(
                await call_script(self._redis, "release_lease", keys.all(), {**_shared(keys), "lease_id": lease_id})
            )

    async def extend_lease(self, run: str, table: str, *, lease_id: str, lease_ms: int) -> int:
        """Move the deadline of a live lease; return it."""
        keys = TableKeys(run, table)
        values = {**_shared(keys), "lease_id": lease_id, "deadline_ms": now_ms() + lease_ms}
        with translated_errors():
            return int(await call_script(self._redis, "extend_lease", keys.all(), values))

    async def request_admission(
        self, run: str, table: str, *, producer_id: str, max_groups: int, admission_ms: int
    ) -> tuple[int, int]:
        """Grant a producer groups; return how many, and when a lease or another grant ends (0 = none)."""
        keys = TableKeys(run, table)
        values = {
            **_shared(keys),
            "producer_id": producer_id,
            "max_groups": max_groups,
            "until_ms": now_ms() + admission_ms,
        }
        with translated_errors():
            granted, next_end_ms = await call_script(self._redis, "request_admission", keys.all(), values)
        return granted, next_end_ms

    # Policy clocks

    async def advance_policy(self, policy: Policy) -> Policy:
        """Move a run's policy clock forward; return where it stands."""
        with translated_errors():
            reply = await call_script(
                self._redis,
                "advance_policy",
                [RunKeys(policy.run).policy],
                {
                    "now_ms": now_ms(),
                    "run": policy.run,
                    "version": policy.version,
                    "weights_uri": policy.weights_uri,
                    "weights_sha256": policy.weights_sha256,
                },
            )
        return _policy_from_fields(policy.run, _pairs(reply))

    async def get_policy(self, run: str) -> Policy:
        """Return where a run's policy clock stands."""
        with translated_errors():
            found = await self._redis.hgetall(RunKeys(run).policy)
        if not found:
            raise UnknownRunError(f"there is no run {run}; creating its first table makes it")
        return _policy_from_fields(run, {text(name): text(value) for name, value in found.items()})

    # Payloads that no group needs

    async def collect_garbage(self, run: str, table: str) -> int:
        """Remove the payloads of groups that left; return how many."""
        keys = TableKeys(run, table)
        removed = 0
        with translated_errors():
            while members := await self._redis.zrange(keys.key("garbage"), 0, _GARBAGE_PAGE - 1):
                await self._redis.remove_payloads(keys.payload(text(member)) for member in members)
                await self._redis.zrem(keys.key("garbage"), *members)
                removed += len(members)
        return removed

    async def _unlink(self, payload_keys: Iterable[str]) -> None:
        with translated_errors():
            await self._redis.remove_payloads(payload_keys)


def _shared(keys: TableKeys) -> dict[str, str | int]:
    return {"now_ms": now_ms(), "topic": keys.topic}


def _pairs(flat: Sequence[bytes]) -> dict[str, str]:
    texts = [value.decode() for value in flat]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def _config_to_fields(config: TableConfig) -> list[tuple[str, str]]:
    values = ((field.name, getattr(config, field.name)) for field in fields(TableConfig))
    return [
        (name, str(int(value) if isinstance(value, bool) else value)) for name, value in values if value is not None
    ]


def _config_from_fields(found: dict[str, str]) -> TableConfig:
    readers: dict[str, Any] = {
        "fill": Fill,
        "refill": Refill,
        "min_reward_std": float,
        "allow_repeated_prompts": lambda text: text == "1",
        "keep_ineffective_payload": lambda text: text == "1",
    }
    return TableConfig(**{name: readers.get(name, int)(text) for name, text in found.items()})


def _policy_from_fields(run: str, found: dict[str, str]) -> Policy:
    return Policy(
        run=run,
        version=int(found["version"]),
        weights_uri=found.get("weights_uri", ""),
        weights_sha256=found.get("weights_sha256", ""),
        published_at_ms=int(found.get("published_at_ms", 0)),
    )


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
    )


def _insert_result(group: IncomingGroup, reply: str) -> InsertResult:
    if reply in {"INSERTED", "DUPLICATE"}:
        return InsertResult(group_id=group.group_id, outcome=InsertOutcome(reply.lower()))
    reason, _, message = reply.partition(" ")
    return InsertResult(
        group_id=group.group_id, outcome=InsertOutcome.REFUSED, error=error_from_reason(reason, message)
    )


def _leased_group(reply: Sequence[Any]) -> LeasedGroup:
    header, group_id, payload_ref, is_replay, staleness, times_sampled, redeliveries = reply
    return LeasedGroup(
        group_id=group_id.decode(),
        header=header,
        payload_ref=payload_ref.decode(),
        source=GroupSource.REPLAY if is_replay else GroupSource.FRESH,
        staleness=staleness,
        times_sampled=times_sampled,
        redeliveries=redeliveries,
    )
