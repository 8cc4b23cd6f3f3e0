"""The whole loop in processes of its own: it learns, survives being killed, and leaves nothing running."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from processes import ServerProcess, plain_environment, wait_until

from groupreplay import Client

FREE_PORTS = ["--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"]
SUMMARY_KEYS = {
    "algorithm", "seconds", "rollouts", "accuracy_start", "accuracy_end", "effective_share", "refilled_slots",
    "staleness_mean", "lost_groups", "steps",
}  # fmt: skip


def start_demo(run_dir: Path, *flags: str) -> subprocess.Popen[str]:
    """Start `groupreplay demo` in run_dir."""
    return subprocess.Popen(
        [sys.executable, "-m", "groupreplay_cli", "demo", "--run-dir", str(run_dir), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=plain_environment(),
    )


def processes_of(run_dir: Path) -> dict[int, str]:
    """Return process id and command line of all processes that name run_dir."""
    command = ["ps", "-ww", "-eo", "pid=,args="]  # -ww: whole lines, however wide the terminal is said to be
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = (line.split(maxsplit=1) for line in listing.splitlines() if str(run_dir) in line)
    return {int(pid): arguments for pid, arguments in lines}


def finished(demo: subprocess.Popen[str], status: int = 0, *, timeout_s: float = 110) -> str:
    """Wait for the demo to end with this status; return what it printed."""
    output, _ = demo.communicate(timeout=timeout_s)
    assert demo.returncode == status, output
    return output


@pytest.mark.slow
def test_the_demo_ends_with_a_table_a_picture_and_a_summary(tmp_path: Path) -> None:
    """A short demo trains, measures, accounts for every group, and leaves nothing running."""
    run_dir = tmp_path / "demo"
    output = finished(start_demo(run_dir, *FREE_PORTS, "--steps", "6"))
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary.keys() >= SUMMARY_KEYS
    assert (summary["algorithm"], summary["steps"], summary["lost_groups"]) == ("popo", 6, 0)
    assert summary["rollouts"] == 6 * 64 * 8
    assert summary["refilled_slots"] > 0
    assert (run_dir / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert "held-out accuracy at the end" in output
    for figure in (
        "step 6/6",
        "held-out accuracy",
        "effective share",
        "refilled",
        "staleness",
        "rollouts",
        "time left",
    ):
        assert figure in output
    assert processes_of(run_dir) == {}


@pytest.mark.minutes
@pytest.mark.timeout(900)
def test_the_demo_as_it_comes_more_than_doubles_the_held_out_accuracy(tmp_path: Path) -> None:
    """Without any setting, in a few minutes on two cores: what the README promises."""
    run_dir = tmp_path / "demo"
    output = finished(start_demo(run_dir, *FREE_PORTS), timeout_s=880)
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["accuracy_end"] > 2 * summary["accuracy_start"] > 0, output
    assert (summary["lost_groups"], summary["trained_twice"]) == (0, 0), output


@pytest.mark.slow
def test_a_demo_whose_processes_are_killed_loses_no_group(tmp_path: Path) -> None:
    """With --chaos service, generator and trainer are killed once each, and the run ends well."""
    run_dir = tmp_path / "demo"
    output = finished(start_demo(run_dir, *FREE_PORTS, "--steps", "12", "--chaos"))
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["kills"] == ["serve", "generate", "train"], output
    assert (summary["steps"], summary["lost_groups"], summary["trained_twice"]) == (12, 0, 0), output
    assert processes_of(run_dir) == {}


@pytest.mark.slow
def test_two_algorithms_come_into_one_picture(tmp_path: Path) -> None:
    """With --compare the summary has the other run's figures too."""
    run_dir = tmp_path / "demo"
    finished(start_demo(run_dir, *FREE_PORTS, "--steps", "3", "--compare"))
    summary = json.loads((run_dir / "summary.json").read_text())
    assert [other["algorithm"] for other in summary["compared_with"]] == ["grpo"]
    assert summary["compared_with"][0]["refilled_slots"] == 0


@pytest.mark.minutes
@pytest.mark.parametrize(
    ("algorithm", "flags"), [("dapo", ["--task", "countdown3"]), ("grpo-filter", ["--seed", "1"]), ("grpo", [])]
)
def test_every_algorithm_fills_its_batches_in_its_own_way(tmp_path: Path, algorithm: str, flags: list[str]) -> None:
    """None of these refills: DAPO samples on, GRPO-filter leaves slots of ineffective groups empty, GRPO keeps them."""
    run_dir = tmp_path / "demo"
    finished(start_demo(run_dir, *FREE_PORTS, "--steps", "2", "--algorithm", algorithm, *flags))
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["algorithm"], summary["steps"], summary["refilled_slots"]) == (algorithm, 2, 0)
    assert (summary["rollouts"] > 2 * 64 * 8) == (algorithm == "dapo")
    steps = [json.loads(line) for line in (run_dir / algorithm / "train.jsonl").read_text().splitlines()]
    assert all((step["groups"] == 64) == (algorithm != "grpo-filter") for step in steps)


