"""What is compared: the algorithms of the paper's ablation, and variations of GRPO and POPO."""

from dataclasses import dataclass
from typing import Final, Literal

from groupreplay_trainer.algorithms import Algorithm
from groupreplay_trainer.sections import LossSettings, Preset, ReplaySettings

ROLLOUTS_PER_STEP: Final = 512
"""Of every arm but DAPO, which samples on: groups of 4, 8 or 16 make batches of 128, 64 or 32 groups."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One thing to compare.

    Attributes:
        like: name of the arm whose learning rate it is given; an arm of the main comparison is tuned by itself.
        versions_ahead: batches that the generator may be ahead of the trainer; 0 = fresh groups are on-policy.
    """

    name: str
    algorithm: Algorithm
    preset: Preset = "faithful"
    advantages: Literal["grpo", "dr-grpo", "rloo"] = "grpo"
    objective: Literal["decoupled", "proximal", "coupled"] | None = None
    group_size: int = 8
    versions_ahead: int = 0
    like: str = ""

    @property
    def batch_size(self) -> int:
        """Groups in a batch."""
        return ROLLOUTS_PER_STEP // self.group_size

    @property
    def loss(self) -> LossSettings:
        """The loss of its trainer."""
        return LossSettings(advantages=self.advantages, objective=self.objective)

    @property
    def replay(self) -> ReplaySettings:
        """The table of its trainer."""
        return ReplaySettings(ahead_groups=self.versions_ahead * self.batch_size)


MAIN: Final = (
    Arm(name="grpo", algorithm="grpo"),
    Arm(name="grpo-filter", algorithm="grpo-filter"),
    Arm(name="dapo", algorithm="dapo"),
    Arm(name="popo", algorithm="popo"),
    Arm(name="popo-robust", algorithm="popo", preset="robust"),
    Arm(name="popo-pi-old", algorithm="popo-pi-old"),
    Arm(name="popo-mu", algorithm="popo-mu"),
    Arm(name="popo-stale", algorithm="popo-stale"),
    Arm(name="popo-ineff", algorithm="popo-ineff"),
    Arm(name="popo-kl", algorithm="popo-kl"),
)

_AHEAD_OBJECTIVES: Final[tuple[tuple[str, Literal["proximal", "decoupled"]], ...]] = (
    ("", "proximal"),
    ("-weighted", "decoupled"),
)

EXTRA: Final = (
    *(
        Arm(name=f"{algorithm}-g{size}", algorithm=algorithm, group_size=size, like=algorithm)
        for algorithm in ("grpo", "popo")
        for size in (4, 16)
    ),
    *(
        Arm(name=f"{algorithm}-rloo", algorithm=algorithm, advantages="rloo", like=algorithm)
        for algorithm in ("grpo", "popo")
    ),
    *(
        Arm(
            name=f"grpo-ahead{ahead}{suffix}",
            algorithm="grpo",
            objective=objective,
            versions_ahead=ahead,
            like="grpo",
        )
        for ahead in (1, 2, 4, 8)
        for suffix, objective in _AHEAD_OBJECTIVES
    ),
)

ARMS: Final = {arm.name: arm for arm in (*MAIN, *EXTRA)}
