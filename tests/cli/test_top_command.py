"""`groupreplay top`."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from cli.in_process import IN_PROCESS, Run
from processes import ServerProcess, plain_environment
from samples import effective, ineffective

from groupreplay import Client, Policy, TableConfig
from groupreplay_admin.observing import pace_between

pytestmark = IN_PROCESS
NAMES: dict[str, Any] = {"run": "math", "table": "train"}
COLUMNS, LINES = 80, 24
CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


@pytest.fixture
def served(sync_client: Client, server_process: ServerProcess) -> ServerProcess:
    """A service with a table in use, and an empty one."""
    sync_client.create_table(run="math", table="a-table-whose-name-is-too-long-for-its-column", config=TableConfig())
    sync_client.create_table(config=TableConfig(), **NAMES)
    for group in (*effective("a", "b", producer_id="gpu-1"), *ineffective("x", producer_id="gpu-2")):
        sync_client.insert(group, **NAMES)
    train(sync_client, 1)
    sync_client.advance_policy(Policy(run="math", version=2, weights_uri="file:///w/2"))
    sync_client.beat(producer_id="gpu-1", status="samples prompt 812", **NAMES)
    sync_client.insert(effective("c", version=2)[0], **NAMES)
    sync_client.next_batch(batch_size=1, lease_id="step-2", holder="trainer-0", **NAMES)
    return server_process


def train(client: Client, step: int) -> None:
    """Commit a batch of two groups."""
    batch = client.next_batch(batch_size=2, **NAMES)
    client.commit(lease_id=batch.lease_id, step=step, **NAMES)


class Terminal:
    """`groupreplay top` on a terminal of 80 columns, and what it shows."""

    def __init__(self, process: "subprocess.Popen[bytes]", end: int) -> None:
        self.process = process
        self._end = end
        self.shown = ""

    def press(self, keys: str) -> None:
        """Press keys."""
        os.write(self._end, keys.encode())

    def until(self, pattern: str) -> str:
        """Wait for a frame that matches, and return it."""
        deadline = time.monotonic() + 20
        while not (found := [frame for frame in self.frames() if re.search(pattern, frame)]):
            assert time.monotonic() < deadline, f"no frame has {pattern!r}:\n{self.frames()[-1:]}"
            self._read()
        self.shown = ""
        return found[-1]

    def frames(self) -> list[str]:
        """Return the whole frames of what came: each begins where the cursor goes home."""
        parts = self.shown.split("\x1b[H")
        return [CONTROL.sub("", part).replace("\r", "") for part in parts[1:-1]]

    def _read(self) -> None:
        if select.select([self._end], [], [], 0.2)[0]:
            try:
                self.shown += os.read(self._end, 65536).decode(errors="replace")
            except OSError as error:  # what Linux says when the last writer is gone
                raise AssertionError(f"it ended with {self.process.wait()}: {self.shown}") from error


@contextmanager
def terminal(*flags: str) -> Iterator[Terminal]:
    """Run `groupreplay top` on a terminal of its own."""
    outer, inner = pty.openpty()
    termios.tcsetwinsize(inner, (LINES, COLUMNS))
    environment = {name: value for name, value in plain_environment().items() if name not in {"COLUMNS", "LINES"}}
    process = subprocess.Popen(
        [sys.executable, "-m", "groupreplay_cli", "top", "--interval-s", "0.2", *flags],
        stdin=inner,
        stdout=inner,
        stderr=inner,
        env=environment | {"TERM": "xterm-256color"},
    )
    os.close(inner)
    try:
        yield Terminal(process, outer)
    finally:
        process.kill()
        process.wait()
        os.close(outer)


def test_a_terminal_shows_tables_producers_and_leases_in_80_columns(served: ServerProcess) -> None:
    """Every second, until q; long names are cut, no line is broken."""
    with terminal("--server", served.grpc_address, "--batch-size", "2") as shown:
        first = shown.until("a-tab.*\n.*math/train")
        assert all(len(line.rstrip()) <= COLUMNS for line in first.splitlines())
        assert len(first.splitlines()) <= LINES
        heading, long, row = first.splitlines()[1:4]
        assert heading.split() == [
            "table", "ver", "fresh", "replay", "lease", "bytes", "eff", "in/s", "out/s", "refil", "short", "stale",
        ]  # fmt: skip
        assert long.startswith("math/a-ta")
        assert "…" in long.split()[0]
        assert row.split()[:5] == ["math/train", "2", "1", "2", "1"]
        assert row.split()[-1] == "2"
        assert "policy version 2" in first
        shown.press("\x1b[B")
        details = shown.until("says")
        assert "problem" in details
        assert re.search(r"gpu-1 +alive +\ds +2 +100% +0 +samples prompt 812", details)
        assert re.search(r"step-2 +trainer-0 +1 +1 +\d+m", details)
        shown.press("s")
        assert "by fresh" in shown.until("by fresh").splitlines()[0]
        shown.press("q")
        assert shown.process.wait(timeout=20) == 0


def test_rates_and_refilled_slots_come_from_what_changed(served: ServerProcess, sync_client: Client) -> None:
    """A step that is trained while somebody watches is seen."""
    with terminal("--server", served.grpc_address) as shown:
        shown.until(r"math/train .* 0 +0 +- +0 +2")
        for group in ineffective("y", "z", version=2):
            sync_client.insert(group, **NAMES)
        train(sync_client, 3)
        row = next(line for line in shown.until(r"math/train .* 50% +0 +0-2").splitlines() if "math/train" in line)
        assert "0%" in row
        shown.press("q")
        assert shown.process.wait(timeout=20) == 0


def test_a_service_that_goes_away_is_said_and_waited_for(served: ServerProcess) -> None:
    """Watching outlives it."""
    with terminal("--server", served.grpc_address, "--timeout-s", "0.5") as shown:
        shown.until("math/train")
        served.kill()
        shown.until("no answer from")
        served.start()
        shown.until("math/train")
        shown.process.send_signal(signal.SIGINT)
        assert shown.process.wait(timeout=20) == 0


def test_one_frame_where_there_is_no_terminal(command: Run, served: ServerProcess) -> None:
    """With the details of every table."""
    ended = command("top", "--server", served.grpc_address, "--interval-s", "0.1")
    assert ended.status == 0
    assert ended.output.count("policy version 2, ") == 2
    assert "No producer was ever heard of in table math/a-table" in ended.output
    assert re.search(r"warning|problem", ended.output)
    assert "\x1b" not in ended.output


def test_lines_of_json(command: Run, served: ServerProcess) -> None:
    """One object a line; with --once a single one."""
    line: dict[str, Any] = json.loads(
        command("top", "--json", "--once", "--server", served.grpc_address, "--interval-s", "0.1").output
    )
    assert (line["error"], line["policies"][0]["version"]) == ("", 2)
    [_, table] = line["tables"]
    assert (table["fresh"], table["replay"], table["leased"], table["ready"]) == (1, 2, 1, False)
    assert table["recent"]["inserted_per_s"] == 0
    assert (table["held"][0]["holder"], table["producers"][0]["health"]) == ("trainer-0", "alive")
    assert table["findings"][0]["code"] == "missing_groups"


def test_a_service_that_is_not_there_is_status_1(command: Run) -> None:
    """Where nobody watches."""
    ended = command("top", "--server", "127.0.0.1:1", "--timeout-s", "0.3")
    assert ended.status == 1
    assert "no answer from 127.0.0.1:1" in ended.output
    line = command("top", "--once", "--json", "--server", "127.0.0.1:1", "--timeout-s", "0.3").output
    assert json.loads(line)["error"]
    assert command("top", "--interval-s", "0").status == 2


def test_what_changed_between_two_states() -> None:
    """Shares of nothing are unknown; counters that a reset of Redis took back do not go below 0."""
    before = {"inserted": 10, "inserted_effective": 4, "delivered_fresh": 3, "shortfall": 9}
    now = {"inserted": 30, "inserted_effective": 9, "delivered_fresh": 6, "delivered_replay": 1, "shortfall": 0}
    pace = pace_between(before, now | {"batches": 2}, seconds=4)
    assert (pace.inserted_per_s, pace.delivered_per_s, pace.effective_share) == (5, 1, 0.25)
    assert (pace.refilled_share, pace.shortfall, pace.batches) == (0.25, 0, 2)
    still = pace_between(now, now, seconds=1)
    assert (still.effective_share, still.refilled_share) == (None, None)
