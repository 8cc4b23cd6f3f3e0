"""Protocol messages <-> the dataclasses of tables, policies and quotas; convert.py has groups and batches."""

from typing import Any, Literal, cast

from groupreplay.convert import meaning_of
from groupreplay.errors import InvalidRequestError
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
from groupreplay.types import Policy, Quota, Table
from groupreplay.v1 import policy_pb2, replay_service_pb2, table_pb2

ENUMS: dict[str, tuple[Any, Any, str]] = {
    "fill": (Fill, table_pb2.Fill, "FILL_"),
    "sampler": (Sampler, table_pb2.Sampler, "SAMPLER_"),
    "remover": (Remover, table_pb2.Remover, "REMOVER_"),
    "priority": (PrioritySource, table_pb2.PrioritySource, "PRIORITY_"),
    "staleness_rule": (StalenessRule, table_pb2.StalenessRule, "STALENESS_"),
    "durability": (Durability, table_pb2.Durability, "DURABILITY_"),
}
"""Field of TableConfig -> its enum, the protocol's, and the prefix of the protocol's names."""
NUMBERS = {
    name: {member: numbers.Value(prefix + member.name) for member in members}
    for name, (members, numbers, prefix) in ENUMS.items()
}
_MEMBERS = {name: {number: member for member, number in numbers.items()} for name, numbers in NUMBERS.items()}
_ZERO_IS_DEFAULT = ("replay_capacity", "fresh_capacity", "max_group_bytes")
_OPTIONAL = (
    "max_staleness", "max_times_sampled", "min_reward_std", "ahead_groups", "alpha", "recency_decay", "use_decay",
    "kl_decay", "ess_alpha", "importance_beta", "max_kl", "capacity_bytes", "ttl_s", "groups_per_version",
    "lineage_steps",
)  # fmt: skip
_PLAIN = (
    "allow_repeated_prompts",
    "keep_ineffective_payload",
    "min_staleness",
    "replay_ineffective",
    "lineage_payload_steps",
)


def config_to_proto(config: TableConfig) -> table_pb2.TableConfig:
    """Return the message of a table's configuration."""
    message = table_pb2.TableConfig(
        **{name: getattr(config, name) for name in (*_ZERO_IS_DEFAULT, *_OPTIONAL, *_PLAIN)},
        **{name: numbers[getattr(config, name)] for name, numbers in NUMBERS.items()},
    )
    if config.rate_limit is not None:
        message.rate_limit.CopyFrom(
            table_pb2.RateLimit(
                samples_per_insert=config.rate_limit.samples_per_insert,
                min_size_to_sample=config.rate_limit.min_size_to_sample,
                min_diff=config.rate_limit.min_diff,
                max_diff=config.rate_limit.max_diff,
            )
        )
    return message


def config_from_proto(message: table_pb2.TableConfig) -> TableConfig:
    """Return a table's configuration; what the message leaves out takes its default.

    Raises:
        InvalidRequestError: a limit is out of its range.
    """
    fields: dict[str, Any] = {name: getattr(message, name) for name in _PLAIN}
    fields |= {name: getattr(message, name) for name in _ZERO_IS_DEFAULT if getattr(message, name)}
    fields |= {name: getattr(message, name) for name in _OPTIONAL if message.HasField(cast(Any, name))}
    for name, members in _MEMBERS.items():
        if getattr(message, name):
            fields[name] = meaning_of(members, getattr(message, name), name, InvalidRequestError)
    if message.HasField("rate_limit"):
        limit = message.rate_limit
        fields["rate_limit"] = RateLimit(
            samples_per_insert=limit.samples_per_insert,
            min_size_to_sample=limit.min_size_to_sample or 1,
            min_diff=limit.min_diff,
            max_diff=limit.max_diff,
        )
    return TableConfig(**fields)


_TABLE_FIELDS = (
    "run", "table", "fresh", "fresh_effective", "replay", "leased", "leases", "payload_bytes", "policy_version",
    "last_insert_ms", "missing",
)  # fmt: skip
_VERSION_FIELDS: tuple[Literal["replay_version_min", "replay_version_max"], ...] = (
    "replay_version_min",
    "replay_version_max",
)


def table_to_proto(table: Table) -> table_pb2.Table:
    """Return the message of a table's state."""
    return table_pb2.Table(
        config=config_to_proto(table.config),
        counters=table.counters,
        task_counters=table.task_counters,
        **{name: getattr(table, name) for name in (*_TABLE_FIELDS, *_VERSION_FIELDS)},
    )


def table_from_proto(message: table_pb2.Table) -> Table:
    """Return a table's state."""
    return Table(
        config=config_from_proto(message.config),
        counters=dict(message.counters),
        task_counters=dict(message.task_counters),
        **{name: getattr(message, name) for name in _TABLE_FIELDS},
        **{name: getattr(message, name) for name in _VERSION_FIELDS if message.HasField(name)},
    )


_POLICY_FIELDS = ("run", "version", "weights_uri", "weights_sha256", "published_at_ms", "label", "rewinds")


def policy_to_proto(policy: Policy) -> policy_pb2.Policy:
    """Return the message of a policy version."""
    return policy_pb2.Policy(**{name: getattr(policy, name) for name in _POLICY_FIELDS})


def policy_from_proto(message: policy_pb2.Policy) -> Policy:
    """Return a policy version."""
    return Policy(**{name: getattr(message, name) for name in _POLICY_FIELDS})


def quota_to_proto(quota: Quota) -> replay_service_pb2.Quota:
    """Return the message of a run's quota."""
    return replay_service_pb2.Quota(
        max_groups=quota.max_groups, max_bytes=quota.max_bytes, groups=quota.groups, bytes=quota.bytes
    )


def quota_from_proto(message: replay_service_pb2.Quota) -> Quota:
    """Return a run's quota."""
    return Quota(
        max_groups=message.max_groups if message.HasField("max_groups") else None,
        max_bytes=message.max_bytes if message.HasField("max_bytes") else None,
        groups=message.groups,
        bytes=message.bytes,
    )
