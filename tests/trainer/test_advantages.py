"""Advantages are relative to their own group, and frozen."""

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groupreplay.torch.advantages import AdvantageEstimator, group_advantages

REWARDS = st.lists(st.floats(-1, 1, width=16), min_size=2, max_size=32)


@given(REWARDS)
def test_grpo_divides_by_the_unbiased_standard_deviation(rewards: list[float]) -> None:
    """The GRPO advantage is (r - mean) / (std + 1e-6), the standard deviation taken over G - 1."""
    mean, std = statistics.fmean(rewards), statistics.stdev(rewards)
    expected = [(reward - mean) / (std + 1e-6) for reward in rewards]
    np.testing.assert_allclose(group_advantages(rewards), expected, rtol=1e-5, atol=1e-6)


@given(REWARDS)
def test_rloo_compares_with_the_mean_of_the_others(rewards: list[float]) -> None:
    """The RLOO advantage is the reward less the mean of the other rollouts' rewards."""
    others = [rewards[:i] + rewards[i + 1 :] for i in range(len(rewards))]
    expected = [reward - statistics.fmean(other) for reward, other in zip(rewards, others, strict=True)]
    actual = group_advantages(rewards, estimator=AdvantageEstimator.RLOO)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_dr_grpo_does_not_divide() -> None:
    """The Dr.GRPO advantage is the reward less the mean."""
    advantages = group_advantages([1.0, 0.0, 0.0, 0.0], estimator=AdvantageEstimator.DR_GRPO)
    assert advantages.tolist() == [0.75, -0.25, -0.25, -0.25]
    assert advantages.dtype == np.float32


@pytest.mark.parametrize("estimator", AdvantageEstimator)
@pytest.mark.parametrize("rewards", [[0.1] * 7, [1.0], [0.0, 0.0]])
def test_equal_rewards_have_advantage_exactly_zero(rewards: list[float], estimator: AdvantageEstimator) -> None:
    """A group without variance, or of one rollout, teaches nothing, to the last bit."""
    assert group_advantages(np.array(rewards, np.float32), estimator=estimator).tolist() == [0.0] * len(rewards)


@pytest.mark.parametrize("rewards", [[], [1.0, float("nan")], [[1.0, 0.0]]])
def test_rewards_that_are_none_are_refused(rewards: list[float]) -> None:
    """No reward, one that is not a number, and nested rewards are errors."""
    with pytest.raises(ValueError, match="at least one finite number"):
        group_advantages(rewards)
