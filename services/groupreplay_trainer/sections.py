"""The sections of the trainer's settings. Imports no torch, so that `--help` is quick."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from groupreplay import Durability, InvalidRequestError, PrioritySource, Sampler, TableConfig
from groupreplay_trainer.algorithms import Arm
from groupreplay_trainer.loss_config import LossConfig, Objective, WeightLevel

Preset = Literal["faithful", "robust"]
LogRatioGroups = Literal["off", "sample", "all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """What is trained."""

    path: str = "builtin:addition"
    """Model to start from: builtin:TASK, the path of a TinyLM checkpoint, the folder of a Hugging Face model, or its
    name on the hub, OWNER/MODEL. The settings below are for Hugging Face models; a TinyLM is float32 on the CPU."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """What the model is computed and published in, as by the inference engine. The weights in training are float32."""
    device: str = "auto"
    """Where it is computed: cpu, cuda, cuda:1. auto: a CUDA device where there is one."""
    attention: str = "sdpa"
    """Attention implementation, in the words of transformers: sdpa, eager, flash_attention_2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSettings:
    """How gradients become weights: AdamW, and its learning rate over the run.

    Raises:
        InvalidRequestError: a number is out of range.
    """

    lr: float = 1e-4
    """Learning rate of AdamW, the highest of the schedule."""
    weight_decay: float = 0.1
    """Weight decay of AdamW."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's two moments."""
    eps: float = 1e-8
    """Added to the denominator by AdamW."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after the warm-up: stays, or falls to final_lr_ratio * lr at the last step."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises from lr / (warmup_steps + 1) to lr."""
    final_lr_ratio: float = 0.0
    """Share of lr that a falling schedule ends at."""
    minibatches: int = 4
    """Optimizer updates in a step; fewer where a batch has fewer groups."""
    minibatch_unit: Literal["group", "rollout"] = "group"
    """What stays together when a batch is cut into minibatches."""

    def __post_init__(self) -> None:
        for name in ("lr", "eps", "max_grad_norm"):
            check(self, name, 0 < getattr(self, name) < math.inf, "finite and above 0")
        check_from(self, minibatches=1, warmup_steps=0, weight_decay=0)
        check(self, "betas", all(0 <= beta < 1 for beta in self.betas), "two numbers in [0, 1)")
        check(self, "final_lr_ratio", 0 <= self.final_lr_ratio <= 1, "in [0, 1]")

    def lr_at(self, step: int, *, steps: int) -> float:
        """Return the learning rate of a training step, 1 to `steps`. It depends on nothing else, so a restart keeps it.

        Args:
            step: the first is 1.
            steps: the last one, at which a falling schedule ends.
        """
        if step <= self.warmup_steps:
            return self.lr * step / (self.warmup_steps + 1)
        if self.schedule == "constant":
            return self.lr
        done = min(1.0, (step - self.warmup_steps - 1) / max(1, steps - self.warmup_steps - 1))
        height = 1 - done if self.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.lr * (self.final_lr_ratio + (1 - self.final_lr_ratio) * height)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSettings:
    """What is optimised.

    Raises:
        InvalidRequestError: a number is out of range.
    """

    objective: Literal["decoupled", "proximal", "coupled"] | None = None
    """Whether behaviour weights enter: proximal / behaviour as a factor (decoupled), not at all (proximal), or by
    clipping current / behaviour (coupled). Default: the algorithm's, decoupled for popo."""
    advantages: Literal["grpo", "dr-grpo", "rloo"] = "grpo"
    """How rewards become advantages."""
    temperature: float = 1.0
    """Temperature that the generators sample at; log probabilities are recomputed at the same."""
    clip_low: float = 0.2
    """Lower half-width of the trust region."""
    clip_high: float = 0.28
    """Upper half-width of the trust region."""
    dual_clip: float | None = None
    """Bound on the surrogate of negative advantages, in multiples of the advantage; above 1. Off by default."""
    weight_level: Literal["token", "sequence-sum", "sequence-mean"] = "token"
    """What shares one behaviour weight: a token, or a response by the sum or the mean of its log ratios."""
    weight_cap: float | None = None
    """Behaviour weights above this are lowered to it. Default: as the preset says."""
    weight_bounds: tuple[float, float] | None = None
    """Tokens whose behaviour weight lies outside these two bounds are left out. Off by default."""
    veto_below: float | None = None
    """A response with any token of behaviour weight below this is left out, for example 1e-4. Off by default."""
    entropy_coefficient: float = 0.0
    """Weight of the entropy bonus."""
    kl_coefficient: float = 0.0
    """Weight of the KL to the reference policy; above 0 the reference is kept in memory and scores every batch."""
    reference: str | None = None
    """Reference policy: a path as of model.path. Default: the weights the run started from."""

    def __post_init__(self) -> None:
        check(self, "temperature", 0 < self.temperature < math.inf, "finite and above 0")
        check_from(self, entropy_coefficient=0, kl_coefficient=0)
        if self.reference is not None and not self.kl_coefficient:
            raise InvalidRequestError(f"reference {self.reference!r} is not used while kl_coefficient is 0")

    def config(self, arm: Arm, preset: Preset) -> LossConfig:
        """Return the loss of an algorithm.

        Raises:
            InvalidRequestError: a number is out of range, or limits weights that the algorithm does not have.
        """
        objective = arm.objective if self.objective is None else Objective(self.objective)
        if preset == "robust" and objective is not Objective.DECOUPLED:
            raise InvalidRequestError(
                f"preset 'robust' caps behaviour weights, which objective {objective.value!r} does not have"
            )
        base = LossConfig.robust() if preset == "robust" else LossConfig.faithful()
        try:
            return replace(
                base,
                objective=objective,
                clip_low=self.clip_low,
                clip_high=self.clip_high,
                dual_clip=self.dual_clip,
                weight_level=WeightLevel(self.weight_level),
                weight_cap=base.weight_cap if self.weight_cap is None else self.weight_cap,
                weight_bounds=self.weight_bounds,
                veto_below=self.veto_below,
            )
        except ValueError as error:
            raise InvalidRequestError(f"loss: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySettings:
    """What fits into the memory of the machine. Nothing here changes the result, but for rounding.

    Raises:
        InvalidRequestError: a number is out of range.
    """

    tokens_at_once: int = 8192
    """Tokens in one forward pass, prompts and padding included; lower it where memory is short. A single rollout that
    is longer goes through alone."""
    max_rollouts_at_once: int | None = None
    """Rollouts in one forward pass; any number by default."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass of a Hugging Face model: less memory for about a third more time."""
    packing: Literal["padded", "packed"] = "padded"
    """padded: each rollout is a row as wide as the longest of its pass; packed: all rollouts of a pass in one row, for
    Hugging Face models whose attention keeps them apart."""

    def __post_init__(self) -> None:
        check_from(self, tokens_at_once=1)
        if self.max_rollouts_at_once is not None:
            check_from(self, max_rollouts_at_once=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySettings:
    """The table that this trainer creates where there is none; an existing one keeps the limits it has."""

    capacity: int | None = None
    """Replay groups kept. Default: four batches, or for popo-stale what its minimal staleness needs."""
    sampler: Literal["recency", "prioritized", "uniform", "fifo", "lifo", "max_priority", "min_divergence"] | None = (
        None
    )
    """The order in which replay groups are drawn. Default: the algorithm's, recency for popo."""
    priority: Literal["caller", "reward_variance", "advantage"] = "caller"
    """Where a group's priority comes from: the generator, or its rewards."""
    alpha: float = 1.0
    """Exponent of the priority in a group's weight."""
    recency_decay: float = 1.0
    """Factor of a group's weight for each policy version it is old, in (0, 1]."""
    use_decay: float = 1.0
    """Factor of a group's weight for each of its deliveries, in (0, 1]."""
    kl_decay: float = 0.0
    """The weight is multiplied by exp(-kl_decay * kl), with the KL that this trainer feeds back."""
    ess_alpha: float = 0.0
    """The weight is multiplied by ess**ess_alpha, with the effective sample size that this trainer feeds back."""
    min_staleness: int | None = None
    """Groups younger than this many policy versions are not drawn. Default: the algorithm's, 10 for popo-stale."""
    max_staleness: int | None = None
    """Policy versions after which groups are dropped; unlimited by default."""
    max_times_sampled: int | None = None
    """Deliveries after which groups leave; unlimited by default."""
    max_kl: float | None = None
    """Groups with a KL above this are not drawn; unlimited by default."""
    ineffective: bool | None = None
    """Whether groups without reward variance are replayed too. Default: the algorithm's, true for popo-ineff."""
    ahead_groups: int | None = 0
    """Groups that generators may run ahead of the trainer. 0: fresh groups are strictly on-policy."""
    durability: Literal["memory", "aof", "replicas"] = "memory"
    """What inserts, and commits, have reached when they are acknowledged."""

    def table_config(self, arm: Arm, *, batch_size: int) -> TableConfig:
        """Return the table for an algorithm.

        Raises:
            InvalidRequestError: a limit is out of range, or two contradict each other.
        """
        min_staleness = arm.min_staleness if self.min_staleness is None else self.min_staleness
        default_capacity = batch_size * max(4, min_staleness + 2)
        return TableConfig(
            fill=arm.fill,
            sampler=Sampler(self.sampler or arm.sampler),
            replay_capacity=default_capacity if self.capacity is None else self.capacity,
            priority=PrioritySource(self.priority),
            alpha=self.alpha,
            recency_decay=self.recency_decay,
            use_decay=self.use_decay,
            kl_decay=self.kl_decay,
            ess_alpha=self.ess_alpha,
            min_staleness=min_staleness,
            max_staleness=self.max_staleness,
            max_times_sampled=self.max_times_sampled,
            max_kl=self.max_kl,
            replay_ineffective=arm.replay_ineffective if self.ineffective is None else self.ineffective,
            ahead_groups=self.ahead_groups,
            durability=Durability(self.durability),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSettings:
    """Where the run can be watched; train.jsonl in run_dir has the figures in any case.

    Raises:
        InvalidRequestError: an address is not host:port.
    """

    listen: str | None = None
    """host:port at which Prometheus finds /metrics; port 0 takes a free one. Off by default."""
    tensorboard: Path | None = None
    """Folder for TensorBoard event files, of this run alone; needs the extra tensorboard. Off by default."""

    def __post_init__(self) -> None:
        if self.listen is not None:
            host, _, port = self.listen.rpartition(":")
            is_address = bool(host) and port.isdecimal() and int(port) < 65536
            check(self, "listen", is_address, "host:port, for example 127.0.0.1:9101")


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmSettings:
    """Lines that a healthy run does not cross. inf turns off one that is an upper limit, 0 one that is a lower.

    Raises:
        InvalidRequestError: a number is out of range.
    """

    steps: int = 3
    """Steps in a row beyond a line that raise its alarm; three times as many within it end the alarm."""
    replay_share: float = 0.7
    """Upper limit of the share of replay groups, unless the groups are fresh enough."""
    replay_share_staleness: float = 2.0
    """Mean staleness of a batch up to which any share of replay is fresh enough."""
    staleness: float | None = None
    """Upper limit of the staleness of any group. Default: 10, or 3 where behaviour weights do not correct for it, above
    replay.min_staleness."""
    kl: float = 0.3
    """Upper limit of the KL of replayed tokens, nats per token (k3 estimate)."""
    ess: float = 0.5
    """Lower limit of the effective sample size of replayed tokens, as a share of them."""
    weight_p99: float = 4.0
    """Upper limit of the behaviour weight that 1 % of replayed tokens exceed, before any cap."""
    effective_ratio: float = 0.05
    """Lower limit of the effective share of fresh groups."""
    entropy_share: float = 0.25
    """Lower limit of the entropy, as a share of its mean over the first five steps of the run."""
    grad_norm: float = 10.0
    """Upper limit of the mean gradient norm, in multiples of optimizer.max_grad_norm."""

    def __post_init__(self) -> None:
        check_from(self, steps=1, ess=0, effective_ratio=0, entropy_share=0)
        for name in ("replay_share", "replay_share_staleness", "kl", "weight_p99", "grad_norm"):
            check(self, name, getattr(self, name) >= 0, "at least 0, or inf")
        check(self, "staleness", self.staleness is None or self.staleness >= 0, "at least 0, or inf")


def check_from(section: Any, **lows: float) -> None:
    """Raise InvalidRequestError unless each named field is finite and at least its bound."""
    for name, low in lows.items():
        check(section, name, low <= getattr(section, name) < math.inf, f"at least {low}")


def check(section: Any, name: str, holds: bool, what: str) -> None:
    """Raise InvalidRequestError unless the field is `what` says."""
    if not holds:  # a comparison with NaN does not
        raise InvalidRequestError(f"{name} {getattr(section, name)} must be {what}")
