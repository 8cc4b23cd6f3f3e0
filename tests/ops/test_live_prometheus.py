"""A real Prometheus scrapes a real run: every rule and every panel of the dashboard has something to show."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from ops.rule_files import DASHBOARD, RULES, panel_expressions, rules
from processes import ServerProcess, free_port, plain_environment, wait_until
from prometheus_api import PrometheusApi, as_grafana_sends_it

from groupreplay import Client, GroupReplayError

LONG_S = 240.0
MAY_BE_EMPTY = {"Certificates", "Rewards that failed", "Stale groups by task", "Groups refused, and gone"}
"""Panels that a run without faults has nothing for; and, of those with several queries, these lines:"""
LINES_THAT_MAY_BE_EMPTY = {"max by (node) (groupreplay_redis_memory_max_bytes) > 0"}
RULES_THAT_MAY_BE_EMPTY = {"groupreplay:redis_memory_used:ratio"}


class Prometheus(PrometheusApi):
    """A Prometheus of the test's own."""

    def __init__(self, folder: Path, targets: dict[str, list[str]]) -> None:
        """Scrape these targets, by job, every second."""
        super().__init__(f"http://127.0.0.1:{free_port()}")
        self._folder = folder
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(RULES)],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": addresses}]} for job, addresses in targets.items()
            ],
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))

    def start(self) -> subprocess.Popen[bytes]:
        """Start it, and return when it answers."""
        binary = shutil.which("prometheus")
        assert binary, "prometheus is not installed: apt-get install prometheus"
        command = [
            binary, f"--config.file={self._folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address={self.url.removeprefix('http://')}",
        ]  # fmt: skip
        process = _run(command, self._folder / "prometheus.log")
        wait_until(self.is_ready, "Prometheus answers", LONG_S)
        return process

    def shows(self, expression: str) -> Callable[[], bool]:
        """Return whether an expression gives anything, as a condition to wait for."""
        return lambda: bool(self.query(expression))


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A service, a generator and a trainer at work, and a Prometheus that scrapes all three."""
    folder = tmp_path_factory.mktemp("live")
    server = ServerProcess(folder)
    server.start()
    generator, trainer = (f"127.0.0.1:{free_port()}" for _ in range(2))
    commands = (
        ("generate", "--metrics.listen", generator, "--prompts-at-once", "8", "--threads", "1"),
        (
            "train", "--metrics.listen", trainer, "--run-dir", str(folder / "run"), "--batch-size", "8",
            "--threads", "1", "--no-progress",
        ),
    )  # fmt: skip
    processes = [_start(command, server.grpc_address, folder) for command in commands]
    scraped = Prometheus(folder, {"server": [server.http_address], "generator": [generator], "trainer": [trainer]})
    processes.append(scraped.start())
    try:
        _fail_a_call(server.grpc_address)
        wait_until(scraped.shows("groupreplay_trainer_step > 5"), "the trainer makes steps", LONG_S)
        wait_until(scraped.shows("groupreplay_trainer_ess"), "there is replay in a batch", LONG_S)
        _fail_a_call(server.grpc_address)
        yield scraped
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait()
        server.terminate()


def _start(command: tuple[str, ...], server: str, folder: Path) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "groupreplay_cli", *command, "--server", server, "--run", "live"]
    return _run(words, folder / f"{command[0]}.log")


def _run(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as said:
        return subprocess.Popen(command, env=plain_environment(), stderr=said)


def _fail_a_call(address: str) -> None:
    with Client(address, timeout_s=10.0) as client, pytest.raises(GroupReplayError):
        client.describe_table(run="live", table="no-such-table")


@pytest.mark.ops
@pytest.mark.timeout(900)
def test_every_panel_has_something_to_show(prometheus: Prometheus) -> None:
    """Every query is understood, and none is about a metric that is not there."""
    panels = panel_expressions()
    assert len(panels) > 30
    for title, expression in panels:
        if title in MAY_BE_EMPTY or expression in LINES_THAT_MAY_BE_EMPTY:
            prometheus.query(as_grafana_sends_it(expression))
        else:
            wait_until(prometheus.shows(as_grafana_sends_it(expression)), f"{title}: {expression}", 60)


@pytest.mark.ops
@pytest.mark.timeout(900)
def test_every_rule_is_evaluated_and_only_healthy_alerts_are_silent(prometheus: Prometheus) -> None:
    """No rule has an error; what is recorded is there; and no alert is on while all is well."""
    evaluated = prometheus.rules()
    assert {rule["name"] for rule in evaluated} == {rule.get("alert") or rule["record"] for rule in rules()}
    assert [rule["name"] for rule in evaluated if rule["health"] != "ok"] == []
    for name in {rule["record"] for rule in rules() if "record" in rule} - RULES_THAT_MAY_BE_EMPTY:
        wait_until(prometheus.shows(name), name, 60)
    firing = prometheus.query('ALERTS{alertstate="firing", alertname!~"GroupreplayTrainerAlarm"}')
    assert [it["metric"]["alertname"] for it in firing] == []


def test_the_dashboard_is_one_that_grafana_imports() -> None:
    """Numbers and places of panels are their own, every query says where it asks, and every panel what it means."""
    dashboard = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["description"]
            assert panel["datasource"]["uid"] == "${datasource}"
