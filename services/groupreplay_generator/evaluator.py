"""The evaluator: measures published policies on held-out problems."""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, TypeVar

from groupreplay import AsyncClient
from groupreplay_generator.engines import Engine, EngineAwayError, Sampling
from groupreplay_generator.opening import opened_engine
from groupreplay_generator.policy_follower import following
from groupreplay_generator.prompting import Sampled, sample_problems
from groupreplay_generator.scoring import Scorer
from groupreplay_generator.settings import EvaluatorSettings
from groupreplay_generator.tasks import Task, create_task

_log = logging.getLogger(__name__)

AWAY_PAUSE_S: Final = 0.5
"""Between two tries while the engine is away; it backs off by itself before."""

ResultT = TypeVar("ResultT")


async def run_evaluator(settings: EvaluatorSettings) -> None:
    """Measure version 0 (or the first that is met), then every `every` versions, up to `last_version`."""
    task = create_task(settings.task, seed=settings.seed, heldout_problems=settings.problems)
    async with (
        Scorer(task, settings) as scorer,
        AsyncClient(settings.server, **settings.login()) as client,
        following(client, settings.run) as follower,
        opened_engine(settings.engine, follower, vllm=settings.vllm) as engine,
    ):
        await _patiently(lambda: _measure(engine, task, scorer, settings))
        while settings.last_version is None or engine.policy_version < settings.last_version:
            next_version = engine.policy_version + settings.every
            if settings.last_version is not None:
                next_version = min(next_version, settings.last_version)
            policy = await follower.newer_than(next_version - 1)
            if await _patiently(partial(follower.take_up, engine, policy)):
                await _patiently(lambda: _measure(engine, task, scorer, settings))
            else:
                await follower.newer_than(policy.version)


async def _patiently(call: Callable[[], Awaitable[ResultT]]) -> ResultT:
    """Return what call returns, trying on while the engine is away."""
    while True:
        try:
            return await call()
        except EngineAwayError as error:
            _log.debug("waiting: %s", error)
            await asyncio.sleep(AWAY_PAUSE_S)


async def _measure(engine: Engine, task: Task[Any], scorer: Scorer, settings: EvaluatorSettings) -> None:
    started = time.monotonic()
    failed_before = scorer.failures.total()
    count = min(settings.problems, task.problem_count("heldout"))
    unfit: list[str] = []
    sampled = await sample_problems(
        engine,
        [task.problem(index, "heldout") for index in range(count)],
        rollouts_per_prompt=settings.rollouts_per_prompt,
        sampling=Sampling(
            max_response_tokens=settings.max_response_tokens or task.max_response_tokens,
            temperature=settings.temperature,
            seed=settings.seed,
        ),
        on_unfit=lambda problem, error: unfit.append(f"{problem.prompt_id}: {error}"),
    )
    if not sampled:
        raise ValueError(
            f"{settings.task} has no held-out problem that the policy can be asked; {'; '.join(unfit[:1])}"
        )
    rewards = await _rewards(scorer, sampled)
    record = {
        "policy_version": sampled[0][1].policy_version_min,
        "accuracy": sum(reward == 1.0 for reward in rewards) / len(rewards),
        "reward_mean": sum(rewards) / len(rewards),
        "rollouts": len(rewards),
        "unfit_prompts": len(unfit),
        "failed_rewards": scorer.failures.total() - failed_before,
        "seconds": round(time.monotonic() - started, 3),
    }
    with settings.output.open("a") as file:
        file.write(json.dumps(record) + "\n")
    _log.info("policy version %(policy_version)d: accuracy %(accuracy).3f", record)


async def _rewards(scorer: Scorer, sampled: Sampled) -> list[float]:
    scores = (
        scorer.score(problem, [completion.text for completion in result.completions]) for problem, result in sampled
    )
    return [reward for rewards in await asyncio.gather(*scores) for reward in rewards]
