"""An endless supply of rollout groups of a shape."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import count

import numpy as np

from groupreplay import RolloutGroup
from groupreplay_admin.load.shapes import Shape, make_arrays

_POOL_BYTES = 64 * 2**20
_POOL_GROUPS = 16


def groups_of(shape: Shape, *, prefix: str, producer_id: str = "", ineffective: float = 0.0) -> Iterator[RolloutGroup]:
    """Yield groups with new ids and prompts for ever; the numbers in them come round again after a few.

    Args:
        prefix: of every id, so that those of several callers differ.
        ineffective: share of the groups whose rewards are all alike, spread evenly.
    """
    size = max(1, min(_POOL_GROUPS, _POOL_BYTES // shape.mean_bytes))
    pool = [_group(shape, index, producer_id) for index in range(size)]
    alike = np.zeros(shape.rollouts, np.float32)
    for number in count():
        group_id = f"{prefix}-{number}"
        group = replace(pool[number % size], group_id=group_id, prompt_id=group_id)
        skipped = int((number + 1) * ineffective) > int(number * ineffective)
        yield replace(group, rewards=alike) if skipped else group


def _group(shape: Shape, index: int, producer_id: str) -> RolloutGroup:
    arrays = make_arrays(shape, index)
    return RolloutGroup(
        group_id=f"pool-{index}",
        prompt_id=str(index),
        prompt_token_ids=arrays.token_ids[:16],
        response_token_ids=arrays.token_ids,
        response_lengths=arrays.lengths,
        behaviour_logprobs=arrays.logprobs,
        rewards=arrays.rewards,
        policy_version_min=0,
        policy_version_max=0,
        producer_id=producer_id,
    )
