"""What the training steps of a table were given, one line each, and how the groups are that wait in it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSummary:
    """What a committed training step was given."""

    step: int
    committed_at_ms: int
    """Unix milliseconds."""
    policy_version: int
    """The run's policy clock at the draw."""
    batch_size: int
    """Slots asked for."""
    fresh: int
    """Fresh groups consumed."""
    fresh_effective: int
    groups: int
    """Groups delivered."""
    refilled: int
    """Of these, groups from replay."""
    staleness_mean: float | None
    """Policy versions that the groups delivered were behind at the draw; None = there were none."""
    staleness_max: int
    reward_mean: float | None
    """Mean reward of the fresh groups consumed; None = there were none, or they were inserted before it was kept."""
    replay_reward_mean: float | None
    """The same of the groups delivered from replay."""
    kl_mean: float | None
    """Mean over the feedback of the commit; None = none came."""
    ess_mean: float | None

    @property
    def shortfall(self) -> int:
        """Slots that stayed empty."""
        return self.batch_size - self.groups

    @property
    def effective_share(self) -> float | None:
        """Share of the fresh groups with reward variance; None = there were no fresh groups."""
        return self.fresh_effective / self.fresh if self.fresh else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """counts[i] values lie in edges[i] (included) to edges[i + 1] (excluded, but for the last); empty = no values."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupDistribution:
    """How staleness and priority are distributed over the groups of a place."""

    groups: int
    looked_at: int
    """Of these: all, or every n-th in their order."""
    staleness: Histogram
    priority: Histogram


@dataclass(frozen=True, slots=True, kw_only=True)
class TableHistory:
    """The newest training steps of a table, and its buffer; a second old at most."""

    steps: tuple[StepSummary, ...]
    """In ascending order."""
    newest_step: int | None
    """The newest step that is remembered; None = there is none."""
    steps_undone: int
    """How often steps were undone, by a rewind or a reset. Whoever keeps steps starts again when it has changed."""
    taken_at_ms: int
    """Unix milliseconds."""
    fresh: GroupDistribution
    """Groups that wait for next_batch."""
    replay: GroupDistribution
    """Groups that wait to be used again."""
