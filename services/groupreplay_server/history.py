"""The history of tables, for whoever watches: read once a second at most, however many watch."""

import asyncio
import math
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from groupreplay.history import GroupDistribution, Histogram, StepSummary, TableHistory
from groupreplay_server.limits import check_names, check_range
from groupreplay_server.store.history_store import HistoryReading, HistoryStore, WaitingGroups

MAX_STEPS = 1000
FRESH_FOR_S = 1.0
"""How long an answer is given again."""
TABLES_KEPT = 32
LATE_STEPS = 32
"""Steps that may be committed after newer ones, by trainers that share a table."""
BINS = 20
_MAX_STEP = 2**53 - 1


@dataclass(slots=True)
class _Known:
    """What was read of a table."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    history: TableHistory | None = None
    until_s: float = -math.inf


class Histories:
    """Reads histories, and keeps those of the tables that were asked for last."""

    def __init__(self, store: HistoryStore, seconds: Callable[[], float] = time.monotonic) -> None:
        """seconds returns the time that answers age by."""
        self._store = store
        self._seconds = seconds
        self._known: OrderedDict[tuple[str, str], _Known] = OrderedDict()

    async def read(self, run: str, table: str, *, after_step: int = -1, limit: int = MAX_STEPS) -> TableHistory:
        """Return the newest `limit` steps beyond after_step, and the buffer as it was a second ago at most."""
        check_names(run, table)
        check_range("after_step", after_step, -1, _MAX_STEP)
        check_range("limit", limit, 1, MAX_STEPS)
        known = self._known.setdefault((run, table), _Known())
        self._known.move_to_end((run, table))
        while len(self._known) > TABLES_KEPT:
            self._known.popitem(last=False)
        async with known.lock:
            if known.history is None or self._seconds() >= known.until_s:
                known.history = await self._refreshed(run, table, known.history)
                known.until_s = self._seconds() + FRESH_FOR_S
        history = known.history
        return replace(history, steps=tuple(step for step in history.steps if step.step > after_step)[-limit:])

    async def _refreshed(self, run: str, table: str, before: TableHistory | None) -> TableHistory:
        """Read only what is new, where nothing was undone, or lost with its Redis."""
        if before is not None and before.steps:
            newest = before.steps[-1].step
            after_step = max(newest - LATE_STEPS, -1)
            reading = await self._store.read(run, table, after_step=after_step, limit=MAX_STEPS)
            is_whole = reading.newest_step is not None and reading.newest_step >= newest
            if is_whole and reading.steps_undone == before.steps_undone:
                return _history(reading, [step for step in before.steps if step.step <= after_step])
        return _history(await self._store.read(run, table, after_step=-1, limit=MAX_STEPS), [])


def _history(reading: HistoryReading, earlier: Sequence[StepSummary]) -> TableHistory:
    both = reading.fresh, reading.replay
    ages = bin_edges([age for place in both for age in place.staleness], whole=True)
    priorities = bin_edges([priority for place in both for priority in place.priority])

    def distribution(waiting: WaitingGroups) -> GroupDistribution:
        return GroupDistribution(
            groups=waiting.groups,
            looked_at=waiting.looked_at,
            staleness=histogram(waiting.staleness, ages),
            priority=histogram(waiting.priority, priorities),
        )

    return TableHistory(
        steps=(*earlier, *reading.steps)[-MAX_STEPS:],
        newest_step=reading.newest_step,
        steps_undone=reading.steps_undone,
        taken_at_ms=reading.taken_at_ms,
        fresh=distribution(reading.fresh),
        replay=distribution(reading.replay),
    )


def bin_edges(values: Sequence[float], *, whole: bool = False) -> list[float]:
    """Return the edges of at most BINS bins of one width that hold values; of whole numbers, so many numbers each."""
    if not values:
        return []
    low, high = min(values), max(values)
    if whole:
        width = math.ceil((high - low + 1) / BINS)
        return [float(low + width * index) for index in range(int(high - low) // width + 2)]
    bins = BINS if high > low else 1
    return [low + (high - low) * (index / bins) for index in range(bins)] + [high]


def histogram(values: Sequence[float], edges: Sequence[float]) -> Histogram:
    """Return how many values lie in each bin; without values, no bins."""
    if not values:
        return Histogram(edges=(), counts=())
    counts = [0] * (len(edges) - 1)
    for value in values:
        counts[min(bisect_right(edges, value) - 1, len(counts) - 1)] += 1
    return Histogram(edges=tuple(edges), counts=tuple(counts))
