"""Tables, batches, policies: the other words of groupreplay as frozen dataclasses (docs/reference/glossary.md)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy.typing as npt

from groupreplay.errors import GroupReplayError, InvalidRequestError
from groupreplay.groups import FinishReason, RolloutGroup, check_name
from groupreplay.log_ratios import LogRatios, as_log_ratios
from groupreplay.table_config import Durability, TableConfig

MAX_GROUP_SIZE = 4096
"""Rollouts of a group that is put together from pieces."""
MIN_CLOSE_AFTER_S, MAX_CLOSE_AFTER_S = 0.001, 86_400.0


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """How a group came into a batch."""

    group_id: str
    source: GroupSource
    staleness: int
    times_sampled: int
    probability: float
    redeliveries: int
    importance_weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """Which groups a committed training step was given, and how they were drawn."""

    step: int
    lease_id: str
    holder: str
    policy_version: int
    batch_size: int
    seed: str
    """All random numbers of the draw come from it: 32 hexadecimal digits."""
    committed_at_ms: int
    groups: tuple[Delivery, ...]
    """Delivered, in the order of the batch."""
    undelivered_group_ids: tuple[str, ...]
    """Fresh groups that were consumed without being delivered: no reward variance."""


class Severity(StrEnum):
    """How bad a finding is."""

    INFO = "info"
    WARNING = "warning"
    PROBLEM = "problem"
    """In the way of the batch."""


class ProducerHealth(StrEnum):
    """Whether a producer lets itself be heard, and keeps its pace."""

    ALIVE = "alive"
    SLOW = "slow"
    DEAD = "dead"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that a diagnosis found."""

    severity: Severity
    code: str
    """A word for programs, such as dead_producer."""
    text: str
    """A sentence for people, with figures and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Producer:
    """Who inserts into a table."""

    producer_id: str
    first_seen_ms: int
    last_seen_ms: int
    last_insert_ms: int
    """0 = no insert yet."""
    inserted: int
    effective: int
    refused: int
    interval_s: float
    """Between its beats, as it says; 0 = it never beat."""
    status: str
    health: ProducerHealth = ProducerHealth.ALIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Who holds groups of a table."""

    lease_id: str
    holder: str
    deadline_ms: int
    groups: int
    """Delivered under it."""
    fresh: int
    """Fresh groups that it holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Why a batch is, or is not, ready."""

    ready: bool
    """Whether next_batch would answer at once."""
    findings: tuple[Finding, ...]
    """Most important first."""
    producers: tuple[Producer, ...]
    leases: tuple[Lease, ...]
    table: "Table"


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
    """Weight over the sum of all replay groups' weights, at the draw, in (0, 1]; 1 where the order is no matter of
    chance."""
    redeliveries: int
    """Times the group was handed out before and came back uncommitted."""
    importance_weight: float = 1.0
    """(N * probability)**-importance_beta over the largest in the batch, in (0, 1]; N groups were in replay."""

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
class GroupOutline:
    """A group of a batch without its payload: how it came there, and how long it is."""

    delivery: Delivery
    rewards: tuple[float, ...]
    """[G]"""
    prompt_length: int
    """Tokens of the prompt."""
    response_lengths: tuple[int, ...]
    """[G] tokens of each response."""

    @property
    def group_id(self) -> str:
        """Name of the group."""
        return self.delivery.group_id

    @property
    def tokens(self) -> int:
        """Tokens that a model reads for it: the prompt in front of each response."""
        return len(self.response_lengths) * self.prompt_length + sum(self.response_lengths)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOutline:
    """A batch under a lease, without the payloads of its groups; read_lease has those. Fields as in Batch."""

    lease_id: str
    lease_deadline_ms: int
    policy_version: int
    batch_size: int
    fresh: int
    fresh_effective: int
    refilled: int
    shortfall: int
    groups: tuple[GroupOutline, ...]
    """Fresh by arrival, then replay as drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InsertResult:
    """What became of one group of an insert."""

    group_id: str
    outcome: InsertOutcome
    error: GroupReplayError | None = None
    """Why it was refused."""
    durability: Durability = Durability.MEMORY
    """What the group has reached, where it was inserted or is a duplicate."""


class PushOutcome(StrEnum):
    """What became of a piece of a partial group."""

    PENDING = "pending"
    """It is kept; the group waits for others."""
    CLOSED = "closed"
    """The group has closed."""
    DUPLICATE = "duplicate"
    """It was there before; nothing changed."""
    REFUSED = "refused"
    """Nothing changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutPiece:
    """One or more rollouts of a group that the service puts together.

    Raises:
        InvalidRequestError: a number is out of its range, or piece_id is no name.
    """

    group: RolloutGroup
    """The rollouts, as a group of themselves. All pieces of a group have its group_id, and agree on prompt and task."""
    piece_id: str
    """Chosen by the producer, so that a retry is safe; the index of the rollout, for example."""
    group_size: int
    """Rollouts at which the group is complete, in 1 to MAX_GROUP_SIZE; all pieces agree on it."""
    min_rollouts: int | None = None
    """Fewest rollouts worth inserting when time is over; None = group_size. That of the first piece holds."""
    close_after_s: float = 600.0
    """Seconds after the first piece when the group closes with what is there; that of the first piece holds."""

    def __post_init__(self) -> None:
        check_name(self.piece_id, "piece_id")
        where = f"piece {self.piece_id} of group {self.group.group_id}"
        least = self.group_size if self.min_rollouts is None else self.min_rollouts
        if not 1 <= self.group_size <= MAX_GROUP_SIZE or not 1 <= least <= self.group_size:
            raise InvalidRequestError(
                f"{where}: group_size {self.group_size} and min_rollouts {self.min_rollouts} are not in "
                f"1 <= min_rollouts <= group_size <= {MAX_GROUP_SIZE}"
            )
        if not MIN_CLOSE_AFTER_S <= self.close_after_s <= MAX_CLOSE_AFTER_S:
            raise InvalidRequestError(
                f"{where}: close_after_s {self.close_after_s} is not in {MIN_CLOSE_AFTER_S:g} to {MAX_CLOSE_AFTER_S:g}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PushResult:
    """What became of one piece of a push."""

    group_id: str
    piece_id: str
    outcome: PushOutcome
    rollouts: int = 0
    """Rollouts of the group that are there; 0 where the group had closed before."""
    group_size: int = 0
    """Of how many; 0 where the group had closed before."""
    insert: InsertResult | None = None
    """What became of the whole group, where this push found it complete or its time over, or knows its group_id.

    Beside a pending piece it is a refusal that may pass, such as a full table: the pieces are kept, and the service
    tries again by itself.
    """
    error: GroupReplayError | None = None
    """Why the piece was refused."""
    durability: Durability = Durability.MEMORY
    """What the piece has reached, unless it was refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A published version of a run's policy; version 0 is what the run starts from."""

    run: str
    version: int
    weights_uri: str = ""
    weights_sha256: str = ""
    """As `groupreplay.weights.weights_sha256` makes it of a file or a folder; empty = not stated."""
    published_at_ms: int = 0
    label: str = ""
    """What inference engines call these weights; names one version only. Empty = the version in digits."""
    rewinds: int = 0
    """How often the clock was moved back: (rewinds, version) only grows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """How many groups a producer may generate now, and with which policy."""

    groups: int
    policy: Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupFeedback:
    """What a caller found out about a group; None leaves what was known.

    Raises:
        InvalidRequestError: a value is out of its range.
    """

    group_id: str
    priority: float | None = None
    """Finite, at least 0."""
    kl: float | None = None
    """KL(behaviour || current) per token in nats, as estimated; at least 0."""
    ess: float | None = None
    """Effective sample size of the behaviour weights, as a share of the tokens, in (0, 1]."""
    log_ratios: npt.ArrayLike | None = field(default=None, compare=False)
    """[N tokens of all responses, one response after the other] proximal less behaviour log probability, in nats; NaN
    where a token was not scored. For people to look at: the table keeps the latest, as float16, and no draw depends on
    them. All those of one call have at most log_ratios.MAX_LOG_RATIO_BYTES. Not part of equality."""

    def __post_init__(self) -> None:
        check_name(self.group_id, "group_id")
        if self.log_ratios is not None:
            object.__setattr__(self, "log_ratios", as_log_ratios(self.group_id, self.log_ratios))
        for name in ("priority", "kl"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise InvalidRequestError(f"group {self.group_id}: {name} {value} is not a finite number of at least 0")
        if self.ess is not None and not 0 < self.ess <= 1:
            raise InvalidRequestError(f"group {self.group_id}: ess {self.ess} is not in (0, 1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredGroup:
    """A group as get_groups reads it, without taking it."""

    group: RolloutGroup
    staleness: int
    times_sampled: int
    log_ratios: LogRatios | None = None
    """As a trainer fed them back last; None where none did, and where they were not asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedGroup:
    """A group as list_groups lists it: as it is now, without its payload."""

    group_id: str
    prompt_id: str
    task: str
    producer_id: str
    state: GroupState
    """Fresh, leased or replay."""
    effective: bool
    """Whether its rewards differ by more than the table's min_reward_std."""
    policy_version_min: int
    policy_version_max: int
    staleness: int
    """Current policy version minus the group's oldest."""
    times_sampled: int
    """Deliveries that were not given back."""
    redeliveries: int
    """Times it was handed out and came back uncommitted."""
    rewards: tuple[float, ...]
    """[G]"""
    response_lengths: tuple[int, ...]
    """[G] tokens of each response."""
    finish_reasons: tuple[FinishReason, ...]
    """[G], or empty where the producer does not know."""
    prompt_length: int
    """Tokens of the prompt."""
    payload_bytes: int
    """0 = the table keeps no payload of it."""
    created_at_ms: int
    """When the rollouts were scored, in Unix milliseconds; 0 = unknown."""
    inserted_at_ms: int
    """Unix milliseconds."""
    priority: float
    """As a caller set it last, else as the table's PrioritySource gives it."""
    kl: float | None
    """As fed back; None = not yet."""
    ess: float | None
    """As fed back; None = not yet."""
    lease_id: str
    """Who has it, where it is leased."""
    tags: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPage:
    """A page of list_groups."""

    groups: tuple[ListedGroup, ...]
    """Fewer than asked for, even none, where few of the groups that were looked at are wanted."""
    next_cursor: str
    """Where the next page begins; empty = this was the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """What all tables of a run may hold together, and what they do hold."""

    max_groups: int | None
    """None = unlimited."""
    max_bytes: int | None
    """Of payload; None = unlimited."""
    groups: int
    bytes: int


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
    """Payload of fresh, leased and replay groups, and of the pieces of partial groups."""
    policy_version: int
    last_insert_ms: int
    """Unix milliseconds; 0 = none yet."""
    missing: int
    """Groups that next_batch calls now wait for."""
    counters: Mapping[str, int]
    """Monotonic counts; docs/reference/counters.md lists them."""
    task_counters: Mapping[str, int] = field(default_factory=dict)
    """Counts by task, `event:task`: inserted_*, refused_* and gone_*."""
    replay_version_min: int | None = None
    """Oldest policy version of a replay group; None where replay is empty."""
    replay_version_max: int | None = None
    """Policy version of the newest replay group, which staleness goes by."""
