"""What the benchmark makes of its rounds."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from service.goals import GOALS, Goal, rows_of
from service.machine import Machine
from service.measured import Measured, Round, append_round, read_rounds
from service.report import write_report
from service.runner import OtherEffortError, Runner
from service.scenarios import SCENARIOS, Scenario
from service.soak import Growth, Look, growth_of, report
from service.stage import Effort, Stage

MACHINE = Machine(
    cores=2, processor="p", memory_gb=1.0, system="s", python="3", redis="r", grpcio="1", load_before=0.1, load_mean=2.0
)


def a_round(number: int, **rates: float) -> Round:
    """Return a round of the scenario `a` with these rates of its subjects."""
    measured = {subject: {"groups_per_s": rate, "mb_per_s": rate} for subject, rate in rates.items()}
    return Round(scenario="a", number=number, measured=measured, load=1.0)


def test_a_ratio_is_within_its_round_and_to_the_lowest() -> None:
    """The median is of the rounds' ratios: a round in which everything is slow counts as much as any."""
    goal = Goal(name="n", scenario="a", of="us", to=["x", "y"], bound=0.5)
    rounds = [a_round(0, us=10, x=20, y=40), a_round(1, us=1, x=10, y=1), a_round(2, us=60, x=100, y=100)]
    [row] = rows_of({"a": rounds}, [goal])
    assert (row.low, row.ratio, row.high) == (0.5, 0.6, 1.0)
    assert (row.rounds, row.goal, row.reached) == (3, "at least 0.5 x", True)
    [row] = rows_of({"a": rounds}, [replace(goal, bound=0.7)])
    assert row.reached is False
    [row] = rows_of({"a": rounds}, [replace(goal, at_least=False)])
    assert row.reached is False


def test_a_goal_without_its_subjects_is_not_measured() -> None:
    """A peer that is not installed leaves a row that says so, neither reached nor missed."""
    goal = Goal(name="n", scenario="a", of="us", to=["reverb"], bound=1)
    [row] = rows_of({"a": [a_round(0, us=1)]}, [goal])
    assert (row.ratio, row.rounds, row.reached) == (None, 0, None)


def test_every_goal_is_of_something_that_is_measured_quickly() -> None:
    """`make bench-quick` measures the subjects of every goal."""
    quick = {scenario.name: scenario.subjects for scenario in SCENARIOS if scenario.quick}
    for goal in GOALS:
        assert {goal.of, *goal.to} <= quick[goal.scenario].keys(), goal.name
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS)


def test_the_same_again_goes_on(tmp_path: Path) -> None:
    """Rounds that are finished are not run again, and a line that was cut short is no round."""
    ran: list[str] = []

    def scenario(name: str) -> Scenario:
        def trial(stage: Stage, earlier: Mapping[str, Measured]) -> Measured:
            ran.append(name)
            return {"groups_per_s": 1.0}

        return Scenario(name=name, subjects={"us": trial})

    runner = Runner(folder=tmp_path, effort=Effort(seconds=0.1, rounds=2), console=Console(quiet=True))
    append_round(runner.rounds_file, a_round(0, us=5))
    with runner.rounds_file.open("a") as file:
        file.write('{"scenario": "a", "numb')
    rounds = runner.run([scenario("a"), scenario("b")])
    assert ran == ["b", "a", "b"]
    assert [each.key for each in rounds] == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert runner.run([scenario("a"), scenario("b")]) == rounds == list(read_rounds(runner.rounds_file).values())
    assert len(ran) == 3


def test_finished_means_that_nothing_is_missing(tmp_path: Path) -> None:
    """`make bench-quick` goes on with what was interrupted, and begins anew with what is finished."""
    scenarios = [Scenario(name=name, subjects={"us": lambda stage, earlier: {"groups_per_s": 1.0}}) for name in "ab"]
    runner = Runner(folder=tmp_path, effort=Effort(seconds=0.1, rounds=2), console=Console(quiet=True))
    assert not runner.has_finished(scenarios)
    runner.run(scenarios[:1])
    assert runner.has_finished(scenarios[:1])
    assert not runner.has_finished(scenarios)
    runner.run(scenarios)
    assert runner.has_finished(scenarios)
    other = Runner(folder=tmp_path, effort=Effort(seconds=3.0, rounds=2), console=Console(quiet=True))
    assert not other.has_finished(scenarios)  # and is refused, rather than thrown away