@pytest.mark.minutes
def test_another_seed_has_other_problems_and_is_measured_on_the_same(tmp_path: Path) -> None:
    """So that the accuracies of runs with different seeds can be compared."""
    starts, trained = [], []
    for seed in ("3", "4"):
        run_dir = tmp_path / seed
        finished(start_demo(run_dir, *FREE_PORTS, "--steps", "1", "--seed", seed))
        starts.append(json.loads((run_dir / "summary.json").read_text())["accuracy_start"])
        trained.append((run_dir / "popo/groups.jsonl").read_text())
    assert starts[0] == starts[1] > 0
    assert trained[0] != trained[1]


@pytest.mark.slow
def test_the_service_can_be_kept_running(tmp_path: Path) -> None:
    """With --keep-running it can be asked about the run until Ctrl-C, which leaves nothing running."""
    run_dir = tmp_path / "demo"
    demo = start_demo(run_dir, *FREE_PORTS, "--steps", "1", "--keep-running")
    assert demo.stdout is not None
    address = next(found[1] for line in demo.stdout if (found := re.search(r"stays up: gRPC ([\w.:]+),", line)))
    with Client(address) as client:
        assert [table.counters["inserted"] for table in client.list_tables()] == [64]
    demo.send_signal(signal.SIGINT)
    finished(demo, status=130)
    assert processes_of(run_dir) == {}


def test_a_process_that_ends_by_itself_ends_the_demo_with_its_last_words(tmp_path: Path) -> None:
    """Not by a hang: the message has what ended, how, and where its log is, and the others are stopped."""
    run_dir = tmp_path / "demo"
    demo = start_demo(run_dir, *FREE_PORTS)

    def trainers() -> list[int]:
        return [
            pid for pid, arguments in processes_of(run_dir).items() if "groupreplay_demo.tethered train " in arguments
        ]

    wait_until(lambda: len(trainers()) == 1, "the trainer was started")
    os.kill(trainers()[0], signal.SIGKILL)
    output = finished(demo, status=1)
    assert f"train ended with status -9; the end of {run_dir}/popo/train.log" in output
    assert processes_of(run_dir) == {}


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, *(pytest.param(number, marks=pytest.mark.minutes) for number in (signal.SIGTERM, signal.SIGHUP))],
)
@pytest.mark.parametrize("started", ["serve.log", "popo/train.log", "popo/generate.log", "popo/evaluate.log"])
def test_an_interrupted_demo_leaves_nothing_running(tmp_path: Path, number: signal.Signals, started: str) -> None:
    """Ctrl-C, SIGTERM or a closed terminal stops every process that the demo started or is about to start."""
    run_dir = tmp_path / "demo"
    demo = start_demo(run_dir, *FREE_PORTS)
    wait_until((run_dir / started).exists, "the demo starts its processes")
    demo.send_signal(number)
    assert "every process was stopped" in finished(demo, status=130)
    assert processes_of(run_dir) == {}


def test_a_second_demo_on_the_same_ports_says_what_is_in_the_way(tmp_path: Path, server_process: ServerProcess) -> None:
    """The message names the address, who has it, and the flag to change it."""
    flags = ["--grpc-listen", server_process.grpc_address, "--http-listen", "127.0.0.1:0"]
    output = finished(start_demo(tmp_path / "demo", *flags), status=1)
    assert server_process.grpc_address in output
    assert "a groupreplay service answers there" in output
    assert "--grpc-listen 127.0.0.1:0" in output


def test_a_port_of_somebody_else_is_named_with_its_flag(tmp_path: Path) -> None:
    """The same for the HTTP port, and for a program that is no groupreplay service."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        flags = ["--grpc-listen", "127.0.0.1:0", "--http-listen", address]
        output = finished(start_demo(tmp_path / "demo", *flags), status=1)
    assert f"HTTP cannot listen on {address}: in use" in output
    assert "--http-listen 127.0.0.1:0" in output
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", "0"], "steps 0 must be at least 1"),
        (["--compare", "--algorithm", "grpo"], "--compare runs GRPO beside --algorithm; choose popo, grpo-filter"),
        (["--task", "chess"], "chess"),
    ],
)
def test_settings_that_mean_nothing_are_refused(tmp_path: Path, flags: list[str], message: str) -> None:
    """In a line, before anything is started or written."""
    output = finished(start_demo(tmp_path / "demo", *flags), status=2)
    assert message in output
    assert "Traceback" not in output
    assert not (tmp_path / "demo").exists()


def test_a_folder_that_no_demo_made_is_left_alone(tmp_path: Path) -> None:
    """The demo replaces what an earlier demo wrote, and nothing else."""
    (tmp_path / "thesis.tex").write_text("years of work")
    output = finished(start_demo(tmp_path, *FREE_PORTS), status=1)
    assert "holds something that no demo made" in output
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_killed_demo_leaves_nothing_running(tmp_path: Path) -> None:
    """As when the kernel kills it for want of memory: no code of its own can stop anything then."""
    run_dir = tmp_path / "demo"
    demo = start_demo(run_dir, *FREE_PORTS)
    wait_until((run_dir / "popo/train.log").exists, "the demo starts its processes")
    demo.kill()
    demo.communicate()
    wait_until(lambda: processes_of(run_dir) == {}, "its processes end")
