"""A release of the chart, in a namespace of its own, on the cluster of kubectl's context."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from get_helm import helm
from ops.rule_files import CHART
from processes import free_port, wait_until

from groupreplay import Client

RELEASE = "replay"
FULL = "replay-groupreplay"
SLOW_S = 300.0
SMALL: dict[str, Any] = {
    "weights": {"accessMode": "ReadWriteOnce", "size": "1Gi"},
    "generator": {"resources": {"requests": {"cpu": "100m", "memory": "512Mi"}}},
    "trainer": {"resources": {"requests": {"cpu": "100m", "memory": "512Mi"}}},
    "server": {"resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}}},
    "redis": {
        "bundled": {
            "maxmemory": "256mb",
            "persistence": {"size": "1Gi"},
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}},
        }
    },
}
"""Requests that a small node can meet."""


def missing() -> str:
    """Return what these tests lack here, or nothing."""
    if not shutil.which("kubectl"):
        return "no kubectl here"
    asked = ["kubectl", "get", "--raw", "/readyz", "--request-timeout", "10s"]
    if subprocess.run(asked, capture_output=True, check=False).returncode:
        return "no Kubernetes cluster answers in kubectl's context"
    return ""


class Release:
    """A release that is installed, upgraded, asked and removed."""

    def __init__(self, folder: Path, values: Path | None, *, helm_version: str = "3") -> None:
        """Prepare it; values are more values, of this cluster."""
        self._helm = str(helm(helm_version))
        self.namespace = f"groupreplay-test-{os.getpid()}"
        small = folder / "small.yaml"
        small.write_text(yaml.safe_dump(SMALL))
        self.values = ["--values", str(small), *(["--values", str(values)] if values else [])]
        self.address = f"dns:///{FULL}-headless.{self.namespace}.svc:50051"

    def kubectl(self, *words: str, given: str | None = None) -> str:
        """Run kubectl in the namespace, and return what it writes to standard output."""
        return _run("kubectl", "--namespace", self.namespace, *words, given=given)

    def get(self, *words: str) -> list[dict[str, Any]]:
        """Return objects."""
        found: list[dict[str, Any]] = json.loads(self.kubectl("get", *words, "--output", "json"))["items"]
        return found

    def helm(self, *words: str) -> str:
        """Run Helm in the namespace."""
        return _run(self._helm, "--namespace", self.namespace, *words)

    def install(self) -> float:
        """Install it, wait until all is ready, and return how many seconds that took."""
        started = time.monotonic()
        waiting = ("--create-namespace", "--wait", "--timeout", "10m")
        self.helm("install", RELEASE, str(CHART), *self.values, *waiting)
        return time.monotonic() - started

    def upgrade(self, *options: str) -> None:
        """Change values, and wait until all is ready again."""
        self.helm("upgrade", RELEASE, str(CHART), "--reuse-values", "--wait", "--timeout", "10m", *options)

    def remove(self) -> None:
        """Remove the namespace with all that is in it."""
        _run("kubectl", "delete", "namespace", self.namespace, "--ignore-not-found", "--timeout", "300s")

    def pods(self, component: str) -> list[dict[str, Any]]:
        """Return the Pods of a component that are not about to end."""
        label = f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component={component}"
        return [it for it in self.get("pods", "--selector", label) if "deletionTimestamp" not in it["metadata"]]

    def images(self, component: str) -> set[str]:
        """Return the images of these Pods."""
        return {it["image"] for pod in self.pods(component) for it in pod["spec"]["containers"]}

    def names(self, component: str) -> set[str]:
        """Return the names of these Pods."""
        return {it["metadata"]["name"] for it in self.pods(component)}

    def is_ready(self, component: str) -> bool:
        """Whether all Pods of a component are ready."""
        found = [it["status"].get("conditions", ()) for it in self.pods(component)]
        return bool(found) and all(
            any(it["type"] == "Ready" and it["status"] == "True" for it in conditions) for conditions in found
        )

    def kill(self, component: str) -> str:
        """Kill a Pod at once, without a word to it; return its name once another has taken its place."""
        name = min(self.names(component))
        uid = {it["metadata"]["uid"] for it in self.pods(component)}
        self.kubectl("delete", "pod", name, "--grace-period", "0", "--force")
        wait_until(
            lambda: (
                self.is_ready(component)
                and len(found := self.pods(component)) == len(uid)
                and {it["metadata"]["uid"] for it in found} != uid
            ),
            f"a {component} in place of {name}",
            SLOW_S,
        )
        return name

    @contextmanager
    def client(self) -> Iterator[Client]:
        """Yield a client outside the cluster, with the admin's token, by way of kubectl."""
        [secret] = [it for it in self.get("secrets") if it["metadata"]["name"] == f"{FULL}-admin"]
        token = _run("base64", "--decode", given=secret["data"]["admin-token"])
        port = free_port()
        words = ["kubectl", "--namespace", self.namespace, "port-forward", f"service/{FULL}", f"{port}:50051"]
        forward = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        try:
            with Client(f"127.0.0.1:{port}", token=token, timeout_s=60.0) as client:
                yield client
        finally:
            forward.send_signal(signal.SIGTERM)
            forward.wait()


def _run(*words: str, given: str | None = None) -> str:
    done = subprocess.run(words, input=given, capture_output=True, text=True, check=False, timeout=660)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr or done.stdout}"
    return done.stdout
