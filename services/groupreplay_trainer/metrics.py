"""What a run reports, in one list: train.jsonl, Prometheus, TensorBoard and the reference are made from it.

Imports no torch and no client library: the reference is generated from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

PREFIX: Final = "groupreplay_trainer_"


class Kind(StrEnum):
    """Type of a Prometheus metric."""

    GAUGE = "gauge"
    """The value of the newest step; absent while that has none."""
    COUNTER = "counter"
    """Adds up over the steps since the trainer started."""
    HISTOGRAM = "histogram"
    """Counts steps by their value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One figure of a step."""

    key: str
    """Its name in train.jsonl."""
    name: str
    """Its name in Prometheus, less the prefix."""
    kind: Kind
    tag: str | None
    """Its tag in TensorBoard; None = not shown there."""
    meaning: str
    labels: Mapping[str, str] = field(default_factory=dict)


def _gauge(record: str, name: str, tag: str | None, meaning: str, **labels: str) -> Measure:
    return Measure(key=record, name=name, kind=Kind.GAUGE, tag=tag, meaning=meaning, labels=labels)


def _counter(record: str, name: str, tag: str | None, meaning: str, **labels: str) -> Measure:
    return Measure(key=record, name=name, kind=Kind.COUNTER, tag=tag, meaning=meaning, labels=labels)


def _seconds(record: str, name: str, tag: str | None, meaning: str) -> Measure:
    return Measure(key=record, name=name, kind=Kind.HISTOGRAM, tag=tag, meaning=meaning)


_CLIPPED = "Share of tokens whose gradient the trust region took away, over all updates of the step"
_ADJUSTED = "Share of tokens that the dual clip bounded, the weight cap lowered, or weight bounds and veto left out"
_RATIO = "Share of delivered fresh groups whose rewards are all the batch's highest (right) or lowest (wrong)"

MEASURES: Final = (
    _gauge("step", "step", None, "Newest finished step; the policy version it made"),
    _gauge("at_unix_s", "last_step_timestamp_seconds", None, "When the newest step ended, seconds since 1970"),
    _gauge("loss", "loss", "train/loss", "Mean loss of the step's updates"),
    _gauge("lr", "learning_rate", "train/learning_rate", "Learning rate of the step"),
    _gauge("entropy", "entropy_nats", "train/entropy_nats", "Mean entropy of the policy at the trained tokens"),
    _gauge("reference_kl", "reference_kl_nats", "train/reference_kl_nats", "KL from the reference policy, k3 estimate"),
    _gauge("grad_norm_mean", "grad_norm_mean", "train/grad_norm_mean", "Mean gradient norm, before clipping"),
    _gauge("grad_norm_max", "grad_norm_max", "train/grad_norm_max", "Largest gradient norm, before clipping"),
    _counter("updates", "updates_total", None, "Optimizer updates made"),
    _counter("skipped_updates", "skipped_updates_total", "train/skipped_updates", "Updates left out as not finite"),
    _counter("rejected", "rejected_steps_total", "train/rejected", "Steps whose groups were used without an update"),
    _gauge("reward_mean", "reward_mean", "reward/mean", "Mean reward of delivered fresh groups"),
    _gauge(
        "effective_ratio", "effective_ratio", "reward/effective_ratio", "Share of fresh groups whose rewards differ"
    ),
    _gauge("all_right_ratio", "ineffective_ratio", "reward/all_right_ratio", _RATIO, kind="right"),
    _gauge("all_wrong_ratio", "ineffective_ratio", "reward/all_wrong_ratio", _RATIO, kind="wrong"),
    _gauge(
        "negative_advantage_share",
        "negative_advantage_share",
        "reward/negative_advantage_share",
        "Share of negative advantages in the absolute advantages of all trained tokens",
    ),
    _counter("fresh", "fresh_groups_total", "batch/fresh", "Fresh groups consumed, ineffective ones included"),
    _counter("groups", "groups_total", "batch/groups", "Groups in batches"),
    _counter("rollouts", "rollouts_total", "batch/rollouts", "Rollouts in batches"),
    _counter("tokens", "tokens_total", "batch/tokens", "Response tokens in batches that the loss masks leave in"),
    _counter("refilled", "replay_groups_total", None, "Replay groups in batches"),
    _counter("shortfall", "shortfall_groups_total", "batch/shortfall", "Slots of batches that stayed empty"),
    _gauge("replay_share", "replay_share", "batch/replay_share", "Share of replay among the groups of the batch"),
    _gauge("staleness_mean", "staleness_mean_versions", "batch/staleness_mean", "Mean staleness of the batch's groups"),
    _gauge("staleness_max", "staleness_max_versions", "batch/staleness_max", "Staleness of the oldest group"),
    _gauge(
        "replay_staleness_mean",
        "replay_staleness_mean_versions",
        "batch/replay_staleness_mean",
        "Mean staleness of replay groups",
    ),
    _gauge("uses_mean", "uses_mean", "batch/uses_mean", "Mean deliveries of a replay group, this one included"),
    _gauge("uses_max", "uses_max", "batch/uses_max", "Most deliveries of a replay group"),
    _gauge(
        "response_length_mean", "response_length_mean_tokens", "batch/response_length_mean", "Mean length of responses"
    ),
    _gauge("response_length_max", "response_length_max_tokens", "batch/response_length_max", "Longest response"),
    _gauge("ess", "ess", "off_policy/ess", "Effective sample size of replayed tokens, as a share"),
    _gauge("kl_k1", "kl_k1_nats", "off_policy/kl_k1_nats", "KL(behaviour, proximal) of replayed tokens, estimate k1"),
    _gauge("kl_k3", "kl_k3_nats", "off_policy/kl_k3_nats", "KL(behaviour, proximal) of replayed tokens, estimate k3"),
    _gauge("chi2", "chi2", "off_policy/chi2", "Chi-squared divergence: variance of the behaviour weights"),
    _gauge("weight_mean", "weight_mean", "off_policy/weight_mean", "Mean weight of replayed tokens, uncapped"),
    _gauge("weight_p95", "weight_p95", "off_policy/weight_p95", "95th percentile of these weights"),
    _gauge("weight_p99", "weight_p99", "off_policy/weight_p99", "99th percentile of these weights"),
    _gauge("weight_max", "weight_max", "off_policy/weight_max", "Largest of these weights"),
    *(
        _gauge(
            f"{source}_clipped_{end}_share",
            "clipped_share",
            f"clip/{source}_clipped_{end}_share",
            _CLIPPED,
            source=source,
            end=end,
        )
        for source in ("fresh", "replay")
        for end in ("low", "high")
    ),
    *(
        _gauge(
            f"{source}_{how}_share", "adjusted_share", f"clip/{source}_{how}_share", _ADJUSTED, source=source, how=how
        )
        for source in ("fresh", "replay")
        for how in ("dual_clipped", "capped", "rejected")
    ),
    _seconds("waiting_s", "waiting_seconds", "time/waiting_seconds", "Seconds that the step waited for its batch"),
    _seconds("training_s", "training_seconds", "time/training_seconds", "Seconds from the batch to its last update"),
    _seconds(
        "publishing_s",
        "publishing_seconds",
        "time/publishing_seconds",
        "Seconds for checkpoint, commit and published weights; not in train.jsonl",
    ),
    _gauge(
        "tokens_per_s", "training_tokens_per_second", "time/tokens_per_second", "Trained tokens by training seconds"
    ),
)

ALARM: Final = Measure(
    key="alarms",
    name="alarm",
    kind=Kind.GAUGE,
    tag="alarm/NAME",
    meaning="1 while an alarm is on, else 0",
    labels={"name": "NAME"},
)
UNDONE: Final = Measure(
    key="",
    name="undone_steps_total",
    kind=Kind.COUNTER,
    tag=None,
    meaning="Steps undone: nonfinite, or groups that went to somebody else (lease_lost)",
    labels={"reason": "REASON"},
)


def value_of(record: Mapping[str, object], measure: Measure) -> float | None:
    """Return what a line of train.jsonl says of a measure; None where the step has nothing of the kind."""
    value = record.get(measure.key)
    return float(value) if isinstance(value, int | float) else None
