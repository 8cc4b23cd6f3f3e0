"""What a training step reports: how off-policy its replay was, what was clipped, and what it was made of.

The spiral to guard against: fewer effective groups, more and older replay, higher KL, worse updates. Watch
`replay_share`, `staleness_max`, `ess` and `kl_k3`.

Shape legend: B rollouts, T tokens, N tokens of interest in one flat array.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Self

import numpy as np
import numpy.typing as npt
from torch import Tensor

from groupreplay import Batch, GroupFeedback, GroupSource
from groupreplay.torch.collate import TrainingBatch
from groupreplay_trainer.loss import MAX_LOG_RATIO, LossMetrics


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyDrift:
    """How far the proximal policy is from the behaviour policy, estimated from tokens that the latter sampled.

    With d = log proximal - log behaviour and w = exp(d), both before any cap.
    """

    ess: float
    """Effective sample size as a share, (sum w)^2 / (N sum w^2), in (0, 1]; 1 = on-policy."""
    kl_k1: float
    """Mean of -d: unbiased estimate of KL(behaviour || proximal) in nats; may be negative."""
    kl_k3: float
    """Mean of exp(d) - 1 - d: the same with less variance, never negative."""
    chi2: float
    """Mean of w^2, less 1: chi-squared divergence of proximal from behaviour; the variance of the weights."""
    weight_mean: float
    """Near 1 while behaviour covers what proximal does."""
    weight_max: float
    weight_p95: float
    weight_p99: float

    @classmethod
    def of(cls, log_ratio_N: npt.ArrayLike) -> Self:
        """Return the statistics of d, in nats.

        Raises:
            ValueError: no token.
        """
        d = np.asarray(log_ratio_N, dtype=np.float64).reshape(-1)
        if d.size == 0:
            raise ValueError("no token to estimate the drift from")
        d = d.clip(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        w = np.exp(d)
        p95, p99 = np.percentile(w, (95, 99))
        return cls(
            ess=float(w.sum() ** 2 / (w.size * np.square(w).sum())),
            kl_k1=float(-d.mean()),
            kl_k3=float((np.expm1(d) - d).mean()),
            chi2=float(np.square(w).mean() - 1),
            weight_mean=float(w.mean()),
            weight_max=float(w.max()),
            weight_p95=float(p95),
            weight_p99=float(p99),
        )


@dataclass(slots=True, kw_only=True)
class TokenTally:
    """How many tokens of one kind the loss saw over all updates of a step, and what it did to them."""

    tokens: int = 0
    clipped_low: int = 0
    clipped_high: int = 0
    dual_clipped: int = 0
    capped: int = 0
    rejected: int = 0

    def add(self, metrics: LossMetrics, rows_B: Tensor) -> None:
        """Count the tokens of the rows that `rows_B` (bool) selects."""
        self.tokens += int(metrics.response_mask_BT[rows_B].sum())
        for name in ("clipped_low", "clipped_high", "dual_clipped", "capped", "rejected"):
            setattr(self, name, getattr(self, name) + int(getattr(metrics, f"{name}_BT")[rows_B].sum()))

    def share(self, count: int) -> float | None:
        """Return count / tokens; None where there were no tokens."""
        return count / self.tokens if self.tokens else None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchMakeup:
    """What a batch consists of. None where the batch has nothing of the kind."""

    effective_ratio: float | None
    """Effective share of the fresh groups consumed."""
    all_right_ratio: float | None
    """Share of the delivered fresh groups whose rollouts all have the highest reward of the batch; only where the
    fill rule delivers ineffective groups (keep)."""
    all_wrong_ratio: float | None
    """The same for the lowest reward of the batch."""
    replay_share: float | None
    """Replay groups among the groups trained on. Up to 0.5 is safe, above 0.7 risky unless very fresh."""
    staleness_mean: float | None
    """Policy versions between a group's oldest token and the draw, over all groups."""
    staleness_max: int | None
    replay_staleness_mean: float | None
    """The same over replay groups."""
    uses_mean: float | None
    """Deliveries of a group, this one included, over replay groups."""
    uses_max: int | None
    reward_mean: float | None
    """Over the rollouts of delivered fresh groups: under a filter, without the ineffective ones."""
    response_length_mean: float | None
    """Tokens, over all rollouts."""
    response_length_max: int | None
    negative_advantage_share: float | None
    """Sum of |A| over trained tokens of A < 0, divided by that over all trained tokens."""

    @classmethod
    def of(cls, batch: Batch, rollouts: TrainingBatch | None) -> Self:
        """Return the make-up of a batch; `rollouts` is None where it has no groups."""
        replay = [item for item in batch.groups if item.source is GroupSource.REPLAY]
        fresh = [item for item in batch.groups if item.source is GroupSource.FRESH]
        staleness, uses = [item.staleness for item in batch.groups], [item.times_sampled for item in replay]
        right, wrong = _ineffective_ratios([item.group.rewards for item in fresh], batch)
        lengths = [] if rollouts is None else rollouts.response_lengths_B.tolist()
        return cls(
            effective_ratio=batch.fresh_effective / batch.fresh if batch.fresh else None,
            all_right_ratio=right,
            all_wrong_ratio=wrong,
            replay_share=len(replay) / len(batch.groups) if batch.groups else None,
            staleness_mean=_mean(staleness),
            staleness_max=max(staleness, default=None),
            replay_staleness_mean=_mean([item.staleness for item in replay]),
            uses_mean=_mean(uses),
            uses_max=max(uses, default=None),
            reward_mean=_mean([reward for item in fresh for reward in item.group.rewards.tolist()]),
            response_length_mean=_mean(lengths),
            response_length_max=max(lengths, default=None),
            negative_advantage_share=None if rollouts is None else _negative_share(rollouts),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDiagnostics:
    """Everything a step reports, in one flat record: the fields of BatchMakeup and PolicyDrift, and these.

    The drift is that of the replayed groups' trained tokens; the shares are over all updates of the step.
    """

    makeup: BatchMakeup
    drift: PolicyDrift | None
    """None without replay."""
    fresh: TokenTally
    replay: TokenTally
    loss: float | None
    """Mean over the step's updates."""
    entropy: float | None
    """Token mean in nats, at the start of the step."""
    grad_norm_mean: float | None
    """Before clipping, over the step's updates."""
    grad_norm_max: float | None
    skipped_updates: int
    """Updates left out because their gradient was not finite."""
    reference_kl: float | None = None
    """Token-mean k3 estimate of the KL from the reference policy, nats, at the start of the step; None without one."""

    def flat(self) -> dict[str, float | int | None]:
        """Return name -> value; the same names for every step, None where there is nothing to report."""
        record: dict[str, float | int | None] = asdict(self.makeup)
        record |= {field.name: getattr(self.drift, field.name, None) for field in fields(PolicyDrift)}
        for kind, tally in (("fresh", self.fresh), ("replay", self.replay)):
            counts = asdict(tally)
            record[f"{kind}_tokens"] = counts.pop("tokens")
            record |= {f"{kind}_{name}_share": tally.share(count) for name, count in counts.items()}
        record |= {"loss": self.loss, "entropy": self.entropy, "reference_kl": self.reference_kl}
        record["grad_norm_mean"] = self.grad_norm_mean
        return record | {"grad_norm_max": self.grad_norm_max, "skipped_updates": self.skipped_updates}


def replay_drift(rollouts: TrainingBatch, proximal_logprobs_BT: Tensor) -> PolicyDrift | None:
    """Return the drift over the trained tokens of replayed groups; None where there are none."""
    chosen_BT = rollouts.response_mask_BT & rollouts.is_replay_B[:, None]
    log_ratio_N = (proximal_logprobs_BT.detach() - rollouts.behaviour_logprobs_BT)[chosen_BT]
    return PolicyDrift.of(log_ratio_N.numpy()) if len(log_ratio_N) else None


def group_feedback(batch: Batch, rollouts: TrainingBatch, proximal_logprobs_BT: Tensor) -> list[GroupFeedback]:
    """Return how far the policy has moved from each group of a batch: what tables that weigh by KL or ESS draw by."""
    log_ratio_BT = (proximal_logprobs_BT.detach() - rollouts.behaviour_logprobs_BT).numpy()
    mask_BT, group_index_B = rollouts.response_mask_BT.numpy(), rollouts.group_index_B.numpy()
    found = []
    for index, item in enumerate(batch.groups):
        rows_B = group_index_B == index
        log_ratio_N = log_ratio_BT[rows_B][mask_BT[rows_B]]
        if log_ratio_N.size:
            drift = PolicyDrift.of(log_ratio_N)
            found.append(GroupFeedback(group_id=item.group.group_id, kl=max(drift.kl_k3, 0.0), ess=min(drift.ess, 1.0)))
    return found


def _ineffective_ratios(
    rewards: Sequence[npt.NDArray[np.float32]], batch: Batch
) -> tuple[float, float] | tuple[None, None]:
    if not rewards or len(rewards) < batch.fresh:
        return None, None
    best, worst = max(float(it.max()) for it in rewards), min(float(it.min()) for it in rewards)
    if best == worst:
        return None, None
    all_right = sum(float(it.min()) == best for it in rewards)
    all_wrong = sum(float(it.max()) == worst for it in rewards)
    return all_right / len(rewards), all_wrong / len(rewards)


def _negative_share(rollouts: TrainingBatch) -> float | None:
    mass_B = rollouts.advantages_B.abs().double() * rollouts.response_mask_BT.sum(dim=1)
    total = float(mass_B.sum())
    return float(mass_B[rollouts.advantages_B < 0].sum()) / total if total else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
