"""A frame of `groupreplay top`: all tables, and below them who produces, who holds, and what is in the way."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from rich.console import Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from groupreplay import Diagnosis, Finding, Lease, Policy, Producer, ProducerHealth, Severity
from groupreplay_admin.observing import Look, Pace, Recent
from groupreplay_admin.output import age, clean, short

_SEVERITY = {Severity.PROBLEM: "bold red", Severity.WARNING: "yellow", Severity.INFO: "green"}
_HEALTH = {ProducerHealth.DEAD: "bold red", ProducerHealth.SLOW: "yellow", ProducerHealth.ALIVE: "green"}
_WORST_FIRST = list(_HEALTH)
_HEADINGS = ("ver", "fresh", "replay", "lease", "bytes", "eff", "in/s", "out/s", "refil", "short", "stale")
_FIGURES = 66
"""Columns that the figures of a table take."""


class Order(StrEnum):
    """What tables are sorted by."""

    NAME = "name"
    FRESH = "fresh"
    RATE = "rate"
    BYTES = "bytes"


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What the person at the keys wants to see."""

    server: str
    order: Order = Order.NAME
    selected: int = 0
    """Row of the table whose details are shown."""
    keys: str = ""
    """What the keys do; empty where there are none, and the details of all tables are shown."""


def frame(seen: Look, recent: Recent, view: View, *, columns: int, lines: int) -> RenderableType:
    """Return a frame that is made for so many columns and lines."""
    ordered = sort_tables(seen.diagnoses, recent, view.order)
    parts: list[RenderableType] = [_head(seen, view)]
    if seen.error:
        parts.append(Text(clean(seen.error), style="bold red"))
    elif not ordered:
        parts.append(Text("no tables yet"))
    if ordered:
        selected = min(view.selected, len(ordered) - 1)
        most = max(3, lines // 3)
        first = max(0, min(selected - most // 2, len(ordered) - most))
        shown = ordered[first : first + most]
        parts.append(_tables(shown, selected - first, recent, columns))
        if len(ordered) > len(shown):
            parts.append(Text(f"{len(ordered) - len(shown)} more tables", style="dim"))
        for it in [ordered[selected]] if view.keys else ordered:
            parts += _details(it, seen, columns, room=lines - len(shown) - 6)
    return Group(*parts)


def sort_tables(found: Sequence[Diagnosis], recent: Recent, order: Order) -> list[Diagnosis]:
    """Return tables by name, or the largest of something first."""

    def largest(it: Diagnosis) -> float:
        match order:
            case Order.FRESH:
                return it.table.fresh
            case Order.BYTES:
                return it.table.payload_bytes
            case Order.RATE:
                pace = recent.pace(it.table.run, it.table.table)
                return pace.inserted_per_s + pace.delivered_per_s if pace else 0
        return 0

    return sorted(found, key=lambda it: (-largest(it), it.table.run, it.table.table))


def _head(seen: Look, view: View) -> Text:
    clock = datetime.fromtimestamp(seen.time_ms / 1000).astimezone().strftime("%H:%M:%S")
    head = Text(f"groupreplay {view.server}  {clock}", no_wrap=True, overflow="ellipsis")
    head.stylize("bold")
    return head.append(f"  {view.keys}, by {view.order.value}" if view.keys else "", style="not bold dim")


def _grid() -> Grid:
    return Grid(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")


def _add_names(grid: Grid, heading: str, most: int) -> None:
    """Add a column whose long values are cut, or figures beside it would be."""
    grid.add_column(heading, no_wrap=True, overflow="ellipsis", max_width=max(len(heading), most))


def _tables(shown: Sequence[Diagnosis], selected: int, recent: Recent, columns: int) -> Grid:
    grid = _grid()
    _add_names(grid, "table", columns - _FIGURES)
    for heading in _HEADINGS:
        grid.add_column(heading, justify="right", no_wrap=True)
    for index, it in enumerate(shown):
        name = Text(f"{it.table.run}/{it.table.table}", style="green" if it.ready else "red")
        pace = recent.pace(it.table.run, it.table.table)
        grid.add_row(name, *_cells(it, pace), style="reverse" if index == selected and len(shown) > 1 else "")
    return grid


def _cells(it: Diagnosis, pace: Pace | None) -> Iterator[str]:
    table = it.table
    yield from map(short, (table.policy_version, table.fresh, table.replay, table.leased, table.payload_bytes))
    yield _share(pace.effective_share if pace else None)
    yield short(pace.inserted_per_s) if pace else "-"
    yield short(pace.delivered_per_s) if pace else "-"
    yield _share(pace.refilled_share if pace else None)
    yield short(pace.shortfall) if pace else "-"
    yield _staleness(it)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _staleness(it: Diagnosis) -> str:
    """Return how many versions the newest and the oldest replay group are behind."""
    newest, oldest = it.table.replay_version_max, it.table.replay_version_min
    if newest is None or oldest is None:
        return "-"
    now = it.table.policy_version
    return short(now - oldest) if newest == oldest else f"{short(now - newest)}-{short(now - oldest)}"


def _details(it: Diagnosis, seen: Look, columns: int, *, room: int) -> Iterator[RenderableType]:
    policy = next((each for each in seen.policies if each.run == it.table.run), None)
    yield Text("")
    yield _title(it, policy, seen.time_ms)
    for finding in it.findings[: max(3, room // 4)]:
        yield _finding(finding)
    producers = sorted(it.producers, key=lambda each: (_WORST_FIRST.index(each.health), each.producer_id))
    yield _producers(producers, seen.time_ms, columns, most=max(2, room // 4))
    leases = sorted(it.leases, key=lambda each: each.deadline_ms)
    yield _leases(leases, seen.time_ms, columns, most=max(2, room // 4))


def _title(it: Diagnosis, policy: Policy | None, time_ms: int) -> Text:
    parts = []
    if policy is not None:
        parts.append(f"policy version {policy.version}")
        if policy.published_at_ms:
            parts.append(f"{age((time_ms - policy.published_at_ms) / 1000)} old")
        if policy.weights_uri:
            parts.append(policy.weights_uri)
    title = Text(f"{it.table.run}/{it.table.table}", style="bold", no_wrap=True, overflow="ellipsis")
    return title.append(clean("  " + ", ".join(parts)), style="not bold")


def _finding(found: Finding) -> Text:
    return Text(f"{found.severity.value:<8}", style=_SEVERITY[found.severity]).append(clean(found.text), style="none")


def _producers(found: Sequence[Producer], time_ms: int, columns: int, *, most: int) -> RenderableType:
    if not found:
        return Text("producers: none", style="dim")
    grid = _grid()
    _add_names(grid, f"producer ({len(found)})", columns // 3)
    grid.add_column("pulse", no_wrap=True)
    for heading in ("heard", "groups", "eff", "refused"):
        grid.add_column(heading, justify="right", no_wrap=True)
    _add_names(grid, "says", columns - columns // 3 - 34)
    for it in found[:most]:
        effective = _share(it.effective / it.inserted if it.inserted else None)
        heard = age((time_ms - it.last_seen_ms) / 1000)
        pulse = Text(it.health.value, style=_HEALTH[it.health])
        says = Text(clean(it.status))
        grid.add_row(it.producer_id, pulse, heard, short(it.inserted), effective, short(it.refused), says)
    return grid


def _leases(found: Sequence[Lease], time_ms: int, columns: int, *, most: int) -> RenderableType:
    if not found:
        return Text("leases: none", style="dim")
    grid = _grid()
    _add_names(grid, f"lease ({len(found)})", columns // 3)
    _add_names(grid, "holder", columns // 3)
    for heading in ("groups", "fresh", "ends in"):
        grid.add_column(heading, justify="right", no_wrap=True)
    for it in found[:most]:
        left = age((it.deadline_ms - time_ms) / 1000)
        grid.add_row(it.lease_id, Text(clean(it.holder) or "-"), short(it.groups), short(it.fresh), left)
    return grid
