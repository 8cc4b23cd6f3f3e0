"""Producers and a trainer of tests/faults, as Pods: they end with an error at the first call that fails for good."""

import json
from pathlib import Path
from typing import Any

from faults.journal import Record
from faults.worker import Job
from helm.release import FULL, SLOW_S, Release
from processes import wait_until

from groupreplay import TableConfig

RUN, TABLE = "rolling", "train"
FAULTS = Path(__file__).resolve().parent.parent / "faults"
FILES = ("worker.py", "journal.py", "content.py")
CONFIG = TableConfig(ahead_groups=48, replay_capacity=512, lineage_steps=10**6)
TOKEN = Path("/run/secrets/groupreplay/token")
# The shell hands SIGTERM on, and shows the journal once the worker has ended.
SHELL = """
python -m faults.worker "$JOB" & worker=$!
trap 'kill -TERM $worker' TERM
wait $worker; status=$?
while kill -0 $worker 2>/dev/null; do wait $worker; status=$?; done
cat /journal/journal.jsonl
exit $status
"""


class Workers:
    """The load."""

    def __init__(self, release: Release) -> None:
        self._release = release
        self.jobs = [self._job("producer", f"producer-{number}") for number in range(2)]
        self.jobs.append(self._job("trainer", "trainer-0"))

    def _job(self, role: Any, name: str) -> Job:
        return Job(
            role=role,
            name=name,
            address=self._release.address,
            journal=Path("/journal/journal.jsonl"),
            run=RUN,
            table=TABLE,
            token_file=TOKEN,
        )

    def start(self) -> None:
        """Make the table, and start a Pod for each worker."""
        with self._release.client() as client:
            client.create_table(run=RUN, table=TABLE, config=CONFIG)
        files = [f"--from-file={FAULTS / name}" for name in FILES]
        self._release.kubectl("create", "configmap", "workers", *files)
        pods = [self._pod(job) for job in self.jobs]
        self._release.kubectl(
            "apply", "--filename", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": pods})
        )

    def _pod(self, job: Job) -> dict[str, Any]:
        [server] = self._release.pods("server")[0]["spec"]["containers"]
        mounts = {"workers": "/tests/faults", "journal": "/journal", "token": str(TOKEN.parent), "tmp": "/tmp"}
        container = {
            "name": "worker",
            "image": server["image"],
            "imagePullPolicy": server["imagePullPolicy"],
            "command": ["sh", "-c", SHELL],
            "env": [{"name": "JOB", "value": job.to_json()}, {"name": "PYTHONPATH", "value": "/tests"}],
            "volumeMounts": [{"name": name, "mountPath": path} for name, path in mounts.items()],
        }
        key = {"key": "admin-token", "path": TOKEN.name}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": job.name, "labels": {"worker": job.role}},
            "spec": {
                "restartPolicy": "Never",
                "enableServiceLinks": False,
                "terminationGracePeriodSeconds": 60,
                "containers": [container],
                "volumes": [
                    {"name": "workers", "configMap": {"name": "workers"}},
                    {"name": "token", "secret": {"secretName": f"{FULL}-admin", "items": [key]}},
                    {"name": "journal", "emptyDir": {}},
                    {"name": "tmp", "emptyDir": {}},
                ],
            },
        }

    def phases(self) -> dict[str, str]:
        """Return the phase of each worker's Pod."""
        return {
            it["metadata"]["name"]: it["status"]["phase"] for it in self._release.get("pods", "--selector", "worker")
        }

    def wait_for_progress(self, groups: int = 50, steps: int = 3) -> None:
        """Return when so many groups and steps have come on top, all workers being at work."""
        wait_until(lambda: set(self.phases().values()) == {"Running"}, "workers run", SLOW_S)
        with self._release.client() as client:

            def counted() -> tuple[int, int]:
                assert set(self.phases().values()) == {"Running"}, self._release.kubectl("logs", "--selector", "worker")
                counters = client.describe_table(run=RUN, table=TABLE).counters
                return counters.get("inserted", 0), counters.get("leases_committed", 0)

            before = counted()
            wait_until(
                lambda: counted()[0] >= before[0] + groups and counted()[1] >= before[1] + steps, "progress", SLOW_S
            )

    def finish(self) -> dict[str, list[Record]]:
        """Let producers end, then the trainer, and return their journals by name; they must end well."""
        for role in ("producer", "trainer"):
            names = [job.name for job in self.jobs if job.role == role]
            for name in names:
                self._release.kubectl("exec", name, "--", "sh", "-c", "kill -TERM 1")
            wait_until(lambda: all(self.phases()[name] != "Running" for name in names), f"{role}s end", SLOW_S)  # noqa: B023
        failed = [name for name, phase in self.phases().items() if phase != "Succeeded"]
        assert failed == [], [self._release.kubectl("logs", name, "--tail", "20") for name in failed]
        return {job.name: self._journal(job.name) for job in self.jobs}

    def _journal(self, name: str) -> list[Record]:
        lines = self._release.kubectl("logs", name).splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]
