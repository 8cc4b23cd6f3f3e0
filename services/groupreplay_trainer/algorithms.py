"""The algorithms: each is a way to fill a batch and an objective, and nothing else. Imports no torch."""

from dataclasses import dataclass
from typing import Final, Literal

from groupreplay import Fill, Sampler
from groupreplay_trainer.loss_config import Objective

Algorithm = Literal[
    "popo", "popo-pi-old", "popo-mu", "popo-stale", "popo-ineff", "popo-kl", "grpo", "grpo-filter", "dapo"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """What an algorithm asks of the table and of the loss."""

    fill: Fill = Fill.REPLAY
    objective: Objective = Objective.DECOUPLED
    sampler: Sampler = Sampler.RECENCY
    min_staleness: int = 0
    replay_ineffective: bool = False


ARMS: Final[dict[Algorithm, Arm]] = {
    "popo": Arm(),
    "popo-pi-old": Arm(objective=Objective.PROXIMAL),
    "popo-mu": Arm(objective=Objective.COUPLED),
    "popo-stale": Arm(min_staleness=10),
    "popo-ineff": Arm(replay_ineffective=True),
    "popo-kl": Arm(sampler=Sampler.MIN_DIVERGENCE),
    "grpo": Arm(fill=Fill.KEEP, objective=Objective.PROXIMAL),
    "grpo-filter": Arm(fill=Fill.NONE, objective=Objective.PROXIMAL),
    "dapo": Arm(fill=Fill.RESAMPLE, objective=Objective.PROXIMAL),
}
