"""The stack of docker-compose.yml, under a name, volumes and ports of its own."""

import json
import os
import socket
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from compose.docker import VERSION, docker, inspect
from ops.rule_files import ROOT
from processes import wait_until

from groupreplay import Client

RUN, TABLE = "compose-test", "rollouts"
SLOW_S = 300.0
SERVICES = ("redis", "server", "generator", "trainer", "prometheus")
"""All but Grafana, which only shows what Prometheus has, and needs an image of its own."""


class Stack:
    """A stack that is started, asked, killed, changed and removed."""

    def __init__(self, folder: Path) -> None:
        """Prepare it; what generators saw acknowledged gets into folder."""
        self.inserted_log = folder / "inserted.log"
        folder.chmod(0o777)  # a container's user writes there
        ports = free_ports(9)
        self.prometheus_url = f"http://127.0.0.1:{ports[8]}"
        self._environment = os.environ | {
            "COMPOSE_PROJECT_NAME": f"groupreplay-test-{os.getpid()}",
            "LEDGER": str(folder),
            "RUN": RUN,
            "STEPS": "100000",
            "GRPC_PORTS": f"{ports[0]}-{ports[3]}",
            "HTTP_PORTS": f"{ports[4]}-{ports[7]}",
            "PROMETHEUS_PORT": str(ports[8]),
        }
        self._more_files: tuple[str, ...] = ()
        self.token = ""
        self._label = f"com.docker.compose.project={self._environment['COMPOSE_PROJECT_NAME']}"
        self._events = folder / "events.jsonl"
        self._watch: subprocess.Popen[bytes] | None = None

    def compose(self, *words: str) -> str:
        """Run a command of compose on this stack."""
        files = ("docker-compose.yml", "tests/compose/measured.yml", *self._more_files)
        options = [word for name in files for word in ("--file", str(ROOT / name))]
        return docker("compose", *options, *words, environment=self._environment)

    def trace(self) -> None:
        """Start a collector, and have all processes send their traces there from the next `up` on."""
        self.compose("up", "--detach", "collector")
        self._more_files = ("docker-compose.tracing.yml",)
        self._environment["TRACE_ENDPOINT"] = "http://collector:4317"

    def traced(self) -> set[str]:
        """Return the names under which the collector got spans."""
        [container] = self.containers("collector")
        return set(docker("logs", container["Id"]).split())

    def up(self, *options: str, **changed: str) -> None:
        """Start it, or bring it to changed settings, which stay."""
        self._environment |= changed
        self.compose("up", "--detach", *options, *SERVICES)
        self.token = self.compose("exec", "-T", "server", "cat", "/secrets/admin-token")

    def down(self) -> None:
        """Remove all of it, volumes too."""
        self.compose("down", "--volumes", "--timeout", "5")
        if self._watch:
            self._watch.terminate()
            self._watch.wait()

    def leftovers(self) -> str:
        """Return the ids of what `down` has left."""
        kinds = (["ps", "--all"], ["volume", "ls"], ["network", "ls"])
        return "".join(docker(*kind, "--quiet", "--filter", f"label={self._label}") for kind in kinds)

    def watch(self) -> None:
        """Write down from now on when health changes; containers remember their last checks only."""
        filters = ("--filter", f"label={self._label}", "--filter", "event=health_status")
        command = ["docker", "events", *filters, "--format", "{{json .}}"]
        with self._events.open("wb") as file:
            self._watch = subprocess.Popen(command, stdout=file)

    def first_healthy(self) -> dict[str, datetime]:
        """Return when each service first was healthy."""
        found: dict[str, datetime] = {}
        for event in map(json.loads, self._events.read_text().splitlines()):
            if event["status"].endswith(" healthy"):
                service = event["Actor"]["Attributes"]["com.docker.compose.service"]
                found.setdefault(service, datetime.fromtimestamp(event["timeNano"] / 1e9, UTC))
        return found

    def containers(self, service: str) -> list[dict[str, Any]]:
        """Return what the engine knows about the containers of a service, ended ones included."""
        return inspect(*self.compose("ps", "--all", "--quiet", service).split())

    def kill(self, service: str) -> None:
        """Send SIGKILL to the first process of a service's container, as the kernel does when memory is short.

        `docker kill` would not do: the engine starts no container again that its user killed.
        """
        pid = self.containers(service)[0]["State"]["Pid"]
        image = f"groupreplay/server:{VERSION}"
        docker(
            "run", "--rm", "--pid", "host", "--user", "0", "--network", "none", "--entrypoint", "sh", image,
            "-c", f"kill -9 {pid}",
        )  # fmt: skip

    def is_healthy(self, *services: str) -> bool:
        """Whether every container of these services runs, and its health check says so."""
        found = [it for service in services for it in self.containers(service)]
        return bool(found) and all(it["State"]["Health"]["Status"] == "healthy" for it in found)

    def wait_for_health(self, *services: str) -> None:
        """Return when services are healthy."""
        wait_until(lambda: self.is_healthy(*services), f"{services} are healthy", SLOW_S)

    def image_of(self, service: str) -> str:
        """Return the image that a service would run."""
        found: str = json.loads(self.compose("config", "--format", "json"))["services"][service]["image"]
        return found

    def published(self, service: str, port: int) -> list[str]:
        """Return the addresses on this machine at which the containers of a service are to be had."""
        ports = [it["NetworkSettings"]["Ports"][f"{port}/tcp"] for it in self.containers(service)]
        return [f"{entry['HostIp']}:{entry['HostPort']}" for entries in ports for entry in entries]

    def client(self) -> Client:
        """Return a client with the admin's token."""
        return Client(self.published("server", 50051)[0], token=self.token, timeout_s=120.0)

    def run_file(self, name: str) -> list[dict[str, Any]]:
        """Return the lines of a file that the trainer writes, as of now."""
        image = f"groupreplay/server:{VERSION}"
        volume = f"{self._environment['COMPOSE_PROJECT_NAME']}_weights:/weights:ro"
        text = docker(
            "run", "--rm", "--network", "none", "--volume", volume, "--entrypoint", "sh", image,
            "-c", f"cat /weights/runs/{RUN}/{name} || true",
        )  # fmt: skip
        return [json.loads(line) for line in text.rpartition("\n")[0].splitlines()]

    def version(self) -> int:
        """Return the policy version of the run."""
        with self.client() as client:
            return client.get_policy(run=RUN).version

    def wait_for_steps(self, count: int) -> None:
        """Return when the policy has advanced by so many versions."""
        goal = self.version() + count
        wait_until(lambda: self.version() >= goal, f"policy version {goal}", SLOW_S)


def free_ports(count: int) -> Sequence[int]:
    """Return neighbouring ports that nobody listens on."""
    for first in range(20000 + os.getpid() % 5000, 30000, count):
        if all(is_free(port) for port in range(first, first + count)):
            return range(first, first + count)
    raise AssertionError("no ports are free")


def is_free(port: int) -> bool:
    """Whether nobody listens on a port of loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
