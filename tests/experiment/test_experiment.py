"""The experiment: what it runs, that it goes on where it was, and what it makes of the results."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from processes import plain_environment, wait_until

from experiment.analysis import Interval, rows_of
from experiment.arms import ARMS, EXTRA, MAIN
from experiment.plan import CHECKPOINTS, TUNING_SEED, Plan, RunSpec
from experiment.results import Evaluation, Result, append_result, read_results

ROOT = Path(__file__).resolve().parent.parent.parent


def finished(spec: RunSpec, accuracies: list[float], *, rollouts_per_step: int = 100, phase: str = "") -> Result:
    """Return the result of a run that was measured after every step."""
    evaluations = tuple(
        Evaluation(step=step, accuracy=accuracy, rollouts=step * rollouts_per_step, seconds=2.0 * step)
        for step, accuracy in enumerate(accuracies)
    )
    return Result(
        key=spec.key,
        phase=phase or spec.phase,
        task=spec.task,
        checkpoint=spec.checkpoint,
        arm=spec.arm,
        lr=spec.lr,
        seed=spec.seed,
        evaluations=evaluations,
        updates=4,
        rollouts=evaluations[-1].rollouts,
        seconds=1.0,
        cpu_seconds=1.0,
        effective_share=0.5,
        replay_share=0.5,
        staleness_mean=1.0,
        staleness_max=2,
        ess_min=None,
        kl_k3_max=None,
        weight_max=None,
        skipped_updates=0,
    )


def test_every_arm_of_the_paper_is_compared() -> None:
    """And each variation takes the rate of an arm that is tuned."""
    algorithms = {arm.algorithm for arm in MAIN}
    assert algorithms == {
        *("grpo", "grpo-filter", "dapo", "popo", "popo-pi-old", "popo-mu", "popo-stale", "popo-ineff", "popo-kl")
    }
    assert all(arm.like in {"grpo", "popo"} for arm in EXTRA)
    assert len(ARMS) == len(MAIN) + len(EXTRA)


def test_rates_are_tuned_on_other_seeds_than_those_reported() -> None:
    """The rate that is best on the tuning seed is the one of the reported runs."""
    plan = Plan(tasks=["addition"], arms=["grpo", "popo"], extra_arms=["popo-g4"], rates=[0.1, 0.2])
    heights = {("grpo", 0.1): 0.5, ("grpo", 0.2): 0.4, ("popo", 0.1): 0.5, ("popo", 0.2): 0.6}
    results = {spec.key: finished(spec, [0.1, heights[spec.arm, spec.lr]]) for spec in plan.tuning()}
    assert len(results) == 2 * 2
    reported = list(plan.reported(results))
    assert {(spec.arm, spec.lr) for spec in reported} == {("grpo", 0.1), ("popo", 0.2)}
    assert TUNING_SEED not in {spec.seed for spec in reported}
    assert {spec.checkpoint for spec in reported} == set(CHECKPOINTS)
    assert [spec.lr for spec in plan.variations(results)] == [0.2] * len(plan.extra_seeds)


def test_a_run_that_was_cut_short_is_not_a_result(tmp_path: Path) -> None:
    """The line of a killed run is overwritten by the next."""
    file = tmp_path / "runs.jsonl"
    spec = RunSpec(phase="main", task="addition", checkpoint="a", arm="popo", lr=0.1, seed=0, steps=2)
    result = finished(spec, [0.1, 0.2, 0.3])
    append_result(file, result)
    with file.open("a") as half:
        half.write('{"key": "addition/a/po')
    assert read_results(file) == {spec.key: result}
    other = finished(replace(spec, seed=1), [0.1, 0.2, 0.3])
    append_result(file, other)
    assert list(read_results(file).values()) == [result, other]


def test_differences_are_between_runs_of_the_same_pair() -> None:
    """An arm that generates more rollouts is compared at those of GRPO, and by what it takes to get to GRPO's end."""
    spec = RunSpec(phase="main", task="addition", checkpoint="a", arm="grpo", lr=0.1, seed=0, steps=3)
    runs = [
        *(finished(replace(spec, seed=seed), [0.1, 0.1, 0.2 + 0.1 * seed, 0.2 + 0.1 * seed]) for seed in (0, 1)),
        *(finished(replace(spec, arm="popo", seed=seed), [0.1, 0.3, 0.5, 0.5]) for seed in (0, 1)),
        finished(replace(spec, arm="dapo"), [0.1, 0.3, 0.5, 0.9], rollouts_per_step=300),
        finished(replace(spec, arm="popo-pi-old"), [0.1, 0.1, 0.0, 0.0]),
    ]
    rows = {row.arm: row for row in rows_of({run.key: run for run in runs}, task="addition", phase="main")}
    assert rows["grpo"].accuracy.mean == pytest.approx(0.25)
    assert rows["grpo"].difference is not None
    assert rows["grpo"].difference.mean == pytest.approx(-0.25)
    assert rows["popo"].rollouts_ratio == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert rows["popo"].difference is None
    # DAPO has used GRPO's 300 rollouts after its first step, where its smoothed accuracy is 0.2.
    assert rows["dapo"].accuracy_at_equal_rollouts.mean == pytest.approx(0.2)
    assert rows["dapo"].difference is not None
    assert rows["dapo"].difference.mean == pytest.approx(0.2 - 0.5)
    assert rows["dapo"].rollouts_ratio == pytest.approx(1.0)
    assert (rows["popo-pi-old"].collapsed, rows["popo-pi-old"].reached) == (1, 0)
    assert rows["popo-pi-old"].rollouts_ratio is None


