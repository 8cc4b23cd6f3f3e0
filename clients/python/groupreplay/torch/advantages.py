"""Group-relative advantages: how much better each response is than its siblings.

An advantage is frozen at birth: it depends on the rewards of its own group alone, which never change, so a replayed
group has the advantages it had when it was fresh. Groups are never mixed.

Shape legend: G rollouts of one group.
"""

from enum import StrEnum
from typing import Final

import numpy as np
import numpy.typing as npt

STD_EPSILON: Final = 1e-6
"""Added to the standard deviation, as GRPO implementations do."""


class AdvantageEstimator(StrEnum):
    """How the rewards of a group become advantages."""

    GRPO = "grpo"
    """(r - mean) / (std + 1e-6), with the unbiased standard deviation."""
    DR_GRPO = "dr-grpo"
    """r - mean: no division, so groups of little variance weigh little."""
    RLOO = "rloo"
    """r - mean of the others, which is G / (G - 1) * (r - mean)."""


def group_advantages(
    rewards_G: npt.ArrayLike, *, estimator: AdvantageEstimator = AdvantageEstimator.GRPO
) -> npt.NDArray[np.float32]:
    """Return the advantage of each rollout of one group, float32 [G].

    Exactly 0 for every rollout of a group whose rewards are all equal, and so of a group of one: it has nobody to be
    compared with, and teaches nothing.

    Args:
        rewards_G: finite, at least one.
        estimator: see AdvantageEstimator.

    Raises:
        ValueError: no reward, or one that is not finite.

    Source: DeepSeekMath (GRPO), arXiv 2402.03300; Dr.GRPO, arXiv 2503.20783; RLOO, arXiv 2402.14740.
    """
    rewards = np.asarray(rewards_G, dtype=np.float64)
    if rewards.ndim != 1 or rewards.size == 0 or not np.isfinite(rewards).all():
        raise ValueError(f"rewards must be a flat array of at least one finite number, got {rewards.tolist()!r}")
    # Rounding of the mean would leave equal rewards 1e-17 apart from it, and GRPO divides by as little as 1e-6.
    if rewards.min() == rewards.max():
        return np.zeros(rewards.size, np.float32)
    centred: npt.NDArray[np.float64] = rewards - rewards.mean()
    match estimator:
        case AdvantageEstimator.GRPO:
            centred /= rewards.std(ddof=1) + STD_EPSILON
        case AdvantageEstimator.RLOO:
            centred *= rewards.size / (rewards.size - 1)
        case AdvantageEstimator.DR_GRPO:
            pass
    return centred.astype(np.float32)
