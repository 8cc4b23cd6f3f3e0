"""What goes into the store and comes out of it."""

from dataclasses import dataclass

from groupreplay.errors import GroupReplayError
from groupreplay.merge import PieceTerms
from groupreplay.types import GroupSource, Lease, Producer, Table

Payload = bytes | memoryview
"""A view is of the message that it came in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IncomingGroup:
    """A group to be stored; the header stays as the producer serialized it."""

    group_id: str
    prompt_id: str
    producer_id: str
    policy_version_min: int
    policy_version_max: int
    reward_std: float
    task: str
    priority: float
    """What the table's PrioritySource says, until a caller sets another."""
    reward_mean: float
    header: bytes
    payload: Payload | None
    """None = not stored: the table will never deliver it."""


@dataclass(frozen=True, slots=True)
class LeasedGroup:
    """A group in a lease, without its payload."""

    group_id: str
    header: bytes
    payload_ref: str
    source: GroupSource
    staleness: int
    times_sampled: int
    redeliveries: int
    probability: float
    importance_weight: float


@dataclass(frozen=True, slots=True)
class ReadGroup:
    """A group that was read without being taken."""

    group_id: str
    header: bytes
    payload_ref: str
    """Empty where no payload is kept."""
    times_sampled: int
    staleness: int
    log_ratios: "KeptLogRatios | None" = None


@dataclass(frozen=True, slots=True)
class LogRatiosToKeep:
    """Log ratios on their way into the store."""

    ref: str
    """Names them beside the group's payload."""
    data: bytes


@dataclass(frozen=True, slots=True)
class KeptLogRatios:
    """The log ratios of a group, as they were fed back last."""

    ref: str
    policy_version: int
    step: int
    """-1 = they came by no commit."""
    data: bytes | None = None
    """None = still in the store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasedBatch:
    """A batch under a lease, payloads still in the store."""

    lease_id: str
    deadline_ms: int
    policy_version: int
    batch_size: int
    fresh: int
    fresh_effective: int
    groups: tuple[LeasedGroup, ...]

    @property
    def refilled(self) -> int:
        """Groups from replay."""
        return sum(group.source is GroupSource.REPLAY for group in self.groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedStep:
    """What a committed training step was given."""

    step: int
    batch: LeasedBatch
    """Its groups have no header and no payload_ref where some of them are no longer there."""
    holder: str
    seed: str
    committed_at_ms: int
    consumed: tuple[str, ...]
    missing: int
    """Groups that are no longer there."""

    @property
    def undelivered(self) -> list[str]:
        """Fresh groups that were consumed without being delivered."""
        delivered = {group.group_id for group in self.batch.groups}
        return [group_id for group_id in self.consumed if group_id not in delivered]


@dataclass(frozen=True, slots=True, kw_only=True)
class TableVitals:
    """What decides whether a batch is ready, and who is there."""

    takeable: int
    """Fresh groups that a batch would take."""
    effective: int
    """Of these."""
    stale: int
    passed_over: int
    """For their prompt."""
    drawable: int
    """Replay groups among the first of the sampler's order."""
    leases: tuple[Lease, ...]
    producers: tuple[Producer, ...]
    admissions: tuple[tuple[str, int, int], ...]
    """producer_id, groups, deadline in Unix milliseconds"""
    waiting: tuple[tuple[int, int], ...]
    """groups wanted, until when in Unix milliseconds"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableReading:
    """What the metrics show of a table, at one moment."""

    table: Table
    published_at_ms: int
    """When the run's policy was published; 0 = never."""
    rewinds: int
    """Of the run's policy clock."""
    waiting: int
    """NextBatch calls that wait."""
    producers: tuple[Producer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisLoad:
    """What the metrics show of a Redis server. None = it keeps that to itself, as managed ones may."""

    address: str
    """host:port, or the path of a socket."""
    ping_s: float
    commands_running: int
    """Of this service, now; each holds a connection."""
    used_memory_bytes: int | None
    max_memory_bytes: int | None
    """0 = no limit."""
    persistence_ok: bool | None
    """Whether the last writes of the append-only file and of the snapshot, where there are any, succeeded."""
    appends: bool | None
    """Whether there is an append-only file."""
    replicas: int | None
    evicted_keys: int | None
    """Since it started; any is a loss of groups."""


@dataclass(frozen=True, slots=True)
class BatchNotReady:
    """Why no batch could be leased yet."""

    wanted: int
    """Fresh groups (effective ones, when the table resamples) that would make it complete."""
    available: int
    """How many of them are there."""
    next_deadline_ms: int
    """When the next lease ends, and its groups may come back; 0 = no lease."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IncomingPiece:
    """A piece of a partial group to be stored; the header stays as the producer serialized it."""

    group_id: str
    piece_id: str
    header: bytes
    payload: bytes
    merged_bytes: int
    """What it adds to the payload of the whole group, at most: without the prompt, which all pieces carry."""
    rollouts: int
    policy_version_min: int
    policy_version_max: int
    producer_id: str
    terms: PieceTerms
    group_size: int
    min_rollouts: int
    close_after_ms: int


@dataclass(frozen=True, slots=True)
class PieceReply:
    """What the store says of a piece."""

    group_id: str
    piece_id: str
    what: str
    """KEPT, FULL, DUPLICATE, DUE, KNOWN (push_rollouts.lua), or REFUSED."""
    rollouts: int
    group_size: int
    error: GroupReplayError | None = None


@dataclass(frozen=True, slots=True)
class StoredPiece:
    """A piece of a claimed group, without its payload."""

    header: bytes
    payload_ref: str


@dataclass(frozen=True, slots=True)
class Claim:
    """What became of the wish to put a partial group together."""

    what: str
    """GONE, OPEN, DROPPED or CLAIMED (claim_partial.lua)."""
    pieces: tuple[StoredPiece, ...] = ()
    """In order of arrival; with CLAIMED."""
    rollouts: int = 0
    min_rollouts: int = 0
    group_size: int = 0