def test_an_interval_holds_its_mean_and_is_the_same_every_time() -> None:
    """Of one value it is that value."""
    assert Interval.of([0.5]) == Interval(mean=0.5, low=0.5, high=0.5)
    spread = Interval.of([0.1, 0.2, 0.3, 0.4])
    assert spread.low < spread.mean < spread.high
    assert spread == Interval.of([0.1, 0.2, 0.3, 0.4])


def test_the_published_tables_are_those_of_the_published_runs(tmp_path: Path) -> None:
    """Whoever doubts a figure makes it anew from the raw numbers of each seed."""
    command = [sys.executable, "-m", "experiment", "--folder", str(tmp_path), "--published", "--report"]
    environment = plain_environment() | {"PYTHONPATH": os.pathsep.join(["benchmarks", *sys.path[1:]])}
    subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, timeout=100, check=True)
    published = ROOT / "benchmarks/experiment/published"
    for name in ("runs.jsonl", "results.md", "summary.json"):
        assert (tmp_path / name).read_text() == (published / name).read_text(), f"make it again: {name}"
    for row in json.loads((published / "summary.json").read_text()):
        assert f"| {row['arm']} | {row['runs']} | {row['lr']:g} |" in (published / "results.md").read_text()
    assert {path.name for path in tmp_path.glob("*.png")} == {path.name for path in published.glob("*.png")}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_experiment_runs_and_goes_on_where_it_was(tmp_path: Path) -> None:
    """Real service, real training, two arms of two steps; the second time nothing is left to do but the report."""
    command = [sys.executable, "-m", "experiment", "--folder", str(tmp_path), "--tasks", "addition", "--no-extra"]
    command += ["--arms", "grpo", "popo", "--rates", "1e-4", "--seeds", "2", "--steps", "2", "--workers", "1"]
    environment = plain_environment() | {"PYTHONPATH": os.pathsep.join(["benchmarks", *sys.path[1:]])}
    _spare_the_warm_start(tmp_path)
    for done in (0, 4):
        ran = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert f"main: 4 runs, {done} of them done before" in ran.stdout
    results = read_results(tmp_path / "runs.jsonl")
    assert len(results) == 4
    assert all(run.rollouts == 2 * 512 and len(run.evaluations) == 3 for run in results.values())
    # The same policy is the same before its first step, whatever the arm.
    starts = {(run.checkpoint, run.evaluations[0].accuracy) for run in results.values()}
    assert len(starts) == len(CHECKPOINTS)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [(row["task"], row["arm"], row["runs"]) for row in summary] == [
        ("addition", "grpo", 2),
        ("addition", "popo", 2),
    ]
    assert (tmp_path / "addition.png").stat().st_size > 10_000
    assert "| popo | 2 |" in (tmp_path / "results.md").read_text()
    assert not any((tmp_path / "work").iterdir())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.timeout(300)
def test_an_experiment_that_is_told_to_stop_leaves_no_process(tmp_path: Path) -> None:
    """SIGTERM in the middle of a run ends its workers, the service and its Redis; the status says so."""
    _spare_the_warm_start(tmp_path)
    command = [sys.executable, "-m", "experiment", "--folder", str(tmp_path), "--quick", "--steps", "1000"]
    environment = plain_environment() | {"PYTHONPATH": os.pathsep.join(["benchmarks", *sys.path[1:]])}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    wait_until(lambda: any(tmp_path.glob("work/*/train.jsonl")), "a run has begun", timeout_s=120)
    assert len(_processes_of(process.pid, tmp_path)) >= 4  # the experiment, two workers, the service
    process.terminate()
    assert process.wait(60) == 130
    wait_until(lambda: not _processes_of(process.pid, tmp_path), "all processes have ended")


def _spare_the_warm_start(folder: Path) -> None:
    """Put the checkpoint that comes with the package where the second one would be made."""
    (folder / "checkpoints").mkdir()
    builtin = ROOT / "services/groupreplay_tinylm/checkpoints/addition.safetensors"
    (folder / "checkpoints" / "addition.safetensors").write_bytes(builtin.read_bytes())


def _processes_of(session: int, folder: Path) -> list[int]:
    """Return the processes of a session, and those whose command names the folder."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            in_session = int(status.read_text().rpartition(")")[2].split()[3]) == session
            command = (status.parent / "cmdline").read_bytes()
        except OSError:
            continue  # it ended meanwhile
        if command and (in_session or str(folder).encode() in command):
            found.append(int(status.parent.name))
    return found
