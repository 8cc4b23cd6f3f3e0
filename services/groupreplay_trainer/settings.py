"""The settings of the trainer service. Imports no torch, so that `--help` is quick."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from groupreplay import Connection, TableConfig
from groupreplay.groups import check_name
from groupreplay.logs import LogFormat
from groupreplay.tracing import TraceSettings
from groupreplay_trainer.algorithms import ARMS, Algorithm, Arm
from groupreplay_trainer.loss_config import LossConfig
from groupreplay_trainer.sections import (
    AlarmSettings,
    LogRatioGroups,
    LossSettings,
    MemorySettings,
    MetricsSettings,
    ModelSettings,
    OptimizerSettings,
    Preset,
    ReplaySettings,
    check,
    check_from,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSettings(Connection):
    """What to train, on which batches, and where to keep it.

    Raises:
        InvalidRequestError: a number is out of range, two settings contradict each other, or a name has characters
            that the service refuses.
    """

    run: str = "default"
    """Training run: its policy clock and its tables."""
    table: str = "rollouts"
    """Table to take batches from; created if it is not there."""
    run_dir: Path = Path("runs/default")
    """Folder for checkpoints, logs and weights. The same folder again continues the run."""
    weights_dir: Path | None = None
    """Folder to publish weights in, of this run alone; generators must be able to read it. Default: run_dir/weights."""
    trainer_id: str = "trainer"
    """Names this trainer's leases. Must stay the same over restarts, and differ between trainers of one table."""

    algorithm: Algorithm = "popo"
    """Loss, and fill rule of a table that this trainer creates. popo: replay in the slots of ineffective groups, with
    decoupled importance sampling; popo-pi-old, popo-mu: the same replay uncorrected, or corrected by a coupled ratio;
    popo-stale, popo-ineff, popo-kl: other replay, at least 10 versions old, or of any variance, or of the lowest KL
    first; grpo: fresh groups only; grpo-filter: effective ones only; dapo: fresh groups until a batch of effective
    ones."""
    preset: Preset = "faithful"
    """Behaviour weights of popo. faithful: token level, uncapped; robust: truncated at 2."""
    steps: int = 120
    """Training steps of the whole run, those before a restart included."""
    batch_size: int = 64
    """Groups in a batch."""
    seed: int = 0
    """Seed of the minibatch order."""
    threads: int | None = None
    """Processor threads of torch; all by default."""

    rewind: bool = False
    """Where the run is ahead of the newest checkpoint in run_dir, undo its later steps rather than refuse to start: its
    policy clock goes back, and groups of later policies leave its tables."""
    lease_s: float = 600.0
    """Seconds after which the groups of a trainer that fell silent go back. Extended while it works."""
    on_nonfinite: Literal["stop", "skip-step", "skip-update"] = "stop"
    """What to do with a step whose loss, gradient or weights are not finite; its batch is kept in run_dir/rejected.
    stop: undo the step, give its groups back and end; skip-step: undo it, count its groups as used and go on, but end
    at the third in a row; skip-update: leave out the one update whose loss or gradient it was, and keep no batch."""
    max_wait_s: float | None = None
    """Seconds to wait for a batch while the service answers, before giving up with what it says is missing. Unlimited
    by default."""
    feedback_log_ratios: LogRatioGroups = "sample"
    """Groups of each step whose log ratio of every token, proximal less behaviour log probability, goes to the service
    for people to look at, 2 bytes a token. off: none; sample: the one that the policy has moved furthest from, by its
    KL; all: every one that fits into a call, 1048576 tokens in all. Nothing is drawn by them."""
    report_s: float = 60.0
    """Seconds between two log lines about what the trainer waits for."""
    call_timeout_s: float = 30.0
    """Seconds until a single call to the service is given up and started anew."""
    keep_weights: int = 4
    """Published policy versions kept, at least 2."""
    progress: bool = True
    """Show a progress bar in place of a log line for each step, where standard error is a terminal."""
    log_format: LogFormat = "text"
    """text: lines for people; json: an object a line, for programs."""

    model: ModelSettings = field(default_factory=ModelSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    memory: MemorySettings = field(default_factory=MemorySettings)
    replay: ReplaySettings = field(default_factory=ReplaySettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    alarms: AlarmSettings = field(default_factory=AlarmSettings)
    trace: TraceSettings = field(default_factory=TraceSettings)

    def __post_init__(self) -> None:
        """Check the ranges, and that the sections go together."""
        for what in ("run", "table", "trainer_id"):
            check_name(getattr(self, what), what)
        check_name(self.lease_id(self.steps), "lease id")
        check_from(self, steps=0, batch_size=1, keep_weights=2, seed=0)
        for name in ("report_s", "call_timeout_s"):
            check(self, name, 0 < getattr(self, name) < float("inf"), "finite and above 0")
        check(self, "max_wait_s", self.max_wait_s is None or self.max_wait_s > 0, "above 0")
        check(self, "lease_s", 1 <= self.lease_s <= 86400, "1 to 86400 seconds")
        check(self, "threads", self.threads is None or self.threads >= 1, "at least 1")
        self.loss_config()
        self.table_config()

    def lease_id(self, step: int) -> str:
        """Return the lease of a step: the same after a restart, so that its batch comes back."""
        return f"{self.trainer_id}-{step:06d}"

    def loss_config(self) -> LossConfig:
        """Return what the loss is told."""
        return self.loss.config(self._arm, self.preset)

    def table_config(self) -> TableConfig:
        """Return the table that this trainer creates where there is none."""
        return self.replay.table_config(self._arm, batch_size=self.batch_size)

    @property
    def weights_folder(self) -> Path:
        """Where weights are published."""
        return self.run_dir / "weights" if self.weights_dir is None else self.weights_dir

    @property
    def _arm(self) -> Arm:
        return ARMS[self.algorithm]
