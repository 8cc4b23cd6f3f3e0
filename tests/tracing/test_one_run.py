"""A group's way from generator to trainer, as an OpenTelemetry collector sees it."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import ServerProcess, plain_environment
from tracing.collector import Collector, Recorded, collecting

from groupreplay import Client

NAMES = ["--run", "math", "--table", "train"]
"""Of the table, to every command."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector on loopback."""
    with collecting() as running:
        yield running


def start(command: str, server: ServerProcess, *options: str) -> subprocess.Popen[bytes]:
    """Start a process of the loop."""
    words = [sys.executable, "-m", "groupreplay_cli", command, "--server", server.grpc_address, *options]
    return subprocess.Popen([*words, *NAMES], env=plain_environment(), stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_a_training_step_refers_to_where_each_of_its_groups_came_from(collector: Collector, tmp_path: Path) -> None:
    """From the step of a trainer one gets to the insert of each group, from there to generator, service and script."""
    log, traced = tmp_path / "service.log", ("--trace.endpoint", f"http://{collector.address}")
    server = ServerProcess(tmp_path, "", "--log-format", "json", "--log-level", "debug", *traced, log=log)
    server.start()
    generator = start("generate", server, *traced, "--producer-id", "gen", "--threads", "1", "--prompts-at-once", "8")
    trainer = start(
        "train", server, *traced, "--run-dir", str(tmp_path / "run"), "--steps", "2", "--batch-size", "4",
        "--threads", "1", "--algorithm", "grpo",
    )  # fmt: skip
    try:
        assert trainer.wait(timeout=100) == 0
    finally:
        for process in (trainer, generator):
            process.terminate()
            process.wait(timeout=30)
        assert server.terminate() == 0
    steps = collector.spans("step", run="math", table="train")
    assert sorted(step.attributes["groupreplay.step"] for step in steps) == [1, 2]
    links = [(step, link) for step in steps for link in step.links]
    assert len(links) == sum(step.attributes["groupreplay.groups"] for step in steps) > 0
    for step, link in links:
        insert = collector.one(link.trace_id, link.span_id)
        assert (insert.service, insert.name) == ("groupreplay-generator", "insert")
        assert insert.trace_id != step.trace_id
        group = collector.parent(insert)
        assert group.attributes["groupreplay.group_id"] == link.attributes["groupreplay.group_id"]
        assert {part.name for part in collector.children(group)} == {"generate", "score", "insert"}
        assert all(group.seconds >= part.seconds for part in collector.children(group))
        go = collector.parent(group)
        [call] = [part for part in collector.children(go) if part.service == "groupreplay-server"]
        assert call.name in {"Insert", "InsertStream"}
        assert call.attributes["groupreplay.groups"] == go.attributes["groupreplay.groups"]
        assert "script insert_groups" in {part.name for part in collector.children(call)}
    check_steps(collector, steps, log)


def check_steps(collector: Collector, steps: list[Recorded], log: Path) -> None:
    """The parts of each step, and the calls in them, which the log of the service knows by their request ids."""
    logged = {
        line.get("request_id"): line for line in map(json.loads, log.read_text().splitlines()) if "method" in line
    }
    for step in steps:
        parts = {part.name: part for part in collector.children(step)}
        assert parts.keys() >= {"draw", "train", "save", "commit", "publish", "AdvancePolicy"}
        assert step.seconds >= sum(parts[name].seconds for name in ("draw", "train", "save", "commit", "publish"))
        draws, [commit] = collector.children(parts["draw"]), collector.children(parts["commit"])
        assert {call.name for call in draws} <= {"NextBatch", "Diagnose"}
        drawn = [call for call in draws if call.attributes.get("groupreplay.groups")]
        assert [call.attributes["groupreplay.groups"] for call in drawn] == [step.attributes["groupreplay.groups"]]
        assert "script take_batch" in {part.name for part in collector.children(drawn[0])}
        assert (commit.name, commit.attributes["groupreplay.table"]) == ("Commit", "train")
        assert logged[commit.attributes["groupreplay.request_id"]]["method"] == "Commit"


def test_a_collector_that_is_away_holds_up_nobody(tmp_path: Path) -> None:
    """The service works as ever, and its end waits for one export at most."""
    server = ServerProcess(tmp_path, "", "--trace.endpoint", "http://127.0.0.1:9")
    server.start()
    with Client(server.grpc_address) as client:
        client.create_table(run="math", table="train")
    started = time.monotonic()
    assert server.terminate() == 0
    assert time.monotonic() - started < 8
