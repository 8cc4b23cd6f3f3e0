"""The scorer: gives responses their rewards, in worker processes or in this one, and counts what goes wrong."""

import asyncio
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Final, Protocol, Self

from groupreplay_generator.scoring.verdict import RewardFailure, Verdict, judge
from groupreplay_generator.scoring.worker import RewardWorker, WorkerPlan
from groupreplay_generator.tasks.base import Problem, Task

_log = logging.getLogger(__name__)

MAX_DEFAULT_WORKERS: Final = 4
LOG_EVERY_S: Final = 30.0
"""One warning for each kind of failure in this time; the others are only counted."""


class ScoringSettings(Protocol):
    """The settings that say where responses are scored; those of the generator and of the evaluator do."""

    @property
    def task(self) -> str:
        """Name of the task."""

    @property
    def seed(self) -> int:
        """Seed of the task."""

    @property
    def reward_workers(self) -> int | None:
        """Processes; 0 = this one, without a time limit. None = what the task needs."""

    @property
    def reward_timeout_s(self) -> float:
        """The limit of one score."""

    @property
    def reward_on_error(self) -> float:
        """The reward of a response whose verifier fails."""


class Scorer:
    """Scores responses to the problems of one task, opened by `async with`. Many calls may be under way."""

    def __init__(
        self,
        task: Task[Any],
        settings: ScoringSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start nothing yet.

        Args:
            task: made of the settings' task and seed, as every worker makes its own.
            settings: see `ScoringSettings`.
            clock: seconds, for how often failures are logged.
        """
        self._task = task
        self._on_error = settings.reward_on_error
        self._clock = clock
        self._failures: Counter[RewardFailure] = Counter()
        self._logged_at: dict[RewardFailure, float] = {}
        plan = WorkerPlan(task=settings.task, seed=settings.seed, timeout_s=settings.reward_timeout_s)
        self._workers = [RewardWorker(plan) for _ in range(_worker_count(task, settings))]
        self._idle: asyncio.Queue[RewardWorker] = asyncio.Queue()

    async def __aenter__(self) -> Self:
        """Start the workers.

        Raises:
            ChildProcessError: one does not start.
        """
        try:
            await asyncio.gather(*(worker.start() for worker in self._workers))
        except BaseException:
            await self._kill_all()
            raise
        for worker in self._workers:
            self._idle.put_nowait(worker)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the workers."""
        await self._kill_all()

    @property
    def failures(self) -> Counter[RewardFailure]:
        """How many responses were scored as `on_error`, by cause."""
        return self._failures

    def status(self) -> str:
        """Return the failures in words, or ""."""
        counts = ", ".join(f"{count} {failure}" for failure, count in sorted(self._failures.items()))
        return f"rewards failed: {counts}" if counts else ""

    async def score(self, problem: Problem[Any], texts: Sequence[str]) -> list[float]:
        """Return the reward of every response to a problem; `on_error` where the verifier failed.

        Raises:
            ValueError: the problem cannot be sent to another process.
            ChildProcessError: a worker had to be replaced, and no other can be started.
        """
        if self._workers:
            verdicts = await self._score_elsewhere(problem, texts)
        else:
            verdicts = [judge(self._task, problem, text) for text in texts]
        return [self._reward(problem, verdict) for verdict in verdicts]

    async def _score_elsewhere(self, problem: Problem[Any], texts: Sequence[str]) -> list[Verdict]:
        worker = await self._idle.get()
        try:
            return await worker.score(problem, texts)
        finally:
            self._idle.put_nowait(worker)

    def _reward(self, problem: Problem[Any], verdict: Verdict) -> float:
        if verdict.failure is None:
            return verdict.reward
        self._failures[verdict.failure] += 1
        now = self._clock()
        if now - self._logged_at.get(verdict.failure, -math.inf) >= LOG_EVERY_S:
            self._logged_at[verdict.failure] = now
            _log.warning(
                "no reward for a response to %s: %s; it scores %s (%s: %d so far)",
                problem.prompt_id,
                verdict.message,
                self._on_error,
                verdict.failure,
                self._failures[verdict.failure],
            )
        return self._on_error

    async def _kill_all(self) -> None:
        await asyncio.gather(*(worker.kill() for worker in self._workers))


def _worker_count(task: Task[Any], settings: ScoringSettings) -> int:
    if settings.reward_workers is not None:
        return settings.reward_workers
    if getattr(task, "scores_in_process", False):
        return 0
    return min(MAX_DEFAULT_WORKERS, os.cpu_count() or 1)
