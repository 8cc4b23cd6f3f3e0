"""One run in one process: a trainer and a generator that meet in the service, then the evaluations."""

import asyncio
import json
import logging
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

from experiment.arms import ARMS, Arm
from experiment.plan import RunSpec
from experiment.results import Evaluation, Result, mean
from groupreplay import Client
from groupreplay_generator.engines import Sampling
from groupreplay_generator.engines.torch_engine import TorchEngine
from groupreplay_generator.generator import run_generator
from groupreplay_generator.settings import GeneratorSettings
from groupreplay_generator.tasks import create_task
from groupreplay_trainer.sections import MemorySettings, ModelSettings, OptimizerSettings
from groupreplay_trainer.settings import TrainerSettings
from groupreplay_trainer.step_log import TRAIN_LOG
from groupreplay_trainer.trainer import run_trainer

EVALUATIONS: Final = 12
EVALUATION_PROBLEMS: Final = 256
EVALUATION_ROLLOUTS: Final = 4
EVALUATION_SEED: Final = 0
"""The same held-out problems and random numbers for every run; no run trains on them."""
TABLE: Final = "rollouts"


def run_one(spec: RunSpec, *, server: str, folder: Path, checkpoint: Path) -> Result:
    """Train, evaluate, and remove what the run has stored."""
    torch.set_num_threads(1)
    logging.getLogger("groupreplay_trainer").setLevel(logging.ERROR)  # arms that collapse ring every alarm
    arm, run_dir = ARMS[spec.arm], folder / spec.key.replace("/", "-")
    shutil.rmtree(run_dir, ignore_errors=True)  # a run that was killed halfway begins anew
    run = f"{spec.key.replace('/', '-')}-{time.time_ns()}"
    settings = trainer_settings(spec, arm, server=server, run=run, run_dir=run_dir, checkpoint=checkpoint)
    cpu_before = time.process_time()
    _train(settings, generator_settings(spec, arm, server=server, run=run))
    cpu_seconds = time.process_time() - cpu_before
    with Client(server) as client:
        client.reset_table(run=run, table=TABLE)
    steps = [json.loads(line) for line in (run_dir / TRAIN_LOG).read_text().splitlines()]
    evaluations = asyncio.run(_evaluate(spec, arm, steps, settings.weights_folder))
    shutil.rmtree(run_dir)
    return _result(spec, steps, evaluations, cpu_seconds)


def trainer_settings(
    spec: RunSpec, arm: Arm, *, server: str, run: str, run_dir: Path, checkpoint: Path
) -> TrainerSettings:
    """Return the trainer of a run; it keeps all weights, for the evaluations."""
    return TrainerSettings(
        server=server,
        run=run,
        table=TABLE,
        run_dir=run_dir,
        algorithm=arm.algorithm,
        preset=arm.preset,
        steps=spec.steps,
        batch_size=arm.batch_size,
        seed=spec.seed,
        keep_weights=spec.steps + 2,
        model=ModelSettings(path=str(checkpoint)),
        optimizer=OptimizerSettings(lr=spec.lr),
        loss=arm.loss,
        # Small pieces of like lengths: a third of what a batch of one width computes would be padding.
        memory=MemorySettings(max_rollouts_at_once=64),
        replay=arm.replay,
    )


def generator_settings(spec: RunSpec, arm: Arm, *, server: str, run: str) -> GeneratorSettings:
    """Return the generator of a run. Runs of a seed share problems and random numbers, whatever their arm."""
    return GeneratorSettings(
        server=server,
        run=run,
        table=TABLE,
        producer_id="experiment",
        task=spec.task,
        rollouts_per_prompt=arm.group_size,
        prompts_at_once=arm.batch_size,
        seed=spec.seed,
    )


def _train(trainer: TrainerSettings, generator: GeneratorSettings) -> None:
    """Run the generator beside the trainer until the last step is done."""
    failures: list[BaseException] = []
    stop = threading.Event()

    async def both() -> None:
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()

        def train() -> None:
            try:
                run_trainer(trainer, stop=stop)
            except BaseException as error:  # noqa: BLE001 - raised again below, in the thread that waits
                failures.append(error)
            loop.call_soon_threadsafe(ended.set)

        thread = threading.Thread(target=train)
        thread.start()
        generating = asyncio.create_task(run_generator(generator))
        waiting = asyncio.create_task(ended.wait())
        await asyncio.wait({generating, waiting}, return_when=asyncio.FIRST_COMPLETED)
        stop.set()
        if not generating.done():
            generating.cancel()
        results = await asyncio.gather(generating, waiting, return_exceptions=True)
        failures.extend(
            error
            for error in results
            if isinstance(error, BaseException) and not isinstance(error, asyncio.CancelledError)
        )

    asyncio.run(both())
    if failures:
        raise failures[0]


async def _evaluate(spec: RunSpec, arm: Arm, steps: Sequence[dict[str, Any]], weights: Path) -> list[Evaluation]:
    """Measure the policy before the first step and twelve times from there to the last."""
    task = create_task(spec.task, seed=EVALUATION_SEED)
    problems = [task.problem(index, "heldout") for index in range(EVALUATION_PROBLEMS)]
    sampling = Sampling(max_response_tokens=task.max_response_tokens, seed=EVALUATION_SEED)
    evaluations = []
    async with TorchEngine(weights / "policy-000000.safetensors") as engine:
        for version in sorted({round(spec.steps * part / EVALUATIONS) for part in range(EVALUATIONS + 1)}):
            await engine.load_weights(weights / f"policy-{version:06d}.safetensors", version)
            prompts = [problem.prompt_text for problem in problems]
            results = await engine.generate(prompts, rollouts_per_prompt=EVALUATION_ROLLOUTS, sampling=sampling)
            right = [
                task.score(problem, completion.text) == 1.0
                for problem, result in zip(problems, results, strict=True)
                for completion in result.completions
            ]
            done = steps[:version]
            evaluations.append(
                Evaluation(
                    step=version,
                    accuracy=sum(right) / len(right),
                    rollouts=arm.group_size * sum(step["fresh"] for step in done),
                    seconds=round(sum(step["waiting_s"] + step["training_s"] for step in done), 2),
                )
            )
    return evaluations


def _result(
    spec: RunSpec, steps: Sequence[dict[str, Any]], evaluations: Sequence[Evaluation], cpu_seconds: float
) -> Result:
    fresh = sum(step["fresh"] for step in steps)
    trained = max(1, sum(step["groups"] for step in steps))
    known = {
        name: [step[name] for step in steps if step[name] is not None]
        for name in ("ess", "kl_k3", "weight_max", "staleness_mean", "staleness_max")
    }
    return Result(
        key=spec.key,
        phase=spec.phase,
        task=spec.task,
        checkpoint=spec.checkpoint,
        arm=spec.arm,
        lr=spec.lr,
        seed=spec.seed,
        evaluations=evaluations,
        updates=steps[-1]["total_updates"],
        rollouts=evaluations[-1].rollouts,
        seconds=evaluations[-1].seconds,
        cpu_seconds=round(cpu_seconds, 1),
        effective_share=round(sum(step["fresh_effective"] for step in steps) / max(1, fresh), 4),
        replay_share=round(sum(step["refilled"] for step in steps) / trained, 4),
        staleness_mean=round(mean(known["staleness_mean"] or [0.0]), 3),
        staleness_max=max(known["staleness_max"], default=0),
        ess_min=min(known["ess"], default=None),
        kl_k3_max=max(known["kl_k3"], default=None),
        weight_max=max(known["weight_max"], default=None),
        skipped_updates=sum(step["skipped_updates"] for step in steps),
    )
