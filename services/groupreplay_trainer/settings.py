"""The settings of the trainer service. Imports no torch, so that `--help` is quick."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from groupreplay import Durability, Fill, InvalidRequestError, TableConfig
from groupreplay.groups import check_name

Algorithm = Literal["popo", "popo-pi-old", "popo-mu", "grpo", "grpo-filter", "dapo"]
Preset = Literal["faithful", "robust"]

_FILLS: dict[Algorithm, Fill] = {
    "popo": Fill.REPLAY,
    "popo-pi-old": Fill.REPLAY,
    "popo-mu": Fill.REPLAY,
    "grpo": Fill.KEEP,
    "grpo-filter": Fill.NONE,
    "dapo": Fill.RESAMPLE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSettings:
    """What to train, on which batches, and where to keep it.

    Raises:
        InvalidRequestError: a number is out of range, or a name has characters that the service refuses.
    """

    server: str = "127.0.0.1:50051"
    """Address of the replay service, host:port."""
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

    model: str = "builtin:addition"
    """Model to start from: builtin:TASK, or the path of a checkpoint."""
    algorithm: Algorithm = "popo"
    """Loss, and fill rule of a table that this trainer creates. popo: replay in the slots of ineffective groups, with
    decoupled importance sampling; popo-pi-old, popo-mu: the same replay uncorrected, or corrected by a coupled ratio;
    grpo: fresh groups only; grpo-filter: effective ones only; dapo: fresh groups until a batch of effective ones."""
    preset: Preset = "faithful"
    """Behaviour weights of popo. faithful: token level, uncapped; robust: truncated at 2."""
    advantages: Literal["grpo", "dr-grpo", "rloo"] = "grpo"
    """How rewards become advantages."""

    steps: int = 120
    """Training steps of the whole run, those before a restart included."""
    batch_size: int = 64
    """Groups in a batch."""
    minibatches: int = 4
    """Optimizer updates in a step; fewer where a batch has fewer groups."""
    max_rollouts_at_once: int = 256
    """Rollouts in one forward pass; lower it where memory is short. Does not change the result."""
    lr: float = 1e-4
    """Learning rate of AdamW."""
    weight_decay: float = 0.1
    """Weight decay of AdamW."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    clip_low: float = 0.2
    """Lower half-width of the trust region."""
    clip_high: float = 0.28
    """Upper half-width of the trust region."""
    dual_clip: float | None = None
    """Bound on the surrogate of negative advantages, in multiples of the advantage; above 1. Off by default."""
    entropy_coefficient: float = 0.0
    """Weight of the entropy bonus."""
    temperature: float = 1.0
    """Temperature that the generators sample at; log probabilities are recomputed at the same."""

    replay_capacity: int | None = None
    """Replay groups that a table created here keeps; by default 4 * batch_size."""
    max_staleness: int | None = None
    """Policy versions after which its groups are dropped; unlimited by default."""
    max_times_sampled: int | None = None
    """Deliveries after which its groups leave; unlimited by default."""
    ahead_groups: int | None = 0
    """Groups that generators may run ahead of the trainer. 0: fresh groups are strictly on-policy."""
    durability: Literal["memory", "aof", "replicas"] = "memory"
    """What inserts into a table created here, and commits, have reached when they are acknowledged."""

    rewind: bool = False
    """Where the run is ahead of the newest checkpoint in run_dir, undo its later steps rather than refuse to start: its
    policy clock goes back, and groups of later policies leave its tables."""

    lease_s: float = 600.0
    """Seconds after which the groups of a trainer that fell silent go back. Extended while it works."""
    report_s: float = 60.0
    """Seconds between two log lines about what the trainer waits for."""
    call_timeout_s: float = 30.0
    """Seconds until a single call to the service is given up and started anew."""
    keep_weights: int = 4
    """Published policy versions kept, at least 2."""
    seed: int = 0
    """Seed of the minibatch order."""
    threads: int | None = None
    """Processor threads of torch; all by default."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for what in ("run", "table", "trainer_id"):
            check_name(getattr(self, what), what)
        check_name(self.lease_id(self.steps), "lease id")
        for name, low in (("steps", 0), ("batch_size", 1), ("minibatches", 1), ("max_rollouts_at_once", 1)):
            self._check_at_least(name, low)
        for name, low in (("keep_weights", 2), ("weight_decay", 0), ("entropy_coefficient", 0), ("seed", 0)):
            self._check_at_least(name, low)
        for name in ("lr", "max_grad_norm", "temperature", "report_s", "call_timeout_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidRequestError(f"{name} {getattr(self, name)} must be finite and above 0")
        if not 1 <= self.lease_s <= 86400:
            raise InvalidRequestError(f"lease_s {self.lease_s} must be 1 to 86400 seconds")
        if self.threads is not None:
            self._check_at_least("threads", 1)
        if self.preset == "robust" and self.algorithm != "popo":
            raise InvalidRequestError(
                f"preset 'robust' caps behaviour weights, which algorithm {self.algorithm!r} does not have"
            )

    def lease_id(self, step: int) -> str:
        """Return the lease of a step: the same after a restart, so that its batch comes back."""
        return f"{self.trainer_id}-{step:06d}"

    def table_config(self) -> TableConfig:
        """Return the table that this trainer creates where there is none."""
        return TableConfig(
            fill=_FILLS[self.algorithm],
            replay_capacity=4 * self.batch_size if self.replay_capacity is None else self.replay_capacity,
            max_staleness=self.max_staleness,
            max_times_sampled=self.max_times_sampled,
            ahead_groups=self.ahead_groups,
            durability=Durability(self.durability),
        )

    @property
    def weights_folder(self) -> Path:
        """Where weights are published."""
        return self.run_dir / "weights" if self.weights_dir is None else self.weights_dir

    def _check_at_least(self, name: str, low: float) -> None:
        value = getattr(self, name)
        if not low <= value < math.inf:
            raise InvalidRequestError(f"{name} {value} must be at least {low}")
