"""What the demo leaves behind: a table, a picture, summary.json."""

import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from rich.console import Console
from rich.table import Table

from groupreplay_demo.records import RunRecords

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

_FRESH, _REFILLED, _SHORT = "#2a7f9e", "#e0a030", "#d8d8d8"
_RUN_COLOURS = ("#2a7f9e", "#b5523b")


def write_summary(runs: Sequence[RunRecords], path: Path) -> None:
    """Write summary.json: the first run's figures, and those of the others under `compared_with`."""
    summary = runs[0].summary()
    if others := [run.summary() for run in runs[1:]]:
        summary["compared_with"] = others
    path.write_text(json.dumps(summary, indent=2) + "\n")


def print_table(runs: Sequence[RunRecords], console: Console) -> None:
    """Print the figures of the runs side by side."""
    table = Table(title="The run in figures" if len(runs) == 1 else "The runs in figures", title_justify="left")
    table.add_column("")
    for run in runs:
        table.add_column(run.algorithm, justify="right")
    rows = {
        "held-out accuracy at the start": [f"{run.accuracy(0) or 0:.3f}" for run in runs],
        "held-out accuracy at the end": [f"{run.accuracy(-1) or 0:.3f}" for run in runs],
        "training steps": [str(len(run.steps)) for run in runs],
        "rollouts generated": [f"{run.rollouts:,}" for run in runs],
        "effective share of fresh groups": [f"{run.effective_share:.2f}" for run in runs],
        "slots refilled from replay": [f"{run.refilled:,}" for run in runs],
        "staleness of refilled slots, mean": [f"{run.staleness_mean:.2f}" for run in runs],
        "seconds": [f"{run.seconds:.0f}" for run in runs],
        "groups lost": [str(run.lost_groups) for run in runs],
        "groups trained twice": [str(run.trained_twice) for run in runs],
    }
    if any(run.kills for run in runs):
        rows["killed (SIGKILL) and restarted"] = [", ".join(run.kills) for run in runs]
    for name, values in rows.items():
        table.add_row(name, *values)
    console.print(table)


def draw_picture(runs: Sequence[RunRecords], path: Path, *, title: str) -> None:
    """Draw accuracy over steps and, below, what filled each batch of the first run and how old it was."""
    figure, (accuracy, slots, ages) = plt.subplots(
        3, 1, figsize=(8, 8), height_ratios=[3, 2, 1.2], sharex=True, layout="constrained"
    )
    figure.suptitle(title)
    for run, colour in zip(runs, _RUN_COLOURS, strict=False):
        _draw_accuracy(accuracy, run, colour)
    accuracy.set_ylabel("held-out accuracy")
    accuracy.set_ylim(bottom=0)
    accuracy.margins(x=0.01)
    accuracy.grid(alpha=0.3)
    accuracy.legend(loc="upper left", frameon=False)
    _draw_slots(slots, runs[0])
    _draw_ages(ages, runs[0])
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_accuracy(axes: Axes, run: RunRecords, colour: str) -> None:
    versions = [evaluation["policy_version"] for evaluation in run.evaluations]
    values = [evaluation["accuracy"] for evaluation in run.evaluations]
    label = f"{run.algorithm}: {run.rollouts:,} rollouts, {run.seconds:.0f} s"
    axes.plot(versions, values, marker="o", markersize=4, color=colour, label=label)


def _draw_slots(axes: Axes, run: RunRecords) -> None:
    steps = [step["step"] for step in run.steps]
    fresh = [step["groups"] - step["refilled"] for step in run.steps]
    refilled = [step["refilled"] for step in run.steps]
    short = [step["shortfall"] for step in run.steps]
    axes.bar(steps, fresh, width=1, color=_FRESH, label="fresh groups")
    axes.bar(steps, refilled, width=1, bottom=fresh, color=_REFILLED, label="refilled from replay")
    bottom = [a + b for a, b in zip(fresh, refilled, strict=True)]
    axes.bar(steps, short, width=1, bottom=bottom, color=_SHORT, label="empty")
    axes.set_ylabel(f"slots of a batch\n({run.algorithm})")
    _legend_above(axes)


def _draw_ages(axes: Axes, run: RunRecords) -> None:
    steps = [step["step"] for step in run.steps]
    axes.plot(
        steps,
        [step["replay_staleness_mean"] or 0 for step in run.steps],
        color=_REFILLED,
        label="mean of refilled slots",
    )
    axes.plot(
        steps,
        [step["staleness_max"] or 0 for step in run.steps],
        color=_REFILLED,
        alpha=0.4,
        label="oldest group of the batch",
    )
    axes.set_ylabel("staleness\n(policy versions)")
    axes.set_xlabel("training step")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    _legend_above(axes)


def _legend_above(axes: Axes) -> None:
    """Put the legend between two plots, where it covers no data."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), fontsize="small", ncols=3, frameon=False, borderaxespad=0.2)
