"""Tasks of one's own: `package.module:Class`."""

import inspect
import os
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any, cast

from groupreplay_generator.tasks.base import Problem, Split, Task

_METHODS = ("problem_count", "problem", "score")


def load_own_task(path: str, options: Mapping[str, int]) -> Task[Any]:
    """Return an instance of the class at `module:Class`, found on the module path or in the current folder.

    Args:
        path: the module's dotted name, a colon, the name of a class or of a function that returns a task.
        options: keyword arguments; it is given those that it accepts.

    Raises:
        ValueError: there is no such module or class, or what it makes is no task; the message says what is missing.
    """
    factory = _find(path)
    return _checked(path, factory(**_accepted(factory, options)))


def _find(path: str) -> Any:
    module_name, _, attribute = path.partition(":")
    if os.getcwd() not in sys.path:  # noqa: PTH109 - sys.path holds text
        sys.path.append(os.getcwd())  # noqa: PTH109  `groupreplay` is a script, whose own folder Python looks in
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ValueError(
            f"task {path!r}: there is no module {error.name!r} on the module path or in the folder {os.getcwd()}"  # noqa: PTH109
        ) from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        known = ", ".join(name for name, value in vars(module).items() if _is_own_class(value, module_name))
        raise ValueError(f"task {path!r}: module {module_name!r} has no class {attribute!r}; its classes: {known}")
    return factory


def _is_own_class(value: object, module_name: str) -> bool:
    return inspect.isclass(value) and value.__module__ == module_name


def _accepted(factory: Any, options: Mapping[str, int]) -> dict[str, int]:
    """Return those options that the factory takes."""
    parameters = inspect.signature(factory).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(options)
    return {name: value for name, value in options.items() if name in parameters}


def _checked(path: str, task: Any) -> Task[Any]:
    """Return the task if it has what the loop calls, and can give its first problem."""
    if not (isinstance(getattr(task, "name", None), str) and 0 < len(task.name.encode()) <= 128):
        raise ValueError(f"task {path!r}: it needs a `name`, text of 1 to 128 bytes that its groups will carry")
    limit = getattr(task, "max_response_tokens", None)
    if not isinstance(limit, int) or limit < 1:
        raise ValueError(f"task {path!r}: it needs `max_response_tokens`, an integer >= 1, got {limit!r}")
    if missing := [name for name in _METHODS if not callable(getattr(task, name, None))]:
        raise ValueError(f"task {path!r}: it has no method {' and no method '.join(missing)}")
    _check_split(path, task, "train")
    _check_split(path, task, "heldout")
    return cast(Task[Any], task)


def _check_split(path: str, task: Any, split: Split) -> None:
    count = task.problem_count(split)
    if not isinstance(count, int) or count < 0:
        raise ValueError(f"task {path!r}: problem_count({split!r}) is {count!r}, not a number of problems")
    if count and not isinstance(problem := task.problem(0, split), Problem):
        raise ValueError(f"task {path!r}: problem(0, {split!r}) is a {type(problem).__name__}, not a Problem")
