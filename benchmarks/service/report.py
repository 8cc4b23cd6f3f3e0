"""What the benchmark leaves: tables, summary.json, pictures."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import matplotlib as mpl
from rich.console import Console

from service.goals import COSTS, Row, rows_of
from service.machine import Machine
from service.measured import Round, by_scenario
from service.stage import Effort

mpl.use("Agg")
from matplotlib import pyplot as plt

_COLUMNS: Final = {
    "groups_per_s": "groups/s",
    "mb_per_s": "MB/s",
    "inserted_per_s": "inserted/s",
    "table_groups": "groups in table",
    "ms_per_batch": "ms a batch",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "p999_ms": "p99.9 ms",
    "client_cpu_s_per_gb": "client CPU s/GB",
    "server_cpu_s_per_gb": "server CPU s/GB",
    "redis_cpu_s_per_gb": "Redis CPU s/GB",
    "server_peak_mb": "server peak MB",
    "resident_mb": "resident MB",
    "import_ms": "import ms",
}
_RATES: Final = ("ms_per_batch", "mb_per_s")
"""The number that a picture shows of a scenario: the first that it has."""


def write_report(
    rounds: Sequence[Round], folder: Path, machine: Machine, effort: Effort, console: Console
) -> list[Row]:
    """Write summary.json, results.md and pictures into the folder, and print the tables; return the rows."""
    found = by_scenario(rounds)
    rows, costs = rows_of(found), rows_of(found, COSTS)
    summary = {
        "machine": asdict(machine),
        "effort": asdict(effort),
        "rows": [asdict(row) for row in rows],
        "costs": [asdict(row) for row in costs],
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    text = "\n".join([goals_table(rows), costs_table(costs), scenario_tables(found)])
    (folder / "results.md").write_text(text)
    _draw_goals([row for row in rows if row.ratio is not None and row.unit == "x"], folder / "goals.png")
    _draw_scenarios(found, folder / "rates.png")
    console.print(text, markup=False)
    console.print(f"rows: {folder / 'summary.json'}   tables: {folder / 'results.md'}   pictures: {folder}/*.png")
    return rows


def scenario_tables(found: Mapping[str, Sequence[Round]]) -> str:
    """Return what was measured in each scenario."""
    return "\n".join(scenario_table(name, rounds) for name, rounds in found.items())


def goals_table(rows: Sequence[Row]) -> str:
    """Return the table of goals."""
    lines = ["| | median | low to high | goal | reached |", "|---|---|---|---|---|"]
    for row in rows:
        if row.ratio is None or row.low is None or row.high is None:
            lines.append(f"| {row.name} | not measured | | {row.goal} | |")
            continue
        spread = f"{row.low:.3g} to {row.high:.3g}, {row.rounds} rounds"
        lines.append(
            f"| {row.name} | {row.ratio:.3g} {row.unit} | {spread} | {row.goal} | {'yes' if row.reached else 'no'} |"
        )
    return "\n".join([*lines, ""])


def costs_table(rows: Sequence[Row]) -> str:
    """Return the table of what things cost: what of the throughput is left."""
    lines = ["| with | of the throughput without | low to high |", "|---|---|---|"]
    for row in rows:
        if row.ratio is None or row.low is None or row.high is None:
            lines.append(f"| {row.name} | not measured | |")
        else:
            spread = f"{row.low:.3g} to {row.high:.3g}, {row.rounds} rounds"
            lines.append(f"| {row.name} | {row.ratio:.3g} {row.unit} | {spread} |")
    return "\n".join([*lines, ""])


def scenario_table(name: str, rounds: Sequence[Round]) -> str:
    """Return the medians of a scenario's subjects."""
    numbers = [key for key in _COLUMNS if any(key in it for each in rounds for it in each.measured.values())]
    subjects = list(dict.fromkeys(subject for each in rounds for subject in each.measured))
    lines = [f"### {name}", "", "| subject | " + " | ".join(_COLUMNS[key] for key in numbers) + " |"]
    lines.append("|---" * (len(numbers) + 1) + "|")
    for subject in subjects:
        cells = [_median(rounds, subject, key) for key in numbers]
        lines.append(f"| {subject} | " + " | ".join("" if it is None else f"{it:.3g}" for it in cells) + " |")
    return "\n".join([*lines, ""])


def _median(rounds: Sequence[Round], subject: str, key: str) -> float | None:
    values = [each.measured[subject][key] for each in rounds if key in each.measured.get(subject, {})]
    return statistics.median(values) if values else None


def _draw_goals(rows: Sequence[Row], path: Path) -> None:
    """Draw how far each ratio is from its goal: right of 1 it is reached, in either direction of the bound."""
    figure, axes = plt.subplots(figsize=(10, 0.45 * len(rows) + 1.5), layout="constrained")
    for height, row in enumerate(reversed(rows)):
        _, _, bound, _ = row.goal.split()
        low, middle, high = (_share(value, float(bound), row.goal) for value in (row.low, row.ratio, row.high))
        colour = "tab:green" if row.reached else "tab:red"
        axes.plot([low, high], [height, height], color=colour, linewidth=2)
        axes.plot([middle], [height], "o", color=colour)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(rows)), [f"{row.name} ({row.goal})" for row in reversed(rows)])
    axes.set_xscale("log")
    axes.set_xlabel("of the goal; lowest, median and highest round")
    axes.grid(alpha=0.3, axis="x")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _share(value: float | None, bound: float, goal: str) -> float:
    assert value is not None
    return value / bound if goal.startswith("at least") else bound / max(value, 1e-9)


def _draw_scenarios(found: Mapping[str, Sequence[Round]], path: Path) -> None:
    """Draw each round of each subject, a panel for each scenario."""
    shown = [(name, key) for name, rounds in found.items() if (key := _rate_of(rounds))]
    if not shown:
        return
    columns = 4
    lines = -(-len(shown) // columns)
    figure, grid = plt.subplots(lines, columns, figsize=(16, 3 * lines), layout="constrained", squeeze=False)
    for axes in grid.flat[len(shown) :]:
        axes.set_axis_off()
    for axes, (name, key) in zip(grid.flat, shown, strict=False):
        subjects = list(dict.fromkeys(subject for each in found[name] for subject in each.measured))
        for place, subject in enumerate(subjects):
            values = [each.measured[subject][key] for each in found[name] if subject in each.measured]
            axes.plot([place] * len(values), values, "o", alpha=0.6)
        axes.set_xticks(range(len(subjects)), subjects, rotation=20, fontsize="small")
        axes.set_ylim(bottom=0)
        axes.set_title(f"{name}: {_COLUMNS[key]}", fontsize="medium")
        axes.grid(alpha=0.3, axis="y")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _rate_of(rounds: Sequence[Round]) -> str:
    numbers = [set(numbers) for each in rounds for numbers in each.measured.values()]
    return next((key for key in _RATES if numbers and all(key in it for it in numbers)), "")
