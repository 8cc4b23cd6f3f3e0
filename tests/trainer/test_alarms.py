"""Alarms ring once for each time a run leaves what is healthy, and say what it means and what helps."""

import logging
import math
from typing import Any

import pytest

from groupreplay_trainer.alarms import ALARMS, Alarms, lines_of
from groupreplay_trainer.sections import AlarmSettings, OptimizerSettings, ReplaySettings
from groupreplay_trainer.settings import TrainerSettings

HEALTHY: dict[str, Any] = {
    "replay_share": 0.6,
    "staleness_mean": 1.5,
    "staleness_max": 3,
    "kl_k3": 0.1,
    "ess": 0.8,
    "weight_p99": 2.5,
    "effective_ratio": 0.25,
    "entropy": 0.6,
    "grad_norm_mean": 3.0,
}
"""Median figures of a run that learns addition."""


def run(alarms: Alarms, count: int, *, first: int = 1, **changes: Any) -> list[list[str]]:
    """Let so many steps pass, and return which alarms were on after each."""
    return [alarms.judge(HEALTHY | changes | {"step": step}) for step in range(first, first + count)]


def test_a_healthy_run_rings_no_alarm(caplog: pytest.LogCaptureFixture) -> None:
    """Nor does a step that has nothing to say, as at the start of a run."""
    alarms = Alarms(TrainerSettings())
    nothing: dict[str, Any] = dict.fromkeys(HEALTHY)
    assert [*run(alarms, 20), *run(alarms, 5, **nothing)] == [[]] * 25
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("replay_share", {"replay_share": 0.75, "staleness_mean": 2.1}),
        ("staleness", {"staleness_max": 11}),
        ("kl", {"kl_k3": 0.35}),
        ("ess", {"ess": 0.45}),
        ("weight_p99", {"weight_p99": 4.5}),
        ("effective_ratio", {"effective_ratio": 0.03}),
        ("entropy_share", {"entropy": 0.12}),
        ("grad_norm", {"grad_norm_mean": 12.0}),
    ],
)
def test_each_line_has_an_alarm(name: str, changes: dict[str, float], caplog: pytest.LogCaptureFixture) -> None:
    """It rings at the third step beyond the line, once, with the value, the line, its meaning and what helps."""
    alarms = Alarms(TrainerSettings())
    run(alarms, 10)
    assert run(alarms, 6, first=11, **changes) == [[], [], *[[name]] * 4]
    (record,) = caplog.records
    alarm = next(it for it in ALARMS if it.name == name)
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"alarm {name} at step 13: the {alarm.what} is ")
    assert alarm.meaning in record.getMessage()
    assert record.getMessage().endswith(f"What helps: {alarm.advice}")


def test_every_alarm_is_tested_above() -> None:
    """There are eight."""
    assert len(ALARMS) == 8
    assert set(lines_of(TrainerSettings())) == {alarm.name for alarm in ALARMS}


def test_a_large_share_of_fresh_enough_replay_is_healthy() -> None:
    """Replay of the last two steps may fill most of a batch."""
    assert run(Alarms(TrainerSettings()), 6, replay_share=0.95, staleness_mean=2.0) == [[]] * 6


def test_a_run_along_a_line_rings_once(caplog: pytest.LogCaptureFixture) -> None:
    """A single step beyond the line is none of its business; an alarm is over after nine steps within it in a row."""
    alarms = Alarms(TrainerSettings())
    for step in range(1, 40, 4):
        run(alarms, 1, first=step, ess=0.8)
        run(alarms, 3, first=step + 1, ess=0.45)
    assert len(caplog.records) == 1
    with caplog.at_level(logging.INFO):
        assert run(alarms, 9, first=41) == [*[["ess"]] * 8, []]
    assert "alarm ess is over at step 49" in caplog.text
    for step in range(50, 80, 3):
        assert run(alarms, 2, first=step, ess=0.1) == [[], []]
        run(alarms, 1, first=step + 2)
    run(alarms, 3, first=80, ess=0.1)
    assert [record.levelno for record in caplog.records].count(logging.WARNING) == 2


def test_a_resumed_run_knows_which_alarms_are_on(caplog: pytest.LogCaptureFixture) -> None:
    """From the lines of its log, without ringing them again, and with the entropy that it began with."""
    steps = [HEALTHY | {"step": step, "ess": 0.8 if step < 8 else 0.3} for step in range(1, 12)]
    alarms = Alarms(TrainerSettings())
    alarms.restart(steps)
    assert alarms.names == ["ess"]
    assert not caplog.records
    assert run(alarms, 3, first=12, ess=0.3, entropy=0.1)[-1] == ["ess", "entropy_share"]
    alarms.restart(steps[:8])
    assert alarms.names == []


def test_lines_can_be_moved_and_alarms_turned_off() -> None:
    """With inf or 0, by the kind of limit; the gradient norm counts in multiples of the norm it is clipped to."""
    off = AlarmSettings(ess=0.0, kl=math.inf, staleness=math.inf, steps=1)
    settings = TrainerSettings(alarms=off, optimizer=OptimizerSettings(max_grad_norm=0.1))
    assert run(Alarms(settings), 3, ess=0.01, kl_k3=50.0, staleness_max=900, grad_norm_mean=0.9) == [[]] * 3
    assert run(Alarms(settings), 1, grad_norm_mean=1.1) == [["grad_norm"]]


def test_the_tolerated_staleness_follows_the_algorithm() -> None:
    """Ten versions where behaviour weights correct for it, three where nothing does, on top of the least wanted."""
    lines = {
        name: lines_of(TrainerSettings(algorithm=name))["staleness"]
        for name in ("popo", "popo-mu", "popo-pi-old", "popo-stale")
    }
    assert lines == {"popo": 10, "popo-mu": 10, "popo-pi-old": 3, "popo-stale": 20}
    late = TrainerSettings(replay=ReplaySettings(min_staleness=2), alarms=AlarmSettings(staleness=5.0))
    assert lines_of(late)["staleness"] == 5
