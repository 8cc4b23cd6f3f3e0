"""Tables, batches, policies: the other words of groupreplay as frozen dataclasses (docs/reference/glossary.md)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from groupreplay.errors import GroupReplayError, InvalidRequestError
from groupreplay.groups import RolloutGroup


class GroupSource(StrEnum):
    """Whether a delivered group is new to training or was committed in an earlier step."""

    FRESH = "fresh"
    REPLAY = "replay"


class GroupState(StrEnum):
    """Where a group is now; `gone` = it was in the table and left."""

    UNKNOWN = "unknown"
    FRESH = "fresh"
    LEASED = "leased"
    REPLAY = "replay"
    GONE = "gone"


class InsertOutcome(StrEnum):
    """What an insert did; only `inserted` changed the table."""

    INSERTED = "inserted"
    DUPLICATE = "duplicate"
    REFUSED = "refused"


class Fill(StrEnum):
    """What takes the slots of ineffective groups: POPO, GRPO-filter, DAPO and GRPO in this order."""

    REPLAY = "replay"
    NONE = "none"
    RESAMPLE = "resample"
    KEEP = "keep"


class Refill(StrEnum):
    """Which replay groups refill a batch first."""

    RECENCY = "recency"


class Durability(StrEnum):
    """What an acknowledged change has reached: Redis, its append-only file on disk, or replicas of it as well."""

    MEMORY = "memory"
    AOF = "aof"
    REPLICAS = "replicas"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveredGroup:
    """A group in a batch, and how it came there."""

    group: RolloutGroup
    source: GroupSource
    staleness: int
    """Policy version at the draw minus the group's oldest; 0 = on-policy."""
    times_sampled: int
    """Deliveries of the group, this one included."""
    probability: float
    """Of the draw, in (0, 1]; 1 where the rule was deterministic."""
    redeliveries: int
    """Times the group was handed out before and came back uncommitted."""

    @property
    def on_policy(self) -> bool:
        """Whether the current policy sampled every token and no step has trained on the group."""
        return self.source is GroupSource.FRESH and self.staleness == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one training step trains on, under a lease."""

    lease_id: str
    lease_deadline_ms: int
    """Unix milliseconds at which the groups go back unless the lease is committed or extended."""
    policy_version: int
    """The run's policy clock at the draw."""
    batch_size: int
    """Slots asked for."""
    fresh: int
    """Fresh groups consumed."""
    fresh_effective: int
    """How many of them have reward variance."""
    refilled: int
    """Slots filled from replay."""
    shortfall: int
    """Slots that stayed empty."""
    groups: tuple[DeliveredGroup, ...]
    """Fresh by arrival, then replay as drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InsertResult:
    """What became of one group of an insert."""

    group_id: str
    outcome: InsertOutcome
    error: GroupReplayError | None = None
    """Why it was refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A published version of a run's policy; version 0 is what the run starts from."""

    run: str
    version: int
    weights_uri: str = ""
    weights_sha256: str = ""
    published_at_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """How many groups a producer may generate now, and with which policy."""

    groups: int
    policy: Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class TableConfig:
    """What a table keeps and how it fills a batch.

    Raises:
        InvalidRequestError: a limit is out of its range.
    """

    fill: Fill = Fill.REPLAY
    """What takes the slots of ineffective groups."""
    refill: Refill = Refill.RECENCY
    """Which replay groups refill, under Fill.REPLAY."""
    replay_capacity: int = 1024
    """Replay groups kept; the oldest leave first."""
    fresh_capacity: int = 4096
    """Fresh groups kept; inserts beyond are refused with TableFullError."""
    max_staleness: int | None = None
    """Groups older than this many policy versions are dropped, and refused at insert; None = unlimited."""
    max_times_sampled: int | None = None
    """Deliveries after which a group leaves; None = unlimited."""
    min_reward_std: float = 1e-6
    """A group is effective when the standard deviation of its rewards is above this."""
    max_group_bytes: int = 64 * 2**20
    """Largest payload of one group."""
    allow_repeated_prompts: bool = False
    """Whether a batch may hold two groups of one prompt_id."""
    keep_ineffective_payload: bool = False
    """Whether to store payloads that the fill rule will never deliver, to look at."""
    ahead_groups: int | None = None
    """How many groups producers that ask for admission may run ahead of the trainer; None = unlimited."""

    def __post_init__(self) -> None:
        for name, low in (("replay_capacity", 1), ("fresh_capacity", 1), ("max_group_bytes", 1)):
            self._check_range(name, getattr(self, name), low)
        for name, low in (("max_staleness", 0), ("max_times_sampled", 1), ("ahead_groups", 0)):
            if getattr(self, name) is not None:
                self._check_range(name, getattr(self, name), low)
        if not 0 <= self.min_reward_std < math.inf:
            raise InvalidRequestError(f"min_reward_std {self.min_reward_std} is not a finite number of at least 0")

    @staticmethod
    def _check_range(name: str, value: int, low: int) -> None:
        if not low <= value < 2**40:
            raise InvalidRequestError(f"{name} {value} is not in {low} to 2^40")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table as it is now. At any time inserted = fresh + leased + replay + the sum of gone_*."""

    run: str
    table: str
    config: TableConfig
    fresh: int
    """Groups waiting for next_batch."""
    fresh_effective: int
    replay: int
    """Groups that wait to be used again."""
    leased: int
    """Fresh groups in leases that are neither committed nor given back."""
    leases: int
    payload_bytes: int
    """Payload of fresh, leased and replay groups."""
    policy_version: int
    last_insert_ms: int
    """Unix milliseconds; 0 = none yet."""
    missing: int
    """Groups that next_batch calls now wait for."""
    counters: Mapping[str, int]
    """Monotonic counts; docs/reference/counters.md lists them."""
