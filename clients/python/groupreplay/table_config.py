"""How a table keeps groups and draws them."""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from groupreplay.errors import InvalidRequestError


class Fill(StrEnum):
    """What takes the slots of ineffective groups: POPO, GRPO-filter, DAPO, GRPO; `sample` makes no batches at all."""

    REPLAY = "replay"
    NONE = "none"
    RESAMPLE = "resample"
    KEEP = "keep"
    SAMPLE = "sample"
    """Effective groups join replay as they come, for sample()."""


class Sampler(StrEnum):
    """The order in which replay groups are drawn."""

    RECENCY = "recency"
    """Newest policy version first, then latest arrival."""
    PRIORITIZED = "prioritized"
    """At random, in proportion to weight."""
    UNIFORM = "uniform"
    """At random, all alike."""
    FIFO = "fifo"
    LIFO = "lifo"
    MAX_PRIORITY = "max_priority"
    MIN_DIVERGENCE = "min_divergence"
    """Lowest KL fed back first; a group without feedback counts as 0."""


class Remover(StrEnum):
    """Which replay groups leave for newer ones."""

    FIFO = "fifo"
    LIFO = "lifo"
    LOWEST_PRIORITY = "lowest_priority"
    MOST_STALE = "most_stale"
    """Oldest policy version first, then earliest arrival."""


class PrioritySource(StrEnum):
    """Where a group's priority comes from until a caller sets it."""

    CALLER = "caller"
    """RolloutGroup.priority, else 1."""
    REWARD_VARIANCE = "reward_variance"
    """p(1-p) where rewards are 0 and 1."""
    ADVANTAGE = "advantage"
    """Mean distance of the rewards from their mean: the mean |advantage| times the standard deviation."""


class StalenessRule(StrEnum):
    """What becomes of groups older than max_staleness."""

    DROP = "drop"
    """They leave, and are refused at insert."""
    WAIT = "wait"
    """As drop, but a batch waits for admitted groups that would be too old in the next version: slow prompts count."""
    WITHHOLD = "withhold"
    """They stay without being delivered."""


class Durability(StrEnum):
    """What an acknowledged change has reached: Redis, its append-only file on disk, or replicas of it as well."""

    MEMORY = "memory"
    AOF = "aof"
    REPLICAS = "replicas"


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """How inserts and samples of a table hold each other back, as in Reverb.

    With d = inserted * samples_per_insert - sampled: a group may be sampled while d with it stays at least min_diff and
    at least min_size_to_sample groups are there, and inserted while d with it stays at most max_diff. Groups that never
    join replay, for want of reward variance, do not count as inserted.

    Raises:
        InvalidRequestError: a number is out of its range, or neither side could ever go on.
    """

    samples_per_insert: float
    min_size_to_sample: int = 1
    min_diff: float
    max_diff: float

    def __post_init__(self) -> None:
        if not 0 < self.samples_per_insert < math.inf:
            raise InvalidRequestError(f"samples_per_insert {self.samples_per_insert} is not finite and above 0")
        if not 1 <= self.min_size_to_sample < 2**40:
            raise InvalidRequestError(f"min_size_to_sample {self.min_size_to_sample} is not in 1 to 2^40")
        if not -math.inf < self.min_diff <= self.max_diff - max(1.0, self.samples_per_insert) < math.inf:
            raise InvalidRequestError(
                f"min_diff {self.min_diff} and max_diff {self.max_diff} leave no room for one insert and one sample; "
                f"they must be finite, and max(1, samples_per_insert) = {max(1.0, self.samples_per_insert):g} apart"
            )

    @classmethod
    def of(cls, samples_per_insert: float, *, min_size_to_sample: int = 1, error_buffer: float) -> Self:
        """Return the limit that keeps sampled / inserted near samples_per_insert, within error_buffer samples."""
        offset = samples_per_insert * min_size_to_sample
        return cls(
            samples_per_insert=samples_per_insert,
            min_size_to_sample=min_size_to_sample,
            min_diff=offset - error_buffer,
            max_diff=offset + error_buffer,
        )

    @classmethod
    def queue(cls, size: int) -> Self:
        """Return the limit of a queue or stack: each group is sampled once, and `size` of them wait at most."""
        return cls(samples_per_insert=1.0, min_size_to_sample=1, min_diff=0.0, max_diff=float(size))


