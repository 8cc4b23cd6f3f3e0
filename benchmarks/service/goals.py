"""What is compared: ratios within rounds, their median and spread, against the goals where there are some."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from service.measured import Round


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A number of one subject, of that of others in the same round."""

    name: str
    scenario: str
    of: str
    """Subject whose number is compared, or told by itself."""
    to: Sequence[str] = ()
    """Subjects that it is compared with: with the lowest of them in each round. Empty = with none."""
    number: str = "groups_per_s"
    unit: str = "x"

    def ratios(self, rounds: Sequence[Round]) -> list[float]:
        """Return the ratio of each round in which all of its subjects were measured."""
        subjects = {self.of, *self.to}
        return [self._ratio(each) for each in rounds if subjects <= each.measured.keys()]

    def _ratio(self, found: Round) -> float:
        value = found.measured[self.of][self.number]
        return value / min(found.measured[subject][self.number] for subject in self.to) if self.to else value


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal(Comparison):
    """One line of the table of goals."""

    bound: float
    at_least: bool = True
    """Whether the bound is the least, or the most, that will do."""

    @property
    def goal(self) -> str:
        """The bound, for people."""
        return f"{'at least' if self.at_least else 'at most'} {self.bound:g} {self.unit}"

    def is_reached(self, median: float) -> bool:
        """Whether such a median will do."""
        return median >= self.bound if self.at_least else median <= self.bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What became of a comparison; None = not measured."""

    name: str
    ratio: float | None
    """Median over the rounds."""
    low: float | None
    high: float | None
    rounds: int
    unit: str
    goal: str = ""
    """Empty = there is none."""
    reached: bool | None = None


GOALS: Final = (
    Goal(name="streaming insert, M, to Reverb's insert", scenario="insert-M", of="stream", to=["reverb"], bound=3),
    Goal(name="insert with an ack each, M, to Reverb's insert", scenario="insert-M", of="each", to=["reverb"], bound=1),
    Goal(name="draw of 32, M, to Reverb's sample", scenario="draw-M", of="draw", to=["reverb"], bound=1),
    *(
        Goal(
            name=f"draw stream, {shape}, one batch ahead, to bare gRPC",
            scenario=f"draw-{shape}",
            of="draw, one ahead",
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


COSTS: Final = (
    *(
        Comparison(name=f"{what}, streaming insert, M", scenario=scenario, of=of, to=[to])
        for what, scenario, of, to in (
            ("a file that Redis syncs every second", "durability-M", "everysec", "memory"),
            ("durability aof, synced always", "durability-M", "aof, synced always", "memory"),
            ("durability replicas, one replica", "replicas-M", "replicas", "memory"),
            ("TLS", "access-insert-M", "tls", "open"),
            ("tokens", "access-insert-M", "tokens", "open"),
            ("an open page", "page-insert-M", "with", "without"),
        )
    ),
    *(
        Comparison(name=f"{what}, draw of 32, M", scenario=scenario, of=of, to=[to])
        for what, scenario, of, to in (
            ("TLS", "access-draw-M", "tls", "open"),
            ("tokens", "access-draw-M", "tokens", "open"),
            ("an open page", "page-draw-M", "with", "without"),
            ("a commit with feedback", "feedback-M", "with", "without"),
        )
    ),
)
"""What something costs: throughput with it, of that without it."""


def rows_of(rounds: Mapping[str, Sequence[Round]], compared: Sequence[Comparison] = GOALS) -> list[Row]:
    """Return a row for each comparison, those that were not measured included."""
    return [_row(each, each.ratios(rounds.get(each.scenario, ()))) for each in compared]


def _row(compared: Comparison, ratios: Sequence[float]) -> Row:
    bound = compared.goal if isinstance(compared, Goal) else ""
    if not ratios:
        return Row(name=compared.name, ratio=None, low=None, high=None, rounds=0, unit=compared.unit, goal=bound)
    median = statistics.median(ratios)
    return Row(
        name=compared.name,
        ratio=median,
        low=min(ratios),
        high=max(ratios),
        rounds=len(ratios),
        unit=compared.unit,
        goal=bound,
        reached=compared.is_reached(median) if isinstance(compared, Goal) else None,
    )
