"""What a run leaves: one line of JSON, appended when it is complete. What is in the file is never run again."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np

from line_file import append_line, whole_lines

RUNS: Final = "runs.jsonl"
SMOOTHED_OVER: Final = 2
"""Accuracies are means of two evaluations: one alone, of 1,024 rollouts, has a standard error of about 0.012."""

TUNED_OVER: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Held-out accuracy after a step, and what had been spent by then."""

    step: int
    accuracy: float
    rollouts: int
    """Generated for the steps so far."""
    seconds: float
    """Of generating and training, without evaluations; two runs shared two cores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A finished run."""

    key: str
    phase: str
    task: str
    checkpoint: str
    arm: str
    lr: float
    seed: int
    evaluations: Sequence[Evaluation]
    updates: int
    rollouts: int
    seconds: float
    cpu_seconds: float
    """Of generator and trainer together."""
    effective_share: float
    replay_share: float
    staleness_mean: float
    """Of all groups trained on, mean over steps."""
    staleness_max: int
    ess_min: float | None
    """Lowest of any step; None without replay."""
    kl_k3_max: float | None
    weight_max: float | None
    skipped_updates: int

    @property
    def final_accuracy(self) -> float:
        """Mean of the last evaluations."""
        return self.smoothed()[-1]

    @property
    def tuning_accuracy(self) -> float:
        """Mean of the last four evaluations: one seed decides over a rate, so that noise is kept down."""
        return mean([evaluation.accuracy for evaluation in self.evaluations[-TUNED_OVER:]])

    def smoothed(self) -> list[float]:
        """Return the mean of each evaluation with those just before it."""
        accuracies = [evaluation.accuracy for evaluation in self.evaluations]
        return [mean(accuracies[max(0, end - SMOOTHED_OVER) : end]) for end in range(1, len(accuracies) + 1)]

    def accuracy_at(self, rollouts: float) -> float:
        """Return the smoothed accuracy at a number of rollouts, linear between evaluations, the last one beyond."""
        spent = [evaluation.rollouts for evaluation in self.evaluations]
        return float(np.interp(rollouts, spent, self.smoothed()))

    def first_at(self, accuracy: float) -> Evaluation | None:
        """Return the first evaluation at which the smoothed accuracy is that high, None if it never is."""
        reached = (point for point, height in zip(self.evaluations, self.smoothed(), strict=True) if height >= accuracy)
        return next(reached, None)

    @classmethod
    def from_line(cls, line: str) -> Self:
        """Return the result that append_result wrote on a line."""
        fields = json.loads(line)
        return cls(**fields | {"evaluations": tuple(Evaluation(**each) for each in fields["evaluations"])})


def read_results(path: Path) -> dict[str, Result]:
    """Return the finished runs by key; a line that a kill cut short is not one."""
    return {result.key: result for result in map(Result.from_line, whole_lines(path))}


def append_result(path: Path, result: Result) -> None:
    """Add a finished run."""
    append_line(path, json.dumps(asdict(result)))


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean of at least one value."""
    return sum(values) / len(values)


def by_pair(results: Mapping[str, Result], *, task: str, arm: str, phase: str) -> dict[tuple[str, int], Result]:
    """Return an arm's runs of a phase by what pairs them with those of other arms: checkpoint and seed."""
    return {
        (result.checkpoint, result.seed): result
        for result in results.values()
        if (result.task, result.arm, result.phase) == (task, arm, phase)
    }
