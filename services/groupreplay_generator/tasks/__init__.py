"""Tasks: problems with verifiable rewards. `create_task` makes one by name."""

from collections.abc import Callable
from typing import Any, Final

from groupreplay_generator.tasks.addition import AdditionTask
from groupreplay_generator.tasks.base import Problem, Split, Task
from groupreplay_generator.tasks.countdown import CountdownTask

__all__ = ["Problem", "Split", "Task", "create_task", "task_names"]

_TASKS: Final[dict[str, Callable[[int], Task[Any]]]] = {
    "addition": lambda seed: AdditionTask(seed=seed),
    "countdown": lambda seed: CountdownTask(numbers=3, seed=seed),  # an alias: the task calls itself countdown3
    "countdown3": lambda seed: CountdownTask(numbers=3, seed=seed),
    "countdown4": lambda seed: CountdownTask(numbers=4, seed=seed),
}


def task_names() -> tuple[str, ...]:
    """Return the names that `create_task` knows, sorted."""
    return tuple(sorted(_TASKS))


def create_task(name: str, *, seed: int = 0) -> Task[Any]:
    """Return the task `name`; the same name and seed give the same problems everywhere.

    Raises:
        ValueError: there is no task of that name.
    """
    if name not in _TASKS:
        raise ValueError(f"unknown task {name!r}; known: {', '.join(task_names())}")
    return _TASKS[name](seed)
