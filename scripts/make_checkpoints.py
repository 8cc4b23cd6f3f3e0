"""Make the warm-started checkpoints that come with groupreplay_tinylm, by a few hundred supervised steps.

Reinforcement learning needs a policy that succeeds now and then. Each recipe stops where the model has begun to learn
its task and is right now and then. The same seed gives the same file to the byte, on the same version of
torch and kind of processor.
"""

import argparse
import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from groupreplay_generator.engines import Sampling
from groupreplay_generator.engines.torch_engine import TorchEngine
from groupreplay_generator.tasks import Problem, SolvableTask, Split, Task, create_task
from groupreplay_generator.tasks.addition import AdditionTask
from groupreplay_generator.tasks.countdown import CountdownTask
from groupreplay_generator.tasks.geometry import GeometryTask
from groupreplay_tinylm import CharTokenizer, TinyLM, TinyLMConfig, VisionConfig, builtin_checkpoint, save_checkpoint

BETAS: Final = (0.9, 0.98)
WEIGHT_DECAY: Final = 0.01
MAX_GRAD_NORM: Final = 1.0
WARMUP_STEPS: Final = 50
IGNORED: Final = -100
"""The label that cross_entropy passes over: the prompt and the padding are not learnt."""

TOKENIZER: Final = CharTokenizer()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How one checkpoint is made.

    Attributes:
        make_tasks: returns the tasks of one step for a seed; the batch is what they hold in their training splits.
        measured_tasks: names of the tasks that the result is measured on.
    """

    config: TinyLMConfig
    make_tasks: Callable[[int], Sequence[SolvableTask[Any]]]
    measured_tasks: tuple[str, ...]
    steps: int
    learning_rate: float


def addition_tasks(seed: int) -> Sequence[SolvableTask[Any]]:
    """Return 256 additions."""
    return [AdditionTask(seed=seed, train_problems=256, heldout_problems=1)]


def countdown_tasks(seed: int) -> Sequence[SolvableTask[Any]]:
    """Return 192 games with three numbers and 64 with four."""
    return [
        CountdownTask(numbers=3, seed=seed, train_problems=192, heldout_problems=1),
        CountdownTask(numbers=4, seed=seed, train_problems=64, heldout_problems=1),
    ]


def geometry_tasks(seed: int) -> Sequence[SolvableTask[Any]]:
    """Return 256 figures."""
    return [GeometryTask(style="tiny", seed=seed, train_problems=256, heldout_problems=1)]


RECIPES: Final = {
    "addition": Recipe(
        config=TinyLMConfig(vocab_size=TOKENIZER.vocab_size, layers=3, width=96, heads=3, max_positions=24),
        make_tasks=addition_tasks,
        measured_tasks=("addition",),
        steps=300,
        learning_rate=1e-3,
    ),
    "countdown": Recipe(
        config=TinyLMConfig(vocab_size=TOKENIZER.vocab_size, layers=4, width=128, heads=4, max_positions=40),
        make_tasks=countdown_tasks,
        measured_tasks=("countdown3", "countdown4"),
        steps=200,
        learning_rate=1e-3,
    ),
    "geometry-tiny": Recipe(
        config=TinyLMConfig(
            vocab_size=TOKENIZER.vocab_size,
            layers=2,
            width=96,
            heads=3,
            max_positions=48,
            vision=VisionConfig(image_size=24, patch_size=4),
        ),
        make_tasks=geometry_tasks,
        measured_tasks=("geometry-tiny",),
        steps=100,
        learning_rate=1e-3,
    ),
}


def main() -> None:
    """Make the checkpoints asked for on the command line."""
    arguments = parse_arguments()
    # The order of a sum depends on the number of threads, and after some hundred steps so does everything.
    torch.set_num_threads(1)
    for name in RECIPES if arguments.task == "all" else [arguments.task]:
        recipe = RECIPES[name]
        path = builtin_checkpoint(name)
        if arguments.output_dir is not None:
            path = arguments.output_dir / path.name
        path.parent.mkdir(parents=True, exist_ok=True)
        make_checkpoint(recipe, path, seed=arguments.seed, steps=arguments.steps, measure_every=arguments.measure_every)
        print(f"{name}: wrote {path}, {path.stat().st_size / 1e6:.2f} MB", flush=True)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=[*RECIPES, "all"], default="all", help="which checkpoint (default: all)")
    parser.add_argument("--output-dir", type=Path, help="folder to write to (default: the package itself)")
    parser.add_argument("--seed", type=int, default=0, help="of the first weights and of the problems (default: 0)")
    parser.add_argument("--steps", type=int, help="supervised steps (default: those of the recipe)")
    parser.add_argument("--measure-every", type=int, metavar="N", help="measure every N steps (default: at the end)")
    return parser.parse_args()


def make_checkpoint(recipe: Recipe, path: Path, *, seed: int, steps: int | None, measure_every: int | None) -> None:
    """Train a fresh model by `recipe`, write it to `path`, and print what it can do."""
    steps = recipe.steps if steps is None else steps
    torch.manual_seed(seed)
    model = TinyLM(recipe.config)
    optimizer = torch.optim.AdamW(model.parameters(), betas=BETAS, weight_decay=WEIGHT_DECAY)
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * min(1.0, step / WARMUP_STEPS)
        loss = train_step(model, optimizer, draw_batch(recipe, seed=seed, step=step))
        if step == steps or (measure_every is not None and step % measure_every == 0):
            save_checkpoint(path, model, dtype=torch.float16)
            print(f"step {step}: loss {loss:.3f}", flush=True)
            for name in recipe.measured_tasks:
                print(f"  {name}: {asyncio.run(describe(path, create_task(name)))}", flush=True)
        elif step % 50 == 0:
            print(f"step {step}: loss {loss:.3f}", flush=True)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Example:
    """A problem and the response to learn."""

    problem: Problem[Any]
    response: str


def draw_batch(recipe: Recipe, *, seed: int, step: int) -> list[Example]:
    """Return the examples of one step, all from training splits."""
    task_seed = random.Random(f"{seed}/{step}").getrandbits(32)
    return [
        Example(problem=problem, response=task.reference_response(problem))
        for task in recipe.make_tasks(task_seed)
        for problem in problems_of(task, "train", task.problem_count("train"))
    ]


def train_step(model: TinyLM, optimizer: torch.optim.Optimizer, examples: list[Example]) -> float:
    """Fit the responses, given the prompts, by one update; return the mean loss per response token."""
    prompts = [TOKENIZER.encode(example.problem.prompt_text) for example in examples]
    responses = [[*TOKENIZER.encode(example.response), TOKENIZER.eos_id] for example in examples]
    both = list(zip(prompts, responses, strict=True))
    inputs = pad_sequence([torch.tensor(prompt + response) for prompt, response in both], batch_first=True)
    labels = pad_sequence(
        [torch.tensor([IGNORED] * len(prompt) + response) for prompt, response in both],
        batch_first=True,
        padding_value=IGNORED,
    )
    images = images_of([example.problem for example in examples])
    logits = model(inputs[:, :-1], images_BHWC=None if images is None else torch.from_numpy(np.stack(images)))
    loss = functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
    optimizer.step()
    return loss.item()


async def describe(path: Path, task: Task[Any]) -> str:
    """Say how good the checkpoint at `path` is, sampling at temperature 1."""
    heldout = await rewards(path, task, "heldout", problems=256, rollouts=8)
    train = await rewards(path, task, "train", problems=512, rollouts=8)
    effective = (train.std(axis=1) > 1e-6).mean()
    return f"held-out accuracy {(heldout == 1).mean():.3f}, effective groups of 8 in training {effective:.2f}"


async def rewards(path: Path, task: Task[Any], split: Split, *, problems: int, rollouts: int) -> np.ndarray:
    """Return the reward of every rollout, [problems, rollouts]."""
    drawn = problems_of(task, split, problems)
    async with TorchEngine(path) as engine:
        results = await engine.generate(
            [problem.prompt_text for problem in drawn],
            images=images_of(drawn),
            rollouts_per_prompt=rollouts,
            sampling=Sampling(max_response_tokens=task.max_response_tokens, seed=0),
        )
    return np.array(
        [
            [task.score(problem, completion.text) for completion in result.completions]
            for problem, result in zip(drawn, results, strict=True)
        ]
    )


def problems_of(task: Task[Any], split: Split, count: int) -> list[Problem[Any]]:
    """Return the first `count` problems of a split."""
    return [task.problem(index, split) for index in range(count)]


def images_of(problems: Sequence[Problem[Any]]) -> list[np.ndarray] | None:
    """Return the image of every problem; None where they have none."""
    images = [problem.image for problem in problems if problem.image is not None]
    return images or None


if __name__ == "__main__":
    main()
