"""The whole loop in processes of its own: it learns, survives being killed, and leaves nothing running."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import ServerProcess, plain_environment, wait_until

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


def processes_of(run_dir: Path) -> list[str]:
    """Return the command lines of all processes that name run_dir."""
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listing.splitlines() if str(run_dir) in line]


def finished(demo: subprocess.Popen[str], status: int = 0) -> str:
    """Wait for the demo to end with this status; return what it printed."""
    output, _ = demo.communicate(timeout=110)
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
    assert processes_of(run_dir) == []


@pytest.mark.slow
def test_a_demo_whose_processes_are_killed_loses_no_group(tmp_path: Path) -> None:
    """With --chaos service, generator and trainer are killed once each, and the run ends well."""
    run_dir = tmp_path / "demo"
    output = finished(start_demo(run_dir, *FREE_PORTS, "--steps", "12", "--chaos"))
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["kills"] == ["serve", "generate", "train"], output
    assert (summary["steps"], summary["lost_groups"], summary["trained_twice"]) == (12, 0, 0), output
    assert processes_of(run_dir) == []


@pytest.mark.slow
def test_two_algorithms_come_into_one_picture(tmp_path: Path) -> None:
    """With --compare the summary has the other run's figures too."""
    run_dir = tmp_path / "demo"
    finished(start_demo(run_dir, *FREE_PORTS, "--steps", "3", "--compare"))
    summary = json.loads((run_dir / "summary.json").read_text())
    assert [other["algorithm"] for other in summary["compared_with"]] == ["grpo"]
    assert summary["compared_with"][0]["refilled_slots"] == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing_running(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C, or SIGTERM, in the middle stops every process that the demo started."""
    run_dir = tmp_path / "demo"
    demo = start_demo(run_dir, *FREE_PORTS)
    wait_until((run_dir / "popo/train.log").exists, "the demo has started its processes")
    demo.send_signal(number)
    assert "every process was stopped" in finished(demo, status=130)
    assert processes_of(run_dir) == []


def test_a_second_demo_on_the_same_ports_says_what_is_in_the_way(tmp_path: Path, server_process: ServerProcess) -> None:
    """The message names the address, who has it, and the flag to change it."""
    flags = ["--grpc-listen", server_process.grpc_address, "--http-listen", "127.0.0.1:0"]
    output = finished(start_demo(tmp_path / "demo", *flags), status=1)
    assert server_process.grpc_address in output
    assert "a groupreplay service answers there" in output
    assert "--grpc-listen 127.0.0.1:0" in output


def test_a_folder_that_no_demo_made_is_left_alone(tmp_path: Path) -> None:
    """The demo replaces what an earlier demo wrote, and nothing else."""
    (tmp_path / "thesis.tex").write_text("years of work")
    output = finished(start_demo(tmp_path, *FREE_PORTS), status=1)
    assert "holds something that no demo made" in output
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
