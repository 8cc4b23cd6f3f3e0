"""What `groupreplay top` sees: looks at all tables of a service, and what changed between two of them."""

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from groupreplay import Client, Diagnosis, GroupReplayError, Policy, UnknownTableError
from groupreplay.groups import now_ms

WINDOW_S = 60.0
"""Rates, and shares of `recent` batches, go by the looks of so many seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """A service at one moment."""

    time_ms: int
    diagnoses: tuple[Diagnosis, ...] = ()
    """Of each table."""
    policies: tuple[Policy, ...] = ()
    """Of each run."""
    error: str = ""
    """Why the service could not be asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What became of a table within the window; None where nothing happened that could be divided by."""

    seconds: float
    inserted_per_s: float
    delivered_per_s: float
    effective_share: float | None
    """Of the groups inserted."""
    refilled_share: float | None
    """Of the groups delivered, those from replay."""
    shortfall: int
    """Slots of batches that stayed empty."""
    batches: int


def look(client: Client, *, run: str, batch_size: int) -> Look:
    """Ask a service about its tables, of one run or of all."""
    try:
        names = [(table.run, table.table) for table in client.list_tables(run=run)]
        diagnoses = []
        for each_run, table in names:
            try:
                diagnoses.append(client.diagnose(run=each_run, table=table, batch_size=batch_size))
            except UnknownTableError:
                continue  # it went meanwhile
        policies = tuple(client.get_policy(run=name) for name in sorted({name for name, _ in names}))
    except GroupReplayError as error:
        return Look(time_ms=now_ms(), error=str(error))
    return Look(time_ms=now_ms(), diagnoses=tuple(diagnoses), policies=policies)


class Recent:
    """The counters of the looks in the window."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, dict[tuple[str, str], Mapping[str, int]]]] = deque()

    def add(self, seen: Look) -> None:
        """Take note of a look; one that failed tells nothing."""
        if seen.error:
            return
        now_s = time.monotonic()
        self._looks.append((now_s, {(it.table.run, it.table.table): it.table.counters for it in seen.diagnoses}))
        while len(self._looks) > 2 and self._looks[1][0] <= now_s - WINDOW_S:
            self._looks.popleft()

    def pace(self, run: str, table: str) -> Pace | None:
        """Return what became of a table; None before it was looked at twice."""
        known = [(at_s, tables[run, table]) for at_s, tables in self._looks if (run, table) in tables]
        if len(known) < 2:
            return None
        (first_s, before), (last_s, now) = known[0], known[-1]
        return pace_between(before, now, seconds=last_s - first_s)


def pace_between(before: Mapping[str, int], now: Mapping[str, int], *, seconds: float) -> Pace:
    """Return what changed between two states of a table's counters."""

    def grown(name: str) -> int:
        return max(0, now.get(name, 0) - before.get(name, 0))

    inserted, delivered = grown("inserted"), grown("delivered_fresh") + grown("delivered_replay")
    return Pace(
        seconds=seconds,
        inserted_per_s=inserted / seconds,
        delivered_per_s=delivered / seconds,
        effective_share=grown("inserted_effective") / inserted if inserted else None,
        refilled_share=grown("delivered_replay") / delivered if delivered else None,
        shortfall=grown("shortfall"),
        batches=grown("batches") + grown("samples"),
    )
