"""A process that trains in forks of itself, each of which gets a signal at a chosen point. Run by test_killed_trainer.

Reads one request a line, `{"settings": {...}, "signal": "SIGKILL", "at": 3}`, and answers with the fork's exit status,
negative for a signal. `at` counts the moments just before something that outlives the process: a call to the service,
a write to disk, a rename; with `"between": true` also those before a forward or backward pass and an update.
Forking saves importing torch for every life.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from groupreplay import Client
from groupreplay_trainer.command import train
from groupreplay_trainer.policy_model import TinyLMPolicy
from groupreplay_trainer.sections import MetricsSettings, ModelSettings, OptimizerSettings
from groupreplay_trainer.settings import TrainerSettings

LASTING: tuple[tuple[Any, str], ...] = (
    (Client, "next_batch"),
    (Client, "commit"),
    (Client, "advance_policy"),
    (os, "fsync"),
    (Path, "replace"),
)
PASSING: tuple[tuple[Any, str], ...] = (
    (TinyLMPolicy, "score"),
    (torch.Tensor, "backward"),
    (torch.optim.AdamW, "step"),
    (torch.optim.AdamW, "zero_grad"),
)
"""What changes nothing outside of the process."""


def signal_before(number: int, what: signal.Signals, points: Sequence[tuple[Any, str]]) -> None:
    """Make the process signal itself just before the given point, counted from 0."""
    left = number

    def signalling(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), what)
            left -= 1
            return original(*arguments, **named)

        return call

    for owner, name in points:
        setattr(owner, name, signalling(getattr(owner, name)))


def live(request: dict[str, Any]) -> NoReturn:
    """Train until killed or done, and end the process."""
    points = LASTING + PASSING if request.get("between") else LASTING
    signal_before(request["at"], signal.Signals[request["signal"]], points)
    settings = request["settings"]
    if "stderr" in settings:
        sys.stderr = Path(settings.pop("stderr")).open("w")  # noqa: SIM115 - it ends with the process
    metrics = settings.get("metrics", {})
    typed = {
        "run_dir": Path(settings["run_dir"]),
        "model": ModelSettings(**settings["model"]),
        "optimizer": OptimizerSettings(**settings["optimizer"]),
        "metrics": MetricsSettings(
            listen=metrics.get("listen"), tensorboard=Path(metrics["tensorboard"]) if metrics else None
        ),
    }
    status = train(TrainerSettings(**(settings | typed)))
    sys.stderr.flush()
    os._exit(status)


def main() -> None:
    """Serve requests until the input ends."""
    torch.set_num_threads(1)
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])  # imports 800 modules, which the forks share
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            live(json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
