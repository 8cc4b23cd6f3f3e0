"""Rollout groups to insert: small unless a test asks for tokens, effective unless it asks for equal rewards."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from groupreplay import Batch, RolloutGroup


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
