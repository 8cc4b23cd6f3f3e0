"""What the experiment leaves: tables, summary.json, pictures."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import matplotlib as mpl
import numpy as np
from rich.console import Console

from experiment.analysis import Interval, Row, rows_of
from experiment.plan import LEARNING_RATES
from experiment.results import Result, by_pair, mean

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes


def write_report(results: Mapping[str, Result], folder: Path, console: Console) -> None:
    """Write results.md, summary.json and a picture for each task into the folder, and print the tables."""
    tasks = list(dict.fromkeys(result.task for result in results.values()))
    rows = {(task, phase): rows_of(results, task=task, phase=phase) for task in tasks for phase in ("main", "extra")}
    summary = [asdict(row) | {"phase": phase} for (_, phase), found in rows.items() for row in found]
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    parts = [_tuning_table(results, task) for task in tasks]
    parts += [_table(found, f"{task}, {phase}") for (task, phase), found in rows.items() if found]
    (folder / "results.md").write_text("\n".join(parts))
    for task in tasks:
        if rows[task, "main"]:
            _draw(results, rows[task, "main"], folder / f"{task}.png")
    console.print("\n".join(parts), markup=False)
    console.print(f"tables: {folder / 'results.md'}   rows: {folder / 'summary.json'}   pictures: {folder}/*.png")


def _tuning_table(results: Mapping[str, Result], task: str) -> str:
    tuned = [result for result in results.values() if (result.task, result.phase) == (task, "tune")]
    if not tuned:
        return ""
    lines = [f"### {task}: accuracy on the tuning seed, mean of the last four evaluations", ""]
    rates = sorted({result.lr for result in tuned} or LEARNING_RATES)
    lines += ["| arm | " + " | ".join(f"{rate:g}" for rate in rates) + " |", "|---" * (len(rates) + 1) + "|"]
    for arm in dict.fromkeys(result.arm for result in tuned):
        cells = []
        for rate in rates:
            found = [result for result in tuned if (result.arm, result.lr) == (arm, rate)]
            cells.append(f"{mean([result.tuning_accuracy for result in found]):.3f}" if found else "")
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _table(rows: list[Row], title: str) -> str:
    head = (
        "arm", "runs", "lr", "final accuracy", "at equal rollouts", "less POPO", "reached GRPO's end", "in rollouts",
        "in seconds", "reached POPO's end", "in rollouts", "rollouts", "updates", "CPU s", "effective", "replay",
        "staleness", "lowest ESS", "highest KL", "collapsed",
    )  # fmt: skip
    lines = [f"### {title}", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
    return "\n".join([*lines, ""])


def _cells(row: Row) -> list[str]:
    return [
        row.arm,
        str(row.runs),
        f"{row.lr:g}",
        _interval(row.accuracy),
        _interval(row.accuracy_at_equal_rollouts),
        "" if row.difference is None else _interval(row.difference, sign="+"),
        f"{row.reached} of {row.runs}",
        _ratio(row.rollouts_ratio),
        _ratio(row.seconds_ratio),
        f"{row.reached_popo} of {row.runs}",
        _ratio(row.popo_rollouts_ratio),
        f"{row.rollouts / 1000:.1f}k",
        f"{row.updates:.0f}",
        f"{row.cpu_seconds:.0f}",
        f"{row.effective_share:.2f}",
        f"{row.replay_share:.2f}",
        f"{row.staleness_mean:.1f}",
        "" if row.ess_min is None else f"{row.ess_min:.2f}",
        "" if row.kl_k3_max is None else f"{row.kl_k3_max:.2f}",
        str(row.collapsed),
    ]


def _interval(interval: Interval, *, sign: str = "") -> str:
    return f"{interval.mean:{sign}.3f} ({interval.low:{sign}.3f} to {interval.high:{sign}.3f})"


def _ratio(value: float | None) -> str:
    return "" if value is None or not np.isfinite(value) else f"{value:.2f}"


def _draw(results: Mapping[str, Result], rows: list[Row], path: Path) -> None:
    """Draw accuracy over rollouts, and the final accuracies with their intervals."""
    figure, (curves, finals) = plt.subplots(1, 2, figsize=(12, 5), width_ratios=[3, 2], layout="constrained")
    colours = dict(zip((row.arm for row in rows), plt.get_cmap("tab10").colors, strict=False))  # type: ignore[attr-defined]
    for row in rows:
        runs = list(by_pair(results, task=row.task, arm=row.arm, phase="main").values())
        rollouts = np.mean([[point.rollouts for point in run.evaluations] for run in runs], axis=0)
        accuracy = np.mean([[point.accuracy for point in run.evaluations] for run in runs], axis=0)
        bold = row.arm in {"popo", "grpo", "dapo"}
        curves.plot(rollouts, accuracy, color=colours[row.arm], label=row.arm, linewidth=2.5 if bold else 1.2)
    curves.set_xlabel("rollouts generated")
    curves.set_ylabel("held-out accuracy, mean over runs")
    curves.grid(alpha=0.3)
    curves.legend(frameon=False, fontsize="small")
    _draw_finals(finals, rows, colours)
    figure.suptitle(f"{rows[0].task}: {rows[0].runs} paired runs for each arm")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_finals(axes: Axes, rows: list[Row], colours: Mapping[str, object]) -> None:
    for height, row in enumerate(reversed(rows)):
        shown = row.accuracy_at_equal_rollouts
        axes.plot([shown.low, shown.high], [height, height], color=colours[row.arm], linewidth=2)
        axes.plot([shown.mean], [height], "o", color=colours[row.arm])
    axes.set_yticks(range(len(rows)), [row.arm for row in reversed(rows)])
    axes.set_xlabel("accuracy at equal rollouts, 95 % interval")
    axes.grid(alpha=0.3, axis="x")
