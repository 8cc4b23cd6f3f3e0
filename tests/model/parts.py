"""The things that a table of the model is made of."""

from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Group:
    """A group: what came with it, and what has become of it."""

    group_id: str
    prompt_id: str
    task: str
    producer_id: str
    version_min: int
    version_max: int
    effective: bool
    bytes: int
    priority: float
    """As it came, until a caller sets another."""
    kl: float = 0.0
    ess: float = 1.0
    place: str = ""
    """fresh, leased, replay or gone"""
    sequence: int = 0
    inserted_ms: int = 0
    uses: int = 0
    """Deliveries that were not given back."""
    returns: int = 0
    """Times it came back to fresh."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """What a caller is told of a group that it gets."""

    group_id: str
    source: str
    staleness: int
    times_sampled: int
    redeliveries: int
    probability: float
    importance_weight: float


@dataclass(frozen=True, slots=True)
class Taken:
    """What a batch or sample hands out."""

    fresh: int
    fresh_effective: int
    groups: tuple[Delivered, ...]


@dataclass(frozen=True, slots=True)
class NotReady:
    """Why there is no batch or sample yet."""

    wanted: int
    available: int
    next_deadline_ms: int


@dataclass(slots=True)
class Lease:
    """A lease, live or ended."""

    lease_id: str
    deadline_ms: int
    taken: Taken
    consumed: list[str] = field(default_factory=list)
    """Fresh groups that the batch used up, delivered or not."""
    fresh: list[str] = field(default_factory=list)
    """Those of them that were delivered."""
    replay: list[str] = field(default_factory=list)
    sampled: bool = False
    state: str = "live"
    """live, committed, released or expired"""
    step: int | None = None


@dataclass(slots=True)
class Quotas:
    """What a run may hold."""

    max_groups: int | None = None
    max_bytes: int | None = None

    def is_exceeded(self, groups: int, size: int) -> bool:
        """Whether one more group, after which size bytes are held, is too much."""
        return (self.max_groups is not None and groups >= self.max_groups) or (
            self.max_bytes is not None and size > self.max_bytes
        )
