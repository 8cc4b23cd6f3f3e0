"""Which runs there are, in which order: rates are tuned on other seeds than those that are reported."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from experiment.arms import ARMS, EXTRA, MAIN
from experiment.results import Result

Phase = Literal["tune", "main", "extra"]

LEARNING_RATES: Final = (5e-5, 1e-4, 2e-4)
"""GRPO collapses at 3e-4, whatever the warm-up."""
TUNING_SEED: Final = 100
TUNING_CHECKPOINT: Final = "a"
CHECKPOINTS: Final = ("a", "b")
"""Even seeds start from the first, odd ones from the second."""
TASKS: Final = ("addition", "countdown3")
EXTRA_TASK: Final = "addition"
STEPS: Final = {"addition": 120, "countdown3": 40}
"""A step of countdown costs twice as much, and it learns faster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """One run: from a warm-started checkpoint to the last evaluation."""

    phase: Phase
    task: str
    checkpoint: str
    arm: str
    lr: float
    seed: int
    steps: int

    @property
    def key(self) -> str:
        """Names the run, and its results, for ever."""
        return f"{self.task}/{self.checkpoint}/{self.arm}/lr{self.lr:g}/steps{self.steps}/seed{self.seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run."""

    tasks: Sequence[str] = TASKS
    arms: Sequence[str] = tuple(arm.name for arm in MAIN)
    extra_arms: Sequence[str] = tuple(arm.name for arm in EXTRA)
    seeds: Sequence[int] = tuple(range(8))
    extra_seeds: Sequence[int] = tuple(range(3))
    rates: Sequence[float] = LEARNING_RATES
    steps: int | None = None
    """Of every run; by default what its task needs."""

    def tuning(self) -> Iterator[RunSpec]:
        """Yield the runs that decide over learning rates."""
        for task in self.tasks:
            for arm in self.arms:
                for rate in self.rates:
                    yield self._run("tune", task, arm, rate, seed=TUNING_SEED, checkpoint=TUNING_CHECKPOINT)

    def reported(self, results: Mapping[str, Result]) -> Iterator[RunSpec]:
        """Yield the runs that are reported; seed by seed, so that whatever is finished is paired."""
        for seed in self.seeds:
            for task in self.tasks:
                for arm in self.arms:
                    rate = self.tuned_rate(task, arm, results)
                    yield self._run("main", task, arm, rate, seed=seed, checkpoint=checkpoint_of(seed))

    def variations(self, results: Mapping[str, Result]) -> Iterator[RunSpec]:
        """Yield the runs of group sizes, RLOO, and generators that are ahead."""
        if EXTRA_TASK not in self.tasks:
            return
        for seed in self.extra_seeds:
            for arm in self.extra_arms:
                rate = self.tuned_rate(EXTRA_TASK, ARMS[arm].like, results)
                yield self._run("extra", EXTRA_TASK, arm, rate, seed=seed, checkpoint=checkpoint_of(seed))

    def tuned_rate(self, task: str, arm: str, results: Mapping[str, Result]) -> float:
        """Return the learning rate with the best accuracy on the tuning seed.

        Raises:
            LookupError: a tuning run of this arm is missing.
        """
        if len(self.rates) == 1:
            return self.rates[0]
        accuracies = {
            rate: results[
                self._run("tune", task, arm, rate, seed=TUNING_SEED, checkpoint=TUNING_CHECKPOINT).key
            ].tuning_accuracy
            for rate in self.rates
        }
        return max(accuracies, key=accuracies.__getitem__)

    def _run(self, phase: Phase, task: str, arm: str, lr: float, *, seed: int, checkpoint: str) -> RunSpec:
        steps = STEPS[task] if self.steps is None else self.steps
        return RunSpec(phase=phase, task=task, checkpoint=checkpoint, arm=arm, lr=lr, seed=seed, steps=steps)


def checkpoint_of(seed: int) -> str:
    """Return the warm-started checkpoint that a reported seed starts from."""
    return CHECKPOINTS[seed % len(CHECKPOINTS)]
