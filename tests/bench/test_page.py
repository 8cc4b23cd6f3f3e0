"""The page of performance says what was measured, where, and how busy that machine was."""

from dataclasses import asdict
from pathlib import Path

import pytest
from bench.test_report import MACHINE
from rich.console import Console

from service import page
from service.measured import Round, append_round
from service.report import write_report
from service.runner import ROUNDS_FILE
from service.stage import Effort


def test_the_committed_page_is_what_the_committed_results_give() -> None:
    """Nobody has written a number by hand."""
    assert page.PAGE.read_text() == page.page()


@pytest.mark.parametrize(("load", "busy"), [(0.1, False), (7.0, True)])
def test_a_busy_machine_is_said_to_have_been_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: float, busy: bool
) -> None:
    """Published results keep the machine, and the page warns of ratios that other work has disturbed."""
    measured = {"stream": {"groups_per_s": 30.0, "mb_per_s": 3.123456}, "reverb": {"groups_per_s": 10.0}}
    rounds = [Round(scenario="insert-M", number=0, measured=measured, load=load)]
    append_round(tmp_path / ROUNDS_FILE, rounds[0])
    machine = type(MACHINE)(**asdict(MACHINE) | {"load_before": load})
    write_report(rounds, tmp_path, machine, Effort(seconds=1.0, rounds=3), Console(quiet=True))
    monkeypatch.setattr(page, "PUBLISHED", tmp_path / "published.json")
    page.publish(tmp_path)
    text = page.page()
    assert ("The machine was busy with other work" in text) is busy
    assert "| 3 x | 3 to 3, 1 rounds | at least 3 x | yes |" in text
    assert "| stream | 30 | 3.12 |" in text
