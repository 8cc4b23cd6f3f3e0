"""Warnings when a run leaves what is healthy. Imports no torch: the reference is generated from it.

The alarms are a function of the lines of train.jsonl alone, so that a trainer that resumes knows which are on.
"""

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from groupreplay_trainer.loss_config import Objective
from groupreplay_trainer.settings import TrainerSettings

CALM_FACTOR: Final = 3
"""An alarm ends after so many times the steps in a row that raised it, so that a run along a line is not a hail of
warnings."""
BASELINE_STEPS: Final = 5
CORRECTED_STALENESS: Final = 10
"""Up to about ten policy versions are tolerated with behaviour weights, two to three without them."""
UNCORRECTED_STALENESS: Final = 3

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """One line that a healthy run does not cross."""

    name: str
    """That of its setting in the section alarms."""
    what: str
    """What is compared with the line."""
    lower: bool = False
    """Whether the line is a lower limit."""
    meaning: str
    advice: str

    def crossed(self, value: float, line: float) -> bool:
        """Return whether a value lies beyond the line."""
        return value < line if self.lower else value > line


ALARMS: Final = (
    Alarm(
        name="replay_share",
        what="replay share of the batch",
        meaning="most of the batch is replay, and not fresh: fewer effective groups, more and older replay, worse "
        "updates is how runs collapse",
        advice="lower optimizer.lr, set replay.max_staleness, or choose prompts that the policy solves sometimes",
    ),
    Alarm(
        name="staleness",
        what="staleness of the oldest group (policy versions)",
        meaning="groups are older than behaviour weights can correct for",
        advice="set replay.max_staleness, lower replay.capacity or replay.ahead_groups, or give the oldest groups less "
        "weight with replay.recency_decay",
    ),
    Alarm(
        name="kl",
        what="KL of replayed tokens (nats per token)",
        meaning="the policy has moved far from those that sampled the replay",
        advice="lower optimizer.lr or optimizer.minibatches, set replay.max_staleness or replay.max_kl, or use preset "
        "robust",
    ),
    Alarm(
        name="ess",
        what="effective sample size of replayed tokens (a share of them)",
        lower=True,
        meaning="few tokens carry most of the weight, so updates are noisy",
        advice="use preset robust or loss.weight_cap, lower optimizer.lr, or set replay.max_staleness",
    ),
    Alarm(
        name="weight_p99",
        what="99th percentile of the behaviour weights",
        meaning="a hundredth of the replayed tokens is multiplied by more than this",
        advice="use preset robust or loss.weight_cap, and check that generators sample at loss.temperature",
    ),
    Alarm(
        name="effective_ratio",
        what="effective share of fresh groups",
        lower=True,
        meaning="nearly all fresh groups are all right or all wrong, and teach nothing",
        advice="choose prompts that the policy solves sometimes, raise the rollouts per prompt, and check the verifier",
    ),
    Alarm(
        name="entropy_share",
        what="entropy (a share of that of the first steps)",
        lower=True,
        meaning="the policy hardly explores any more; rollouts of a group will all be alike",
        advice="raise loss.clip_high or loss.entropy_coefficient, or lower optimizer.lr",
    ),
    Alarm(
        name="grad_norm",
        what="gradient norm (multiples of optimizer.max_grad_norm)",
        meaning="nearly all of the gradient is cut off; a few tokens may dominate it",
        advice="use preset robust, lower optimizer.lr, and look at the longest responses",
    ),
)


@dataclass(slots=True, kw_only=True)
class _State:
    is_on: bool = False
    in_a_row: int = 0
    """Steps in a row that speak for the other state."""


class Alarms:
    """Which alarms of a run are on."""

    def __init__(self, settings: TrainerSettings) -> None:
        """Draw the lines; all alarms are off."""
        self._settings = settings
        self._lines = lines_of(settings)
        self.restart(())

    def restart(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Take the state that a run is in after these lines of train.jsonl, silently."""
        self._states = {alarm.name: _State() for alarm in ALARMS}
        self._entropies: list[float] = []
        for record in records:
            self._judge(record)

    def judge(self, record: Mapping[str, Any]) -> list[str]:
        """Return the names of the alarms that are on after a step; log a warning for each that it turned on.

        Args:
            record: the step's line of train.jsonl. Where it has no value, as in a step without replay, nothing is
                beyond the line.
        """
        before = self.names
        values = self._judge(record)
        for alarm in ALARMS:
            if self._states[alarm.name].is_on == (alarm.name in before):
                continue
            value, line = values[alarm.name], self._lines[alarm.name]
            if alarm.name in before:
                _log.info("alarm %s is over at step %s", alarm.name, record["step"])
            else:
                _log.warning(
                    "alarm %s at step %s: the %s is %.3g, %s %.3g for %d steps in a row: %s. What helps: %s",
                    *(alarm.name, record["step"], alarm.what, value, "below" if alarm.lower else "above", line),
                    *(self._settings.alarms.steps, alarm.meaning, alarm.advice),
                )
        return self.names

    @property
    def names(self) -> list[str]:
        """The alarms that are on."""
        return [name for name, state in self._states.items() if state.is_on]

    def _judge(self, record: Mapping[str, Any]) -> dict[str, float | None]:
        """Let a step count, and return what was compared with the lines."""
        values = self._values(record)
        for alarm in ALARMS:
            value, state = values[alarm.name], self._states[alarm.name]
            crossed = value is not None and alarm.crossed(value, self._lines[alarm.name])
            state.in_a_row = 0 if crossed == state.is_on else state.in_a_row + 1
            if state.in_a_row >= self._settings.alarms.steps * (CALM_FACTOR if state.is_on else 1):
                state.is_on, state.in_a_row = crossed, 0
        return values

    def _values(self, record: Mapping[str, Any]) -> dict[str, float | None]:
        staleness_mean, grad_norm, entropy = (record.get(k) for k in ("staleness_mean", "grad_norm_mean", "entropy"))
        fresh_enough = staleness_mean is None or staleness_mean <= self._settings.alarms.replay_share_staleness
        if entropy is not None and len(self._entropies) < BASELINE_STEPS:
            self._entropies.append(entropy)
        usual = math.fsum(self._entropies) / BASELINE_STEPS if len(self._entropies) == BASELINE_STEPS else 0
        return {
            "replay_share": None if fresh_enough else record.get("replay_share"),
            "staleness": record.get("staleness_max"),
            "kl": record.get("kl_k3"),
            "ess": record.get("ess"),
            "weight_p99": record.get("weight_p99"),
            "effective_ratio": record.get("effective_ratio"),
            "entropy_share": entropy / usual if entropy is not None and usual else None,
            "grad_norm": None if grad_norm is None else grad_norm / self._settings.optimizer.max_grad_norm,
        }


def lines_of(settings: TrainerSettings) -> dict[str, float]:
    """Return the line of each alarm, by name."""
    lines = {alarm.name: getattr(settings.alarms, alarm.name) for alarm in ALARMS}
    if lines["staleness"] is None:
        corrected = settings.loss_config().objective is not Objective.PROXIMAL
        tolerated = CORRECTED_STALENESS if corrected else UNCORRECTED_STALENESS
        lines["staleness"] = tolerated + settings.table_config().min_staleness
    return lines
