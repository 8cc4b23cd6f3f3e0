"""The generator: asks what the table wants, samples groups with the newest policy, scores them, inserts them."""

import asyncio
import logging
import time
import zlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from groupreplay import (
    Admission,
    AsyncClient,
    FinishReason,
    GroupReplayError,
    InsertOutcome,
    Rollout,
    RolloutGroup,
    tracing,
)
from groupreplay.tracing import traced
from groupreplay_generator.engines import Engine, EngineAwayError, EngineResult, Sampling
from groupreplay_generator.group_trace import GroupTrace
from groupreplay_generator.metrics import GeneratorMetrics
from groupreplay_generator.opening import opened_engine
from groupreplay_generator.policy_follower import PolicyFollower, following
from groupreplay_generator.prompting import Sampled, sample_problems
from groupreplay_generator.scoring import Scorer
from groupreplay_generator.settings import GeneratorSettings
from groupreplay_generator.tasks import Problem, Task, create_task

_log = logging.getLogger(__name__)

ADMISSION_WAIT_S = 30.0
BEAT_S = 10.0
AWAY_PAUSE_S = 0.5
"""Between two tries while the service or the engine is away, or the table is not there yet; clients back off before."""


async def run_generator(settings: GeneratorSettings) -> None:
    """Generate until cancelled. The service, the trainer and the run may come later, and go and come back."""
    task = create_task(settings.task, seed=settings.seed, train_problems=settings.train_problems)
    metrics = GeneratorMetrics(settings.metrics.listen)
    with traced(settings.trace, service="groupreplay-generator", instance=settings.producer_id):
        await _run_traced(settings, task, metrics)


