"""A task whose verifier does what the response says: give a reward, or fail in one of the ways that verifiers do."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable

from groupreplay_generator.tasks import Problem, Split


class ObedientTask:
    """The response is a command to the verifier; `reward 0.5` scores 0.5."""

    name = "obedient"
    max_response_tokens = 8

    def __init__(self, seed: int = 0) -> None:
        """Remember the seed, so that a test can see it."""
        self.seed = seed

    def problem_count(self, split: Split) -> int:
        """Return 4."""
        return 4

    def problem(self, index: int, split: Split) -> Problem[str]:
        """Return a problem that the tiny model can read."""
        return Problem(prompt_id=f"{split}-{index}", prompt_text=f"{index}+1=", answer=str(index + 1))

    def score(self, problem: Problem[str], response_text: str) -> float:
        """Do as the response says."""
        command, _, argument = response_text.partition(" ")
        if command == "seed":
            return float(self.seed)
        return COMMANDS[command](argument)


def hang(argument: str) -> float:
    """Never return."""
    while True:
        pass


def hang_in_c(argument: str) -> float:
    """Hold the interpreter's lock, so that no other thread and no signal handler runs."""
    return float(ctypes.PyDLL(None).sleep(1000))


def fork_and_hang(argument: str) -> float:
    """Leave a child behind."""
    os.fork()
    time.sleep(1000)
    return 1.0


def sleep(argument: str) -> float:
    """Take some seconds, then find the response correct."""
    time.sleep(float(argument))
    return 1.0


def die(argument: str) -> float:
    """End as if for lack of memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    return 1.0


def crash(argument: str) -> float:
    """End as an extension with a bug ends."""
    return float(len(ctypes.string_at(0)))


def leave(argument: str) -> float:
    """End by an exception that is none of `Exception`."""
    sys.exit(3)


def print_and_read(argument: str) -> float:
    """Use the streams that are everybody's."""
    print(argument, flush=True)
    return float(not sys.stdin.read())


def fail(argument: str) -> float:
    """Raise."""
    raise LookupError(argument)


COMMANDS: dict[str, Callable[[str], float]] = {
    "reward": float,
    "hang": hang,
    "hang-in-c": hang_in_c,
    "fork-and-hang": fork_and_hang,
    "slow": sleep,
    "die": die,
    "crash": crash,
    "exit": leave,
    "print": print_and_read,
    "pid": lambda argument: float(os.getpid()),
    "raise": fail,
    "words": lambda argument: argument,  # type: ignore[dict-item,return-value]
}


class FailsByProblem(ObedientTask):
    """A verifier that hangs, dies or raises, depending on the problem, whatever the response is."""

    name = "fails-by-problem"

    def score(self, problem: Problem[str], response_text: str) -> float:
        """Fail in a way of the problem's, but for one problem, that scores 1."""
        commands = ("hang", "die", "raise on purpose", "reward 1")
        return super().score(problem, commands[int(problem.prompt_id[-1])])


class BrokenTask(ObedientTask):
    """A task that cannot even be made in a worker."""

    def __init__(self) -> None:
        """Fail anywhere but in the tests' own process."""
        super().__init__()
        if "pytest" not in sys.modules:
            raise RuntimeError("not here")


class Unpicklable(ObedientTask):
    """A task whose answers cannot leave their process."""

    def problem(self, index: int, split: Split) -> Problem[str]:
        """Return a problem with a function for an answer."""
        return Problem(prompt_id=f"{split}-{index}", prompt_text="1+1=", answer=lambda: "2")  # type: ignore[arg-type]
