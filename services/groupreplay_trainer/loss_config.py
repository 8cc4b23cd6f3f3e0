"""The settings of the loss. Imports no torch, so that a wrong one is refused at once.

Everything here can be imported from `groupreplay_trainer.loss` as well.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Self


class Objective(StrEnum):
    """Which ratio is clipped, and whether the behaviour weight is applied."""

    DECOUPLED = "decoupled"
    """POPO: current / proximal clipped around proximal, times proximal / behaviour."""
    PROXIMAL = "proximal"
    """Clipped GRPO, and POPO-pi_old on replay: as decoupled with every behaviour weight 1."""
    COUPLED = "coupled"
    """POPO-mu: current / behaviour clipped around behaviour."""


class WeightLevel(StrEnum):
    """What shares one behaviour weight."""

    TOKEN = "token"  # noqa: S105 - not a password
    SEQUENCE_SUM = "sequence-sum"
    """exp of the sum of a response's log ratios: unbiased, of large variance."""
    SEQUENCE_MEAN = "sequence-mean"
    """exp of their mean: the geometric mean of the token weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """The settings of `decoupled_loss`.

    Raises:
        ValueError: a number is out of range, or a limit on weights is given to an objective that has none.
    """

    objective: Objective = Objective.DECOUPLED
    clip_low: float = 0.2
    """Lower half-width of the trust region [1 - clip_low, 1 + clip_high], in (0, 1)."""
    clip_high: float = 0.28
    """Upper half-width, > 0."""
    dual_clip: float | None = None
    """For negative advantages the surrogate is at least dual_clip * A; > 1, usually 10. None = off."""
    weight_level: WeightLevel = WeightLevel.TOKEN
    weight_cap: float | None = None
    """Behaviour weights above this are lowered to it (truncated importance sampling); > 0. None = uncapped."""
    weight_bounds: tuple[float, float] | None = None
    """Tokens (or sequences) whose weight lies outside [low, high] are left out (IcePop); 0 <= low < high."""
    veto_below: float | None = None
    """A response with any token of weight below this is left out as a whole; in (0, 1), usually 1e-4. None = off."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _require(0 < self.clip_low < 1, "clip_low", self.clip_low, "in (0, 1)")
        _require(0 < self.clip_high < math.inf, "clip_high", self.clip_high, "finite and above 0")
        if self.dual_clip is not None:
            _require(1 < self.dual_clip < math.inf, "dual_clip", self.dual_clip, "finite and above 1")
        if self.weight_cap is not None:
            _require(0 < self.weight_cap < math.inf, "weight_cap", self.weight_cap, "finite and above 0")
        if self.veto_below is not None:
            _require(0 < self.veto_below < 1, "veto_below", self.veto_below, "in (0, 1)")
        if self.weight_bounds is not None:
            low, high = self.weight_bounds
            _require(0 <= low < high, "weight_bounds", self.weight_bounds, "ascending from 0 or above")
        limits = (self.weight_cap, self.weight_bounds, self.veto_below)
        if self.objective is not Objective.DECOUPLED and limits != (None, None, None):
            raise ValueError(
                f"objective {self.objective.value!r} has no behaviour weights, so weight_cap, weight_bounds and "
                f"veto_below {limits} would change nothing; leave them out or choose objective 'decoupled'"
            )

    @classmethod
    def faithful(cls) -> Self:
        """Return POPO as published: token level, uncapped."""
        return cls()

    @classmethod
    def robust(cls) -> Self:
        """Return POPO with token weights truncated at 2, which tolerates larger steps and older replay."""
        return cls(weight_cap=2.0)


def _require(holds: bool, name: str, value: object, what: str) -> None:
    if not holds:
        raise ValueError(f"{name} {value!r} must be {what}")
