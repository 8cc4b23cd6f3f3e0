"""Dataclasses <-> the flat fields that the scripts read and write."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from groupreplay.table_config import (
    Durability,
    Fill,
    PrioritySource,
    RateLimit,
    Remover,
    Sampler,
    StalenessRule,
    TableConfig,
)
from groupreplay.types import GroupFeedback, Lease, Policy, Producer, Table
from groupreplay_server.store.records import LogRatiosToKeep, TableVitals

_RATE_FIELDS = tuple(field.name for field in fields(RateLimit))
_READERS: dict[str, Any] = {
    "fill": Fill,
    "sampler": Sampler,
    "remover": Remover,
    "priority": PrioritySource,
    "staleness_rule": StalenessRule,
    "durability": Durability,
    **dict.fromkeys(("allow_repeated_prompts", "keep_ineffective_payload", "replay_ineffective"), "1".__eq__),
    **dict.fromkeys(
        ("min_reward_std", "alpha", "recency_decay", "use_decay", "kl_decay", "ess_alpha", "importance_beta", "max_kl",
         "ttl_s", "samples_per_insert", "min_diff", "max_diff"),
        float,
    ),
}  # fmt: skip
"""Everything else is an int."""


def pairs(flat: Sequence[bytes]) -> dict[str, str]:
    """Return the fields of a hash as a script returns them."""
    texts = [value.decode() for value in flat]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def counts(flat: Sequence[bytes]) -> dict[str, int]:
    """Return a hash of counts, sorted by name."""
    return {name: int(value) for name, value in sorted(pairs(flat).items())}


def config_to_fields(config: TableConfig) -> dict[str, str]:
    """Return the fields of a configuration; those that are unlimited are left out."""
    values = {field.name: getattr(config, field.name) for field in fields(TableConfig) if field.name != "rate_limit"}
    if config.rate_limit is not None:
        values |= {name: getattr(config.rate_limit, name) for name in _RATE_FIELDS}
    return {
        name: str(int(value) if isinstance(value, bool) else value)
        for name, value in values.items()
        if value is not None
    }


def changed_fields(config: TableConfig) -> list[tuple[str, str]]:
    """Return every field of a configuration, empty where it is unlimited."""
    known = config_to_fields(config)
    names = [field.name for field in fields(TableConfig) if field.name != "rate_limit"]
    return [(name, known.get(name, "")) for name in (*names, *_RATE_FIELDS)]


def config_from_fields(found: dict[str, str]) -> TableConfig:
    """Return the configuration of a table."""
    values = {name: _READERS.get(name, int)(text) for name, text in found.items()}
    rate = {name: values.pop(name) for name in _RATE_FIELDS if name in values}
    return TableConfig(**values, rate_limit=RateLimit(**rate) if rate else None)


def table_from_reply(run: str, table: str, reply: Sequence[Any]) -> Table:
    """Return a table's state as describe() of the scripts returns it."""
    config, version, fresh, replay, leased, leases, state_pairs, counters, missing, tasks, oldest, newest = reply
    state = pairs(state_pairs)
    return Table(
        run=run,
        table=table,
        config=config_from_fields(pairs(config)),
        fresh=fresh,
        fresh_effective=int(state.get("fresh_effective", 0)),
        replay=replay,
        leased=leased,
        leases=leases,
        payload_bytes=int(state.get("payload_bytes", 0)),
        policy_version=version,
        last_insert_ms=int(state.get("last_insert_ms", 0)),
        missing=missing,
        counters=counts(counters),
        task_counters=counts(tasks),
        replay_version_min=None if oldest == b"" else oldest,
        replay_version_max=None if newest == b"" else newest,
    )


def policy_from_fields(run: str, found: dict[str, str]) -> Policy:
    """Return the policy clock of a run."""
    return Policy(
        run=run,
        version=int(found["version"]),
        weights_uri=found.get("weights_uri", ""),
        weights_sha256=found.get("weights_sha256", ""),
        published_at_ms=int(found.get("published_at_ms", 0)),
        label=found.get("label", ""),
        rewinds=int(found.get("rewinds", 0)),
    )


def feedback_records(
    feedback: Iterable[GroupFeedback], ratios: Mapping[int, LogRatiosToKeep]
) -> list[tuple[str | int, ...]]:
    """Return what callers found out about groups, as the scripts take it; log ratios by place in the feedback."""
    return [
        (
            item.group_id,
            *("" if value is None else repr(value) for value in (item.priority, item.kl, item.ess)),
            *((kept.ref, len(kept.data)) if (kept := ratios.get(index)) else ("", 0)),
        )
        for index, item in enumerate(feedback)
    ]


def producers_from_reply(reply: Sequence[Any]) -> tuple[Producer, ...]:
    """Return the producers of a table as known_producers() of the scripts returns them."""
    return tuple(
        Producer(
            producer_id=name.decode(),
            first_seen_ms=first,
            last_seen_ms=last,
            last_insert_ms=insert,
            inserted=inserted,
            effective=effective_groups,
            refused=refused,
            interval_s=float(interval),
            status=status.decode(),
        )
        for name, first, last, insert, inserted, effective_groups, refused, interval, status in reply
    )


def vitals_from_reply(reply: Sequence[Any]) -> TableVitals:
    """Return what diagnose_table.lua says."""
    takeable, effective, stale, passed_over, drawable, leases, producers, admissions, waiting = reply
    return TableVitals(
        takeable=takeable,
        effective=effective,
        stale=stale,
        passed_over=passed_over,
        drawable=drawable,
        leases=tuple(
            Lease(lease_id=name.decode(), holder=holder.decode(), deadline_ms=deadline, groups=groups, fresh=fresh)
            for name, holder, deadline, groups, fresh in leases
        ),
        producers=producers_from_reply(producers),
        admissions=tuple((name.decode(), groups, deadline) for name, groups, deadline in admissions),
        waiting=tuple((wanted, until) for wanted, until in waiting),
    )
