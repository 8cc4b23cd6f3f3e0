"""What came of scoring one response: a reward, or why there is none."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Self

import numpy as np

from groupreplay_generator.tasks.base import Problem, Task

LARGEST_REWARD: Final = float(np.finfo(np.float32).max)
"""Groups carry rewards as float32."""


class RewardFailure(StrEnum):
    """Why there is no reward: the verifier took too long, its process died, it raised, or its number is not finite."""

    TIMEOUT = "timeout"
    DIED = "died"
    RAISED = "raised"
    NOT_FINITE = "not_finite"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A reward; or a failure and words about it, and a reward that means nothing."""

    reward: float = 0.0
    failure: RewardFailure | None = None
    message: str = ""

    @classmethod
    def failed(cls, failure: RewardFailure, message: str) -> Self:
        """Return the verdict that there is no reward."""
        return cls(failure=failure, message=message)


def judge(task: Task[Any], problem: Problem[Any], response_text: str) -> Verdict:
    """Score a response in this process. Whatever exception the verifier raises becomes a verdict."""
    try:
        reward = float(task.score(problem, response_text))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a verifier is anybody's code, run on whatever a policy writes
        return Verdict.failed(RewardFailure.RAISED, f"{type(error).__name__}: {error}"[:300])
    if not abs(reward) <= LARGEST_REWARD:  # also true of NaN
        return Verdict.failed(RewardFailure.NOT_FINITE, f"the verifier returned {reward}")
    return Verdict(reward=reward)
