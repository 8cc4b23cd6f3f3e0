"""Tasks: problems with verifiable rewards. `create_task` makes one by name."""

import difflib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

from groupreplay_generator.tasks.addition import AdditionTask
from groupreplay_generator.tasks.base import Problem, SolvableTask, Split, Task
from groupreplay_generator.tasks.countdown import CountdownTask
from groupreplay_generator.tasks.geometry import GeometryTask
from groupreplay_generator.tasks.math_task import PREFIX as MATH
from groupreplay_generator.tasks.math_task import MathTask
from groupreplay_generator.tasks.own_task import load_own_task
from groupreplay_generator.tasks.reasoning_gym_task import PREFIX as REASONING_GYM
from groupreplay_generator.tasks.reasoning_gym_task import ReasoningGymTask

__all__ = ["TASK_FORMS", "Problem", "SolvableTask", "Split", "Task", "create_task", "task_names"]

TASK_FORMS: Final = ("reasoning-gym:NAME", "math:PATH.jsonl", "math:hf:DATASET", "package.module:Class")
"""What `create_task` takes beside the names of `task_names`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    """What a generated task is made with; each task takes what it knows."""

    seed: int
    train_problems: int
    heldout_problems: int


_TASKS: Final[dict[str, Callable[[_Options], Task[Any]]]] = {
    "addition": lambda options: AdditionTask(**asdict(options)),
    # an alias: the task calls itself countdown3
    "countdown": lambda options: CountdownTask(numbers=3, **asdict(options)),
    "countdown3": lambda options: CountdownTask(numbers=3, **asdict(options)),
    "countdown4": lambda options: CountdownTask(numbers=4, **asdict(options)),
    "geometry": lambda options: GeometryTask(style="words", **asdict(options)),
    "geometry-tiny": lambda options: GeometryTask(style="tiny", **asdict(options)),
}


def task_names() -> tuple[str, ...]:
    """Return the names that `create_task` knows, sorted; it also takes the `TASK_FORMS`."""
    return tuple(sorted(_TASKS))


def create_task(name: str, *, seed: int = 0, train_problems: int = 2000, heldout_problems: int = 256) -> Task[Any]:
    """Return the task `name`; the same name and seed give the same problems everywhere.

    Args:
        name: one of `task_names`, or of one of the `TASK_FORMS`.
        seed: another seed gives other problems, where they are generated.
        train_problems, heldout_problems: how many of each split, where they are generated.

    Raises:
        ValueError: there is no task of that name, or its problems cannot be read or made.
        FileNotFoundError: there is no such file.
        ImportError: the package that it needs is not installed.
    """
    options = _Options(seed=seed, train_problems=train_problems, heldout_problems=heldout_problems)
    if name in _TASKS:
        return _TASKS[name](options)
    kind, colon, rest = name.partition(":")
    if not colon or not kind or not rest:
        near = difflib.get_close_matches(name, _TASKS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"unknown task {name!r}; {hint}known: {', '.join(task_names())}, {', '.join(TASK_FORMS)}")
    if kind == REASONING_GYM:
        return ReasoningGymTask(rest, **asdict(options))
    if kind == MATH:
        return MathTask(rest)
    return load_own_task(name, asdict(options))