async def _run_traced(settings: GeneratorSettings, task: Task[Any], metrics: GeneratorMetrics) -> None:
    async with (
        Scorer(task, settings) as scorer,
        AsyncClient(settings.server, **settings.login()) as client,
        following(client, settings.run) as follower,
        opened_engine(settings.engine, follower, vllm=settings.vllm) as engine,
    ):
        with metrics:
            _log.info("generating %s for table %s/%s", settings.task, settings.run, settings.table)
            parts = Parts(client=client, engine=engine, task=task, scorer=scorer, follower=follower, metrics=metrics)
            await Generator(settings, parts).run()


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a generator works with, all of it open."""

    client: AsyncClient
    engine: Engine
    task: Task[Any]
    scorer: Scorer
    follower: PolicyFollower
    metrics: GeneratorMetrics


class Generator:
    """One producer of one table."""

    def __init__(self, settings: GeneratorSettings, parts: Parts) -> None:
        """Wire the parts."""
        self._settings = settings
        self._client = parts.client
        self._engine = parts.engine
        self._task = parts.task
        self._scorer = parts.scorer
        self._follower = parts.follower
        self._metrics = parts.metrics
        self._made = 0
        self._usable = np.empty(0, np.int64)
        self._unfit: set[str] = set()
        self._unfit_reason = ""
        self._status = "starts"
        self._incarnation = 0
        self._random = np.random.default_rng(settings.seed)

    async def run(self) -> None:
        """Generate until cancelled."""
        await self._begin()
        beating = asyncio.create_task(self._beat())
        try:
            await self._draw_problems()
            while True:
                await self._generate_once()
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)

    async def _generate_once(self) -> None:
        self._status = "waits until groups are wanted"
        with self._metrics.stage("admission"):
            admission = await self._admission()
        await self._follower.tell(admission.policy)
        drawn = self._draw(admission.groups) if admission.groups else {}
        with tracing.span("go") if drawn else tracing.NO_SPAN as go:
            go.note(run=self._settings.run, table=self._settings.table, groups=len(drawn))
            missing = list(drawn.values())
            while missing:
                done = self._unfit | await self._generate(missing)
                missing = [problem for problem in missing if problem.prompt_id not in done]
        unfit = [index for index, problem in drawn.items() if problem.prompt_id in self._unfit]
        self._usable = np.setdiff1d(self._usable, unfit) if unfit else self._usable

    async def _generate(self, problems: Sequence[Problem[Any]]) -> set[str]:
        """Sample, score and insert as many groups as the engine finishes; return their prompt ids."""
        began_ns = time.time_ns()
        with self._metrics.stage("sampling"):
            sampled = await self._sample(problems)
        self._status = f"inserts {len(sampled)} groups"
        traces = [GroupTrace(problem, result, began_ns=began_ns) for problem, result in sampled]
        with self._metrics.stage("scoring"):
            groups = await asyncio.gather(
                *(self._group(*one, trace) for one, trace in zip(sampled, traces, strict=True))
            )
        self._note(groups)
        with self._metrics.stage("inserting"):
            await self._insert(groups, traces)
        return {problem.prompt_id for problem, _ in sampled}

    def _note(self, groups: Sequence[RolloutGroup]) -> None:
        """Let the metrics know what was sampled and scored."""
        metrics = self._metrics
        metrics.failed(self._scorer.failures)
        metrics.version.set(self._engine.policy_version)
        metrics.rollouts.inc(sum(len(group) for group in groups))
        metrics.tokens.inc(sum(group.response_token_ids.size for group in groups))
        if groups:
            metrics.reward.set(float(np.mean([group.rewards.mean() for group in groups])))

    async def _beat(self) -> None:
        """Say every BEAT_S what this producer does, so that a diagnosis can tell a slow one from a dead one."""
        settings = self._settings
        while True:
            try:
                await self._client.beat(
                    run=settings.run,
                    table=settings.table,
                    producer_id=settings.producer_id,
                    interval_s=BEAT_S,
                    status=self._full_status(),
                )
            except GroupReplayError as error:
                _log.debug("a beat was not heard: %s", error)
            await asyncio.sleep(BEAT_S)

    def _full_status(self) -> str:
        unfit = f"prompts left out: {len(self._unfit)}" if self._unfit else ""
        return "; ".join(part for part in (self._status, self._scorer.status(), unfit) if part)

    async def _begin(self) -> None:
        """Make ids and random numbers those of no earlier process of this name, yet the same when a run is repeated."""
        settings = self._settings
        table = await self._patiently(lambda: self._client.describe_table(run=settings.run, table=settings.table))
        self._incarnation = table.counters.get("inserted", 0)
        name = zlib.crc32(settings.producer_id.encode())
        self._random = np.random.default_rng([settings.seed, name, self._incarnation])

    async def _draw_problems(self) -> None:
        self._status = "draws its problems"
        # In a thread: some tasks take minutes for it, and beats go on meanwhile.
        problems = await asyncio.to_thread(self._task.problem_count, "train")
        self._usable = np.arange(min(self._settings.train_problems, problems))

    async def _admission(self) -> Admission:
        """Wait until the table wants groups."""
        settings = self._settings
        admission: Admission = await self._patiently(
            lambda: self._client.request_admission(
                run=settings.run,
                table=settings.table,
                producer_id=settings.producer_id,
                max_groups=settings.prompts_at_once,
                timeout_s=ADMISSION_WAIT_S,
            )
        )
        return admission

    def _draw(self, count: int) -> dict[int, Problem[Any]]:
        """Return that many problems that the policy can be asked, by index, as far as there are so many.

        Raises:
            ValueError: there is none.
        """
        if not self._usable.size:
            raise ValueError(
                f"{self._settings.task} has no training problem that the policy can be asked {self._unfit_reason}"
            )
        # Without replacement: a batch holds one group per prompt.
        indices = self._random.choice(self._usable, size=min(count, self._usable.size), replace=False)
        return {int(index): self._task.problem(int(index), "train") for index in indices}

    async def _sample(self, problems: Sequence[Problem[Any]]) -> Sampled:
        """Sample with the newest policy; return what was finished before the engine went away, if it does."""
        settings = self._settings
        sampling = Sampling(
            max_response_tokens=settings.max_response_tokens or self._task.max_response_tokens,
            temperature=settings.temperature,
            seed=int(self._random.integers(2**62)),
        )
        sampled: Sampled = []
        try:
            if await self._take_up_newest():
                self._status = f"generates {len(problems)} groups with policy version {self._engine.policy_version}"
                return await sample_problems(
                    self._engine,
                    problems,
                    rollouts_per_prompt=settings.rollouts_per_prompt,
                    sampling=sampling,
                    on_unfit=self._leave_out,
                    sampled=sampled,
                )
        except EngineAwayError as error:
            self._status = str(error)
            self._metrics.away.inc()
        await asyncio.sleep(AWAY_PAUSE_S)
        return sampled

    async def _take_up_newest(self) -> bool:
        policy = self._follower.newest
        if policy is None:
            return True
        self._status = f"takes up policy version {policy.version}"
        return await self._follower.take_up(self._engine, policy)

    def _leave_out(self, problem: Problem[Any], error: ValueError) -> None:
        """Take note of a problem that the engine cannot take; it is not tried again."""
        self._unfit.add(problem.prompt_id)
        self._metrics.unfit.inc()
        self._unfit_reason = f"({problem.prompt_id}: {error})"
        if len(self._unfit).bit_count() == 1:  # the 1st, 2nd, 4th, 8th ...: a whole data set may be too long
            _log.warning("left out problem %s (%d so far): %s", problem.prompt_id, len(self._unfit), error)

    async def _group(self, problem: Problem[Any], result: EngineResult, trace: GroupTrace) -> RolloutGroup:
        self._made += 1
        number = self._made
        with trace.scoring():
            rewards = await self._scorer.score(problem, [completion.text for completion in result.completions])
        rollouts = [
            Rollout(
                token_ids=completion.token_ids,
                behaviour_logprobs=completion.behaviour_logprobs,
                reward=reward,
                finish_reason=FinishReason(completion.finish_reason),
                text=completion.text,
            )
            for completion, reward in zip(result.completions, rewards, strict=True)
        ]
        group = RolloutGroup.from_rollouts(
            rollouts,
            group_id=f"{self._settings.producer_id}-{self._incarnation}-{number}",
            prompt_id=problem.prompt_id,
            prompt_token_ids=result.prompt_token_ids,
            policy_version=result.policy_version_min,
            task=self._task.name,
            producer_id=self._settings.producer_id,
            prompt_text=problem.prompt_text,
            columns={} if problem.image is None else {"image": problem.image},
        )
        if result.policy_version_max == result.policy_version_min:
            return group
        return replace(group, policy_version_max=result.policy_version_max, version_spans=_version_spans(result))

    async def _insert(self, groups: Sequence[RolloutGroup], traces: Sequence[GroupTrace]) -> None:
        """Insert groups, trying until each is acknowledged or refused for good."""
        pending = {group.group_id: trace.inserting(group) for group, trace in zip(groups, traces, strict=True)}
        trace_of = {group.group_id: trace for group, trace in zip(groups, traces, strict=True)}
        while pending:
            acknowledged = []
            try:
                async for result in self._insert_many(list(pending.values())):
                    if result.error is None or not result.error.retryable:
                        del pending[result.group_id]
                        trace_of[result.group_id].inserted(result.outcome)
                        self._metrics.groups.labels(result.outcome.value).inc()
                    if result.outcome is not InsertOutcome.REFUSED:
                        self._metrics.inserted_at.set_to_current_time()
                        acknowledged.append(result.group_id)
                    else:
                        _log.warning("%s", result.error)
            except GroupReplayError as error:
                _log.warning("%d groups wait to be inserted, trying on: %s", len(pending), error)
                await asyncio.sleep(AWAY_PAUSE_S)
            finally:
                if self._settings.inserted_log is not None and acknowledged:
                    _append_lines(self._settings.inserted_log, acknowledged)

    def _insert_many(self, groups: Sequence[RolloutGroup]) -> AsyncIterator[Any]:
        async def each() -> AsyncIterator[RolloutGroup]:
            for group in groups:
                yield group

        settings = self._settings
        return self._client.insert_many(
            each(), run=settings.run, table=settings.table, timeout_s=settings.insert_timeout_s
        )

    async def _patiently(self, call: Any) -> Any:
        """Return what call returns, trying on while the service is away or the table is not there yet."""
        said = ""
        while True:
            try:
                return await call()
            except GroupReplayError as error:
                if error.reason != said:
                    _log.warning("waiting: %s", error)
                    said = error.reason
                await asyncio.sleep(AWAY_PAUSE_S)


def _version_spans(result: EngineResult) -> npt.NDArray[np.int32] | None:
    """Return [S, 2] (first token of the group, policy version); None where the engine does not know them."""
    spans: list[tuple[int, int]] = []
    start = 0
    for completion in result.completions:
        if not completion.version_spans:
            return None
        for first, version in completion.version_spans:
            if not spans or spans[-1][1] != version:
                spans.append((start + first, version))
        start += completion.token_ids.size
    return np.array(spans, dtype=np.int32)


def _append_lines(path: Path, lines: Sequence[str]) -> None:
    with path.open("a") as file:
        file.write("".join(f"{line}\n" for line in lines))
