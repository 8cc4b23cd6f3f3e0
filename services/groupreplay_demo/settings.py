"""Settings of the demo: flags, or GROUPREPLAY_DEMO_* environment variables."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cyclopts import Parameter

from groupreplay.errors import InvalidRequestError

Algorithm = Literal["popo", "grpo", "grpo-filter", "dapo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPreset:
    """What a demo run of a task looks like. On addition a rate of 2e-4 learns no faster, and 5e-4 collapses."""

    steps: int
    lr: float
    preset: Literal["faithful", "robust"]
    batch_size: int = 64
    rollouts_per_prompt: int = 8
    minibatches: int = 4


PRESETS = {
    "addition": TaskPreset(steps=280, lr=1e-4, preset="robust"),
    "countdown3": TaskPreset(steps=100, lr=1e-4, preset="robust"),
}


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSettings:
    """What to show.

    Raises:
        InvalidRequestError: the settings contradict each other.
    """

    task: Literal["addition", "countdown3"] = "addition"
    """What the tiny model learns."""
    algorithm: Algorithm = "popo"
    """popo refills ineffective slots from replay; grpo keeps them, grpo-filter leaves them empty, dapo samples on."""
    compare: bool = False
    """Run the algorithm and GRPO one after the other, into one picture."""
    seed: int = 0
    """Seed of training problems, sampling and minibatch order; held-out problems are the same for every seed."""
    steps: int | None = None
    """Training steps. Default: what the task needs to learn something."""
    chaos: bool = False
    """Kill the service, the generator and the trainer, once each, in the middle of the run."""
    keep_running: bool = False
    """Leave the service up at the end, until Ctrl-C."""
    run_dir: Path = Path("runs/demo")
    """Folder for everything the demo writes. What an earlier demo left there is replaced."""
    grpc_listen: str = "127.0.0.1:50051"
    """host:port for the service's gRPC; port 0 takes a free one."""
    http_listen: str = "127.0.0.1:8080"
    """host:port for the service's health and metrics; port 0 takes a free one."""

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise InvalidRequestError(f"steps {self.steps} must be at least 1")
        if self.compare and self.algorithm == "grpo":
            raise InvalidRequestError("--compare runs GRPO beside --algorithm; choose popo, grpo-filter or dapo")

    @property
    def preset(self) -> TaskPreset:
        """The preset of the task."""
        return PRESETS[self.task]

    @property
    def steps_to_run(self) -> int:
        """Training steps of one run."""
        return self.preset.steps if self.steps is None else self.steps

    @property
    def algorithms(self) -> list[Algorithm]:
        """What is run, in order."""
        return [self.algorithm, "grpo"] if self.compare else [self.algorithm]
