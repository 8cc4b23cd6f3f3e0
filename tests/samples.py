"""Rollout groups to insert: small unless a test asks for tokens, effective unless it asks for equal rewards."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from groupreplay import (
    Batch,
    Durability,
    Fill,
    PrioritySource,
    RateLimit,
    Remover,
    RolloutGroup,
    Sampler,
    StalenessRule,
    TableConfig,
)


def table_configs() -> st.SearchStrategy[TableConfig]:
    """Return all table configurations that are allowed, edges included."""
    counts, shares, numbers = st.integers(1, 2**40 - 1), st.floats(1e-6, 1), st.floats(0, 1e300)
    rates = st.builds(RateLimit.of, st.floats(0.01, 1e6), min_size_to_sample=counts, error_buffer=st.floats(1e7, 1e9))
    return st.builds(
        TableConfig,
        fill=st.just(Fill.SAMPLE),
        sampler=st.sampled_from(Sampler),
        replay_capacity=counts,
        fresh_capacity=counts,
        max_staleness=st.integers(0, 2**40 - 1),
        max_times_sampled=st.none() | counts,
        min_reward_std=numbers,
        max_group_bytes=counts,
        allow_repeated_prompts=st.booleans(),
        keep_ineffective_payload=st.booleans(),
        ahead_groups=st.none() | st.integers(0, 2**40 - 1),
        remover=st.sampled_from(Remover),
        priority=st.sampled_from(PrioritySource),
        alpha=numbers,
        recency_decay=shares,
        use_decay=shares,
        kl_decay=numbers,
        ess_alpha=numbers,
        importance_beta=st.floats(0, 1),
        max_kl=st.none() | numbers,
        staleness_rule=st.sampled_from(StalenessRule),
        capacity_bytes=st.none() | counts,
        ttl_s=st.none() | st.floats(0.001, 1e9),
        rate_limit=st.none() | rates,
        groups_per_version=st.none() | counts,
        replay_ineffective=st.booleans(),
        durability=st.sampled_from(Durability),
        lineage_steps=st.just(2**40 - 1),
        lineage_payload_steps=st.integers(0, 2**40 - 1),
    ) | st.builds(TableConfig, fill=st.sampled_from(Fill), max_staleness=st.none() | counts)


def make_group(
    group_id: str,
    *,
    prompt_id: str | None = None,
    rewards: Sequence[float] = (0.0, 1.0),
    version: int = 0,
    tokens: int = 3,
    **other: Any,
) -> RolloutGroup:
    """Return a group with `tokens` tokens in each response; its prompt is its own unless prompt_id names another."""
    rollouts = len(rewards)
    fields: dict[str, Any] = {
        "group_id": group_id,
        "prompt_id": prompt_id or f"prompt-of-{group_id}",
        "prompt_token_ids": np.array([1, 2], np.int32),
        "response_token_ids": np.arange(rollouts * tokens, dtype=np.int32),
        "response_lengths": np.full(rollouts, tokens, np.int32),
        "behaviour_logprobs": np.full(rollouts * tokens, -0.5, np.float32),
        "rewards": np.array(rewards, np.float32),
        "policy_version_min": version,
        "policy_version_max": version,
    }
    return RolloutGroup(**fields | other)


def effective(*group_ids: str, **other: Any) -> list[RolloutGroup]:
    """Return groups with reward variance."""
    return [make_group(group_id, **other) for group_id in group_ids]


def ineffective(*group_ids: str, **other: Any) -> list[RolloutGroup]:
    """Return groups whose rewards are all the same."""
    return [make_group(group_id, rewards=(1.0, 1.0), **other) for group_id in group_ids]


def ids(batch: Batch) -> list[str]:
    """Return the group ids of a batch, in its order."""
    return [delivered.group.group_id for delivered in batch.groups]


def same(one: RolloutGroup, other: RolloutGroup) -> None:
    """Assert that two groups hold the same values."""
    for name in RolloutGroup.__slots__:
        left, right = getattr(one, name), getattr(other, name)
        if name == "columns":
            assert left.keys() == right.keys()
            for column in left:
                np.testing.assert_array_equal(left[column], right[column], strict=True)
        elif isinstance(left, np.ndarray):
            np.testing.assert_array_equal(left, right, strict=True, err_msg=name)
        else:
            assert left == right, name