def test_rounds_of_another_effort_are_not_mixed_in(tmp_path: Path) -> None:
    """A quick benchmark's rounds do not pass for those of a whole one; more rounds of the same effort may be added."""
    scenario = Scenario(name="a", subjects={"us": lambda stage, earlier: {"groups_per_s": 1.0}})
    quick = Effort(seconds=0.1, rounds=1, large_table=1000)

    def runner(effort: Effort) -> Runner:
        return Runner(folder=tmp_path, effort=effort, console=Console(quiet=True))

    runner(quick).run([scenario])
    begun = runner(quick).begun()
    assert begun is not None
    for other in (replace(quick, seconds=3.0), replace(quick, large_table=2000)):
        with pytest.raises(OtherEffortError, match="pass --anew"):
            runner(other).run([scenario])
    assert runner(quick).begun() == begun
    assert len(runner(replace(quick, rounds=2)).run([scenario])) == 2
    assert runner(quick).begun() == replace(begun, effort=replace(quick, rounds=2))


def test_anew_throws_rounds_away_and_nothing_else(tmp_path: Path) -> None:
    """--folder may name one that holds other things."""
    (tmp_path / "other").write_text("kept")
    runner = Runner(folder=tmp_path, effort=Effort(seconds=0.1, rounds=1), console=Console(quiet=True))
    runner.run([Scenario(name="a", subjects={"us": lambda stage, earlier: {"groups_per_s": 1.0}})])
    runner.forget()
    assert (runner.begun(), read_rounds(runner.rounds_file)) == (None, {})
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_the_report_has_a_row_for_each_goal(tmp_path: Path) -> None:
    """summary.json has name, ratio, low, high, goal and reached of each, also of those that were not measured."""
    measured = {
        "stream": {"groups_per_s": 30.0, "mb_per_s": 3.0},
        "each": {"groups_per_s": 5.0, "mb_per_s": 1.0, "p50_ms": 1.0},
        "reverb": {"groups_per_s": 10.0, "mb_per_s": 2.0},
    }
    rounds = [Round(scenario="insert-M", number=number, measured=measured, load=0.5) for number in range(3)]
    write_report(rounds, tmp_path, MACHINE, Effort(seconds=1.0, rounds=3), Console(quiet=True))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert len(summary["rows"]) == len(GOALS)
    assert summary["machine"]["cores"] == 2
    stream, each, draw = summary["rows"][:3]
    assert {name: stream[name] for name in ("ratio", "low", "high", "goal", "reached")} == {
        "ratio": 3.0, "low": 3.0, "high": 3.0, "goal": "at least 3 x", "reached": True,
    }  # fmt: skip
    assert (each["ratio"], each["reached"], draw["ratio"], draw["reached"]) == (0.5, False, None, None)
    page = (tmp_path / "results.md").read_text()
    assert f"| {stream['name']} | 3 x | 3 to 3, 3 rounds | at least 3 x | yes |" in page
    assert (tmp_path / "goals.png").stat().st_size > 1000
    assert (tmp_path / "rates.png").stat().st_size > 1000


def look(**changed: float) -> Look:
    """Return what there is while nothing grows."""
    steady = {
        "at_s": 1.0, "server_mb": 100.0, "redis_mb": 50.0, "server_files": 20, "redis_keys": 500,
        "index_entries": 4000, "remembered": 1, "insert_p50_ms": 10.0, "draw_p50_ms": 30.0,
    }  # fmt: skip
    return Look(**{**steady, **changed})  # type: ignore[arg-type]


def test_growth_is_seen_and_noise_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    """A soak ends with 1 where one thing grows, and with 0 where latencies and memory only breathe."""
    noisy = [look(server_mb=100 + 5 * (index % 2), insert_p50_ms=10 + 4 * (index % 3)) for index in range(30)]
    assert not any(each.grew for each in growth_of(noisy))
    leaking = [look(server_files=20 + index) for index in range(30)]
    assert [each.what for each in growth_of(leaking) if each.grew] == ["server_files"]
    slower = [look(draw_p50_ms=30 + 3 * index) for index in range(30)]
    assert [each.what for each in growth_of(slower) if each.grew] == ["draw_p50_ms"]
    assert report(growth_of(noisy), Console()) == 0
    assert report([Growth(what="redis_keys", before=1.0, after=9.0, allowed=2.0)], Console()) == 1
    assert "GREW" in capsys.readouterr().out
    with pytest.raises(ValueError, match="3 looks are too few"):
        growth_of([look()] * 3)


def test_memory_that_warms_up_is_no_growth() -> None:
    """The first look is before caches and allocators are warm, and so is the first minute; what goes on later grows."""
    assert not any(each.grew for each in growth_of([look(server_mb=60), *[look() for _ in range(9)]]))
    warm = [look(at_s=10 * index, server_mb=60 + 10 * min(index, 6)) for index in range(1, 19)]
    assert not any(each.grew for each in growth_of(warm))
    leaking = [look(at_s=10 * index, server_mb=60 + 10 * index) for index in range(1, 19)]
    assert [each.what for each in growth_of(leaking) if each.grew] == ["server_mb"]