_UNLIMITED_OR = {"max_staleness": 0, "max_times_sampled": 1, "ahead_groups": 0, "groups_per_version": 1}
_AT_LEAST = {
    "replay_capacity": 1, "fresh_capacity": 1, "max_group_bytes": 1, "min_staleness": 0, "lineage_steps": 0,
    "lineage_payload_steps": 0,
}  # fmt: skip
_FROM_0 = ("min_reward_std", "alpha", "kl_decay", "ess_alpha")
_SHARES = ("recency_decay", "use_decay")


@dataclass(frozen=True, slots=True, kw_only=True)
class TableConfig:
    """What a table keeps and how it fills a batch; None = unlimited.

    Raises:
        InvalidRequestError: a limit is out of its range, or two contradict each other.
    """

    fill: Fill = Fill.REPLAY
    """What takes the slots of ineffective groups."""
    sampler: Sampler = Sampler.RECENCY
    """The order in which replay groups are drawn, for refilling and for sample()."""
    replay_capacity: int = 1024
    """Replay groups kept; beyond, the remover decides which leave."""
    fresh_capacity: int = 4096
    """Fresh groups kept; inserts beyond are refused with TableFullError."""
    max_staleness: int | None = None
    """Groups older than this many policy versions are not delivered; staleness_rule says what becomes of them."""
    max_times_sampled: int | None = None
    """Deliveries after which a group leaves."""
    min_reward_std: float = 1e-6
    """A group is effective when the standard deviation of its rewards is above this."""
    max_group_bytes: int = 64 * 2**20
    """Largest payload of one group."""
    allow_repeated_prompts: bool = False
    """Whether a batch may hold two groups of one prompt_id."""
    keep_ineffective_payload: bool = False
    """Whether to store payloads that the fill rule will never deliver, to look at."""
    ahead_groups: int | None = None
    """How many groups producers that ask for admission may run ahead of the trainer."""

    remover: Remover = Remover.MOST_STALE
    """Which replay groups leave for newer ones. With versions that arrive in order this is first in, first out."""
    priority: PrioritySource = PrioritySource.CALLER
    """Where a group's priority comes from until a caller sets it."""
    alpha: float = 1.0
    """Exponent of the priority in a group's weight."""
    recency_decay: float = 1.0
    """Factor of a group's weight for each policy version it is old, in (0, 1]."""
    use_decay: float = 1.0
    """Factor of a group's weight for each of its deliveries, in (0, 1]."""
    kl_decay: float = 0.0
    """The weight is multiplied by exp(-kl_decay * kl), with the KL that trainers fed back."""
    ess_alpha: float = 0.0
    """The weight is multiplied by ess**ess_alpha, with the effective sample size that trainers fed back."""
    importance_beta: float = 0.4
    """Exponent of the importance weights, in [0, 1]; 0 makes them all 1."""
    min_staleness: int = 0
    """Replay groups younger than this many policy versions are not drawn; 10 is POPO-stale(10)."""
    max_kl: float | None = None
    """Replay groups with a KL fed back above this are not drawn."""
    staleness_rule: StalenessRule = StalenessRule.DROP
    """What becomes of groups older than max_staleness."""
    capacity_bytes: int | None = None
    """Payload bytes kept: replay groups leave beyond, and inserts are refused with TableFullError when none is left."""
    ttl_s: float | None = None
    """Seconds after which a fresh or replay group leaves."""
    rate_limit: RateLimit | None = None
    """Under Fill.SAMPLE: how inserts and samples hold each other back."""
    groups_per_version: int | None = None
    """Producers that ask for admission make (max_staleness + policy version + 1) times this in all, AReaL's rule."""
    replay_ineffective: bool = False
    """Whether groups without reward variance join replay too; for ablations."""
    durability: Durability = Durability.MEMORY
    """What an acknowledged insert or commit has reached."""
    lineage_steps: int = 1000
    """Committed training steps whose lineage is kept: groups, versions, probabilities, seed."""
    lineage_payload_steps: int = 0
    """Of these, the newest whose groups stay readable after they left, so that replay_step serves them again."""

    def __post_init__(self) -> None:
        for name, low in _AT_LEAST.items():
            self._check_count(name, low)
        for name, low in _UNLIMITED_OR.items():
            if getattr(self, name) is not None:
                self._check_count(name, low)
        if self.capacity_bytes is not None:
            self._check_count("capacity_bytes", 1)
        for name in _FROM_0:
            self._check(name, 0 <= getattr(self, name) < math.inf, "a finite number of at least 0")
        for name in _SHARES:
            self._check(name, 0 < getattr(self, name) <= 1, "in (0, 1]")
        self._check("importance_beta", 0 <= self.importance_beta <= 1, "in [0, 1]")
        self._check("max_kl", self.max_kl is None or 0 <= self.max_kl < math.inf, "a finite number of at least 0")
        self._check("ttl_s", self.ttl_s is None or 0 < self.ttl_s <= 10**9, "in (0, 10^9] seconds")
        self._check_together()

    def _check_together(self) -> None:
        if self.rate_limit is not None and self.fill != Fill.SAMPLE:
            raise InvalidRequestError(f"rate_limit needs fill sample, not {self.fill}: batches pace themselves")
        if self.groups_per_version is not None and self.max_staleness is None:
            raise InvalidRequestError("groups_per_version needs max_staleness: the rule counts versions up to it")
        if self.max_staleness is not None and self.min_staleness > self.max_staleness:
            raise InvalidRequestError(
                f"min_staleness {self.min_staleness} above max_staleness {self.max_staleness} leaves nothing to draw"
            )

        if self.lineage_payload_steps > self.lineage_steps:
            raise InvalidRequestError(
                f"lineage_payload_steps {self.lineage_payload_steps} above lineage_steps {self.lineage_steps}: a step "
                f"whose "
                "lineage is forgotten cannot be served again"
            )

    def _check_count(self, name: str, low: int) -> None:
        self._check(name, low <= getattr(self, name) < 2**40, f"in {low} to 2^40")

    def _check(self, name: str, holds: bool, what: str) -> None:
        if not holds:  # a comparison with NaN does not
            raise InvalidRequestError(f"{name} {getattr(self, name)} is not {what}")

    @classmethod
    def queue(cls, size: int, **other: object) -> Self:
        """Return a first-in-first-out queue: every effective group is sampled exactly once, `size` wait at most."""
        return cls._bounded(size, Sampler.FIFO, Remover.FIFO, other)

    @classmethod
    def stack(cls, size: int, **other: object) -> Self:
        """Return a last-in-first-out stack: every effective group is sampled exactly once, `size` wait at most."""
        return cls._bounded(size, Sampler.LIFO, Remover.LIFO, other)

    @classmethod
    def _bounded(cls, size: int, sampler: Sampler, remover: Remover, other: dict[str, object]) -> Self:
        fields = {
            "fill": Fill.SAMPLE,
            "sampler": sampler,
            "remover": remover,
            "max_times_sampled": 1,
            "replay_capacity": size,
            "rate_limit": RateLimit.queue(size),
            "allow_repeated_prompts": True,
        }
        return cls(**fields | other)  # type: ignore[arg-type]


FIXED_FIELDS = (
    "fill", "sampler", "remover", "priority", "alpha", "recency_decay", "use_decay", "kl_decay", "ess_alpha",
    "min_reward_std", "replay_ineffective",
)  # fmt: skip
"""Fields that decide over order and weight of what is there, and so cannot change while a table lives."""
