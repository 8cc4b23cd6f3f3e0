"""What must be reached: ratios within rounds, their median and spread, against the goals."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from service.measured import Round


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """One line of the table of goals."""

    name: str
    scenario: str
    of: str
    """Subject whose number is compared, or judged by itself."""
    to: Sequence[str] = ()
    """Subjects that it is compared with: with the lowest of them in each round. Empty = with none."""
    number: str = "groups_per_s"
    bound: float
    at_least: bool = True
    """Whether the bound is the least, or the most, that will do."""
    unit: str = "x"

    @property
    def goal(self) -> str:
        """The bound, for people."""
        return f"{'at least' if self.at_least else 'at most'} {self.bound:g} {self.unit}"

    def ratios(self, rounds: Sequence[Round]) -> list[float]:
        """Return the ratio of each round in which all of its subjects were measured."""
        subjects = {self.of, *self.to}
        return [self._ratio(each) for each in rounds if subjects <= each.measured.keys()]

    def _ratio(self, found: Round) -> float:
        value = found.measured[self.of][self.number]
        return value / min(found.measured[subject][self.number] for subject in self.to) if self.to else value


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What became of a goal; None = not measured."""

    name: str
    ratio: float | None
    """Median over the rounds."""
    low: float | None
    high: float | None
    rounds: int
    unit: str
    goal: str
    reached: bool | None


GOALS: Final = (
    Goal(name="streaming insert, M, to Reverb's insert", scenario="insert-M", of="stream", to=["reverb"], bound=3),
    Goal(name="insert with an ack each, M, to Reverb's insert", scenario="insert-M", of="each", to=["reverb"], bound=1),
    Goal(name="draw of 32, M, to Reverb's sample", scenario="draw-M", of="draw", to=["reverb"], bound=1),
    *(
        Goal(
            name=f"draw stream, {shape}, to bare gRPC",
            scenario=f"draw-{shape}",
            of="draw",
            to=["grpc"],
            number="mb_per_s",
            bound=0.7,
        )
        for shape in "DL"
    ),
    *(
        Goal(
            name=f"streaming insert, {shape}, to the slower of bare gRPC and Redis",
            scenario=f"insert-{shape}",
            of="stream",
            to=["grpc", "redis"],
            number="mb_per_s",
            bound=0.6,
        )
        for shape in "DL"
    ),
    Goal(
        name="streaming push, M, to Atropos' posts one by one",
        scenario="atropos-M",
        of="push",
        to=["atropos push"],
        bound=30,
    ),
    Goal(name="pull, M, to Atropos", scenario="atropos-M", of="pull", to=["atropos pull"], bound=300),
    *(
        Goal(
            name=f"{what}, largest table to 1e3 groups",
            scenario=scenario,
            of="largest",
            to=["1e3"],
            number="ms_per_batch",
            bound=2,
            at_least=False,
        )
        for what, scenario in (("NextBatch's work on the index", "index-lease"), ("a draw's", "index-draw"))
    ),
    Goal(
        name="server memory that a batch of D groups adds, of the batch",
        scenario="memory-D",
        of="batch",
        number="peak_share",
        bound=0.25,
        at_least=False,
    ),
    Goal(
        name="streaming insert, M, file synced every second to no file",
        scenario="durability-M",
        of="everysec",
        to=["memory"],
        bound=0.6,
    ),
    Goal(
        name="idle service, resident memory",
        scenario="idle",
        of="service",
        number="resident_mb",
        bound=120,
        at_least=False,
        unit="MB",
    ),
    Goal(
        name="import of the SDK",
        scenario="idle",
        of="sdk",
        number="import_ms",
        bound=250,
        at_least=False,
        unit="ms",
    ),
)


def rows_of(rounds: Mapping[str, Sequence[Round]], goals: Sequence[Goal] = GOALS) -> list[Row]:
    """Return a row for each goal, those that were not measured included."""
    return [_row(goal, goal.ratios(rounds.get(goal.scenario, ()))) for goal in goals]


def _row(goal: Goal, ratios: Sequence[float]) -> Row:
    if not ratios:
        return Row(
            name=goal.name, ratio=None, low=None, high=None, rounds=0, unit=goal.unit, goal=goal.goal, reached=None
        )
    median = statistics.median(ratios)
    return Row(
        name=goal.name,
        ratio=median,
        low=min(ratios),
        high=max(ratios),
        rounds=len(ratios),
        unit=goal.unit,
        goal=goal.goal,
        reached=median >= goal.bound if goal.at_least else median <= goal.bound,
    )
