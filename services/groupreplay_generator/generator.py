"""The generator: asks what the table wants, samples groups with the newest policy, scores them, inserts them."""

import asyncio
import logging
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
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
)
from groupreplay_generator.engines import Engine, EngineAwayError, EngineResult, Sampling, create_engine
from groupreplay_generator.policy_follower import PolicyFollower, following, weights_label, weights_path
from groupreplay_generator.settings import GeneratorSettings
from groupreplay_generator.tasks import Problem, Task, create_task

_log = logging.getLogger(__name__)

ADMISSION_WAIT_S = 30.0
BEAT_S = 10.0
AWAY_PAUSE_S = 0.5
"""Between two tries while the service or the engine is away, or the table is not there yet; clients back off before."""


async def run_generator(settings: GeneratorSettings) -> None:
    """Generate until cancelled. The service, the trainer and the run may come later, and go and come back."""
    task = create_task(settings.task, seed=settings.seed)
    async with AsyncClient(settings.server) as client, following(client, settings.run) as follower:
        first = await follower.newer_than(-1)
        engine = create_engine(
            settings.engine,
            weights=weights_path(first),
            policy_version=first.version,
            label=weights_label(first),
            version_of=follower.version_of,
            vllm=settings.vllm,
        )
        follower.opened_with(first)
        async with engine:
            _log.info("generating %s for table %s/%s", settings.task, settings.run, settings.table)
            await Generator(settings, client=client, engine=engine, task=task, follower=follower).run()


class Generator:
    """One producer of one table."""

    def __init__(
        self,
        settings: GeneratorSettings,
        *,
        client: AsyncClient,
        engine: Engine,
        task: Task[Any],
        follower: PolicyFollower,
    ) -> None:
        """Wire the parts, all of them open."""
        self._settings = settings
        self._client = client
        self._engine = engine
        self._task = task
        self._follower = follower
        self._made = 0
        self._status = "starts"
        self._incarnation = 0
        self._random = np.random.default_rng(settings.seed)

    async def run(self) -> None:
        """Generate until cancelled."""
        await self._begin()
        beating = asyncio.create_task(self._beat())
        try:
            while True:
                await self._generate_once()
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)

    async def _generate_once(self) -> None:
        self._status = "waits until groups are wanted"
        admission = await self._admission()
        await self._follower.tell(admission.policy)
        missing = self._draw(admission.groups)
        while missing:
            results = await self._sample(missing)
            self._status = f"inserts {len(results)} groups"
            await self._insert([self._group(missing[index], result) for index, result in sorted(results.items())])
            missing = [problem for index, problem in enumerate(missing) if index not in results]

    def _draw(self, count: int) -> list[Problem[Any]]:
        pool = min(self._settings.train_problems, self._task.problem_count("train"))
        # Without replacement: a batch holds one group per prompt.
        indices = self._random.choice(pool, size=min(count, pool), replace=False)
        return [self._task.problem(int(index), "train") for index in indices]

    async def _sample(self, problems: Sequence[Problem[Any]]) -> Mapping[int, EngineResult]:
        """Sample with the newest policy; return what the engine finished before it went away, if it does, by index."""
        settings = self._settings
        sampling = Sampling(
            max_response_tokens=self._task.max_response_tokens,
            temperature=settings.temperature,
            seed=int(self._random.integers(2**62)),
        )
        try:
            if await self._take_up_newest():
                self._status = f"generates {len(problems)} groups with policy version {self._engine.policy_version}"
                results = await self._engine.generate(
                    [problem.prompt_text for problem in problems],
                    rollouts_per_prompt=settings.rollouts_per_prompt,
                    sampling=sampling,
                )
                return dict(enumerate(results))
            finished: Mapping[int, EngineResult] = {}
        except EngineAwayError as error:
            self._status = str(error)
            finished = error.finished
        await asyncio.sleep(AWAY_PAUSE_S)
        return finished

    async def _take_up_newest(self) -> bool:
        policy = self._follower.newest
        if policy is None:
            return True
        self._status = f"takes up policy version {policy.version}"
        return await self._follower.take_up(self._engine, policy)

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
                    status=self._status,
                )
            except GroupReplayError as error:
                _log.debug("a beat was not heard: %s", error)
            await asyncio.sleep(BEAT_S)

    async def _begin(self) -> None:
        """Make ids and random numbers those of no earlier process of this name, yet the same when a run is repeated."""
        settings = self._settings
        table = await self._patiently(lambda: self._client.describe_table(run=settings.run, table=settings.table))
        self._incarnation = table.counters.get("inserted", 0)
        name = zlib.crc32(settings.producer_id.encode())
        self._random = np.random.default_rng([settings.seed, name, self._incarnation])

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

    def _group(self, problem: Problem[Any], result: EngineResult) -> RolloutGroup:
        self._made += 1
        rollouts = [
            Rollout(
                token_ids=completion.token_ids,
                behaviour_logprobs=completion.behaviour_logprobs,
                reward=self._task.score(problem, completion.text),
                finish_reason=FinishReason(completion.finish_reason),
                text=completion.text,
            )
            for completion in result.completions
        ]
        group = RolloutGroup.from_rollouts(
            rollouts,
            group_id=f"{self._settings.producer_id}-{self._incarnation}-{self._made}",
            prompt_id=problem.prompt_id,
            prompt_token_ids=result.prompt_token_ids,
            policy_version=result.policy_version_min,
            task=self._task.name,
            producer_id=self._settings.producer_id,
            prompt_text=problem.prompt_text,
        )
        if result.policy_version_max == result.policy_version_min:
            return group
        return replace(group, policy_version_max=result.policy_version_max, version_spans=_version_spans(result))

    async def _insert(self, groups: Sequence[RolloutGroup]) -> None:
        """Insert groups, trying until each is acknowledged or refused for good."""
        pending = {group.group_id: group for group in groups}
        while pending:
            acknowledged = []
            try:
                async for result in self._insert_many(list(pending.values())):
                    if result.error is None or not result.error.retryable:
                        del pending[result.group_id]
                    if result.outcome is not InsertOutcome.REFUSED:
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
