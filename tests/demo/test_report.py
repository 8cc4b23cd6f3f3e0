"""What the demo shows while it runs, and what it leaves behind."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from groupreplay_demo.records import JsonLines, RunRecords
from groupreplay_demo.report import write_summary
from groupreplay_demo.screen import Screen, sparkline


def records(algorithm: str = "popo") -> RunRecords:
    """Return a run of two steps, the second of them refilled with groups three versions old."""
    steps: list[dict[str, Any]] = [
        {"step": 1, "groups": 16, "fresh": 64, "fresh_effective": 16, "refilled": 0, "shortfall": 48,
         "effective_ratio": 0.25, "replay_staleness_mean": None, "staleness_max": 0},
        {"step": 2, "groups": 64, "fresh": 64, "fresh_effective": 32, "refilled": 32, "shortfall": 0,
         "effective_ratio": 0.5, "replay_staleness_mean": 3.0, "staleness_max": 5},
    ]  # fmt: skip
    evaluations = [{"policy_version": 0, "accuracy": 0.05}, {"policy_version": 2, "accuracy": 0.125}]
    return RunRecords(algorithm=algorithm, rollouts_per_prompt=8, steps=steps, evaluations=evaluations, seconds=12.34)


def test_the_figures_of_a_run_are_sums_over_its_steps(tmp_path: Path) -> None:
    """Rollouts count what was generated, the effective share is of fresh groups, staleness is a mean over slots."""
    write_summary([records(), records("grpo")], tmp_path / "summary.json")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["rollouts"] == 2 * 64 * 8
    assert summary["effective_share"] == 48 / 128
    assert (summary["refilled_slots"], summary["staleness_mean"]) == (32, 3.0)
    assert (summary["accuracy_start"], summary["accuracy_end"]) == (0.05, 0.125)
    assert (summary["seconds"], summary["steps"]) == (12.3, 2)
    assert [other["algorithm"] for other in summary["compared_with"]] == ["grpo"]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_shows_what_the_run_is_doing(terminal: bool) -> None:
    """On a terminal and in a log alike: step, accuracy, effective share, what filled the batch, its age, rollouts."""
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=160, color_system=None)
    with Screen(console, title="the title", steps=2).shown() as show:
        show(records())
    for text in (
        "the title",
        "2/2",
        "0.125 (began at 0.050)",
        "0.50",
        "32 fresh + 32 refilled, 0 short",
        "3.0",
        "1,024",
    ):
        assert text in output.getvalue()


def test_a_run_that_has_not_begun_shows_that_it_waits() -> None:
    """Before the first step there is nothing to divide by."""
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=160, color_system=None)
    with Screen(console, title="the title", steps=2).shown() as show:
        show(RunRecords(algorithm="popo", rollouts_per_prompt=8))
    assert "waiting for the first" in output.getvalue()
    assert "measuring" in output.getvalue()


def test_a_sparkline_is_scaled_to_its_highest_value() -> None:
    """Nothing at all is drawn as nothing."""
    assert sparkline([0.0, 0.5, 1.0]) == " ▄█"
    assert sparkline([0.0]) == " "
    assert sparkline([]) == ""


def test_a_line_that_is_being_written_is_not_read_yet(tmp_path: Path) -> None:
    """The reader of a log sees its complete lines, and none where there is no log."""
    path = tmp_path / "train.jsonl"
    assert JsonLines(path).read() == []
    path.write_text('{"step": 1}\n{"st')
    assert JsonLines(path).read() == [{"step": 1}]
