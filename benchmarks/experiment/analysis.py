"""Tables of finished runs: every difference is between runs of the same checkpoint and seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from experiment.results import Result, by_pair, mean

BASELINE: Final = "grpo"
SUBJECT: Final = "popo"
_RESAMPLES: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean over runs and the 95 % interval of it, from resampling the runs."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval":
        """Return the interval of at least one value; the same values give the same interval."""
        array = np.asarray(values)
        drawn = np.random.default_rng(0).choice(array, (_RESAMPLES, len(array))).mean(axis=1)
        low, high = np.percentile(drawn, (2.5, 97.5))
        return cls(mean=float(array.mean()), low=float(low), high=float(high))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """An arm on a task. None where the baseline has no run to compare with, or no run got that far."""

    task: str
    arm: str
    runs: int
    lr: float
    accuracy: Interval
    """Final held-out accuracy."""
    accuracy_at_equal_rollouts: Interval
    """At the number of rollouts that the baseline's run of the same pair generated in all."""
    difference: Interval | None
    """Of accuracy_at_equal_rollouts, less that of POPO's run of the same pair."""
    reached: int
    """Runs that reached the final accuracy of the baseline's run of the same pair."""
    rollouts_ratio: float | None
    """Median rollouts that this took, over those of the baseline's whole run; None unless half of them got there."""
    seconds_ratio: float | None
    """The same for seconds of generating and training."""
    steps_ratio: float | None
    reached_popo: int
    """Runs that reached the final accuracy of POPO's run of the same pair."""
    popo_rollouts_ratio: float | None
    """Median rollouts that this took, over those of POPO's whole run; None unless half of them got there."""
    rollouts: float
    """Mean over runs, as everything below."""
    updates: float
    seconds: float
    cpu_seconds: float
    effective_share: float
    replay_share: float
    staleness_mean: float
    ess_min: float | None
    kl_k3_max: float | None
    collapsed: int
    """Runs whose final accuracy is below half of what they started with."""


def rows_of(results: Mapping[str, Result], *, task: str, phase: str) -> list[Row]:
    """Return a row for each arm that has finished runs, in the order in which they first finished."""
    arms = dict.fromkeys(result.arm for result in results.values() if (result.task, result.phase) == (task, phase))
    return [_row(results, task=task, arm=arm, phase=phase) for arm in arms]


def _row(results: Mapping[str, Result], *, task: str, arm: str, phase: str) -> Row:
    runs = by_pair(results, task=task, arm=arm, phase=phase)
    # The variations are compared with GRPO and POPO of the main comparison.
    baseline = by_pair(results, task=task, arm=BASELINE, phase="main")
    subject = by_pair(results, task=task, arm=SUBJECT, phase="main")
    budget = {pair: baseline[pair].rollouts if pair in baseline else run.rollouts for pair, run in runs.items()}
    differences = [
        run.accuracy_at(budget[pair]) - subject[pair].accuracy_at(budget[pair])
        for pair, run in runs.items()
        if pair in subject
    ]
    reached, typical = _speeds(runs, baseline)
    reached_popo, typical_popo = _speeds(runs, subject)
    return Row(
        task=task,
        arm=arm,
        runs=len(runs),
        lr=next(iter(runs.values())).lr,
        accuracy=Interval.of([run.final_accuracy for run in runs.values()]),
        accuracy_at_equal_rollouts=Interval.of([run.accuracy_at(budget[pair]) for pair, run in runs.items()]),
        difference=Interval.of(differences) if differences and arm != SUBJECT else None,
        reached=reached,
        rollouts_ratio=typical[0],
        seconds_ratio=typical[1],
        steps_ratio=typical[2],
        reached_popo=reached_popo,
        popo_rollouts_ratio=typical_popo[0],
        rollouts=mean([run.rollouts for run in runs.values()]),
        updates=mean([run.updates for run in runs.values()]),
        seconds=mean([run.seconds for run in runs.values()]),
        cpu_seconds=mean([run.cpu_seconds for run in runs.values()]),
        effective_share=mean([run.effective_share for run in runs.values()]),
        replay_share=mean([run.replay_share for run in runs.values()]),
        staleness_mean=mean([run.staleness_mean for run in runs.values()]),
        ess_min=_mean_of_known([run.ess_min for run in runs.values()]),
        kl_k3_max=_mean_of_known([run.kl_k3_max for run in runs.values()]),
        collapsed=sum(run.final_accuracy < run.evaluations[0].accuracy / 2 for run in runs.values()),
    )


def _speeds(
    runs: Mapping[tuple[str, int], Result], others: Mapping[tuple[str, int], Result]
) -> tuple[int, Sequence[float | None]]:
    """Return how many runs reached the other's end, and the medians of _speed; of None unless half of them did."""
    speeds = [_speed(run, others[pair]) for pair, run in runs.items() if pair in others]
    reached = sum(speed is not None for speed in speeds)
    return reached, [None] * 3 if 2 * reached <= len(speeds) else _medians(speeds)


def _speed(run: Result, other: Result) -> tuple[float, float, float] | None:
    """Return rollouts, seconds and steps to the final accuracy of another run, over those of its whole run."""
    reached = run.first_at(other.final_accuracy)
    if reached is None:
        return None
    last = other.evaluations[-1]
    return reached.rollouts / last.rollouts, reached.seconds / last.seconds, reached.step / last.step


def _medians(speeds: Sequence[tuple[float, float, float] | None]) -> list[float | None]:
    """Return the median of each; a run that never got there took longer than any that did."""
    known = np.array([[np.inf] * 3 if speed is None else speed for speed in speeds])
    return [float(value) for value in np.median(known, axis=0)]


def _mean_of_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None
