"""A producer or a trainer in a process of its own, which may be killed at any moment and goes on from its journal.

Run as `python -m faults.worker JSON`, the JSON being a Job. SIGTERM: finish what is under way, and end with status 0.
"""

import json
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from typing import Any, Literal

from faults.content import is_intact, make_group
from faults.journal import Journal, Record

from groupreplay import (
    Batch,
    BatchNotReadyError,
    Client,
    GroupFeedback,
    GroupSource,
    InsertOutcome,
    LeaseExpiredError,
    Policy,
    UnknownLeaseError,
    UnknownStepError,
)
from groupreplay.retry import Attempts

CALL_TIMEOUT_S = 60.0
LEASE_S = 2.0
POLL_S = 1.0
"""Longest wait for a batch or an admission, after which a worker sees whether it shall stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a worker does."""

    role: Literal["producer", "trainer"]
    name: str
    address: str
    journal: Path
    run: str
    table: str
    seed: int = 0
    long_groups: bool = True
    """Whether a producer makes some groups of 9000 tokens."""
    number: int = 0
    trainers: int = 1
    """Trainer `number` of so many takes every so manieth step; number 0 advances the policy."""
    batch_size: int = 16
    token_file: Path | None = None
    """File with the token to show."""

    def to_json(self) -> str:
        """Return it as an argument of a command."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> "Job":
        """Read what to_json wrote."""
        values = json.loads(text)
        return cls(**values | {name: Path(values[name]) for name in ("journal", "token_file") if values[name]})


class Worker:
    """What both have: a client, a journal, and calls that are timed."""

    def __init__(self, job: Job, client: Client, journal: Journal, stop: Event) -> None:
        self.job = job
        self.client = client
        self.journal = journal
        self.stop = stop
        self.rng = random.Random(f"{job.seed} {job.name} {len(journal.records)}")
        self.names: dict[str, Any] = {"run": job.run, "table": job.table}

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Write down how long a call took, and how often the client made it again."""
        started, before = time.monotonic(), retries.count
        yield
        self.journal.write("call", what=what, took_s=time.monotonic() - started, retries=retries.count - before)


class Producer(Worker):
    """Inserts groups as they are wanted. What its last life had tried without an ack is inserted again."""

    def run(self) -> None:
        """Work until told to stop."""
        tried = [record for record in self.journal.records if record["kind"] == "tried"]
        acknowledged = sum(record["kind"] == "acknowledged" for record in self.journal.records)
        next_number = sum(len(record["group_ids"]) for record in tried)
        for record in tried[acknowledged:]:
            self._insert(record)
        while not self.stop.is_set():
            admission = self.client.request_admission(
                producer_id=self.job.name,
                max_groups=self.rng.randint(1, 12),
                timeout_s=POLL_S,
                admission_s=5.0,
                **self.names,
            )
            if admission.groups:
                numbers = range(next_number, next_number + admission.groups)
                next_number += admission.groups
                record = {
                    "group_ids": [f"{self.job.name}-{number:06d}" for number in numbers],
                    "version": admission.policy.version,
                }
                self.journal.write("tried", **record)
                self._insert(record)
            self.stop.wait(self.rng.uniform(0.02, 0.1))  # as long as generating takes

    def _insert(self, record: Record) -> None:
        groups = [
            make_group(
                group_id, version=record["version"], producer_id=self.job.name, long=self.job.long_groups
            )
            for group_id in record["group_ids"]
        ]  # fmt: skip
        with self.timed("insert"):
            results = list(self.client.insert_many(groups, **self.names))
        refused = [result for result in results if result.outcome is InsertOutcome.REFUSED]
        if refused:
            raise RuntimeError(f"a group was refused: {refused[0]}")
        self.journal.write("acknowledged", group_ids=record["group_ids"])


class Trainer(Worker):
    """Takes batches and commits them as steps, as `groupreplay train` does: a step has happened once it is on disk.

    Then it is committed, after a restart too, unless its groups went to somebody else: then it is undone.
    """

    def run(self) -> None:
        """Work until told to stop, and then until there is no batch any more."""
        done = committed_steps(self.journal.records)
        trained = [record for record in self.journal.records if record["kind"] == "trained"]
        finished = self.job.number + self.job.trainers * len(done)
        if trained and trained[-1]["step"] == finished and not is_undone(self.journal.records, trained[-1]):
            finished = self._complete(trained[-1])
        else:
            self._announce(finished)
        while True:
            try:
                batch = self._take(finished)
            except BatchNotReadyError:
                if self.stop.is_set():
                    return
            else:
                finished = self._complete(self._train(finished, batch))

    def _take(self, step: int) -> Batch:
        return self.client.next_batch(
            batch_size=self.job.batch_size,
            lease_id=f"{self.job.name}-{step:06d}",
            lease_s=LEASE_S,
            timeout_s=POLL_S,
            holder=self.job.name,
            **self.names,
        )

    def _train(self, step: int, batch: Batch) -> Record:
        """Take some time, now and then more than the lease has; write down what the step was given."""
        damaged = [item.group.group_id for item in batch.groups if not is_intact(item.group)]
        time.sleep(LEASE_S * 1.2 if self.rng.random() < 0.01 else self.rng.uniform(0.01, 0.08))
        record = {
            "step": step,
            "lease_id": batch.lease_id,
            "group_ids": [item.group.group_id for item in batch.groups],
            "fresh": [item.group.group_id for item in batch.groups if item.source is GroupSource.FRESH],
            "redelivered": sum(item.redeliveries > 0 for item in batch.groups),
            "damaged": damaged,
        }
        self.journal.write("trained", **record)
        return record

    def _complete(self, record: Record) -> int:
        """Commit a step that is on disk, and return the next; the same one again if it had to be undone."""
        step = int(record["step"])
        feedback = [GroupFeedback(group_id=group_id, kl=self.rng.random()) for group_id in record["group_ids"]]
        try:
            with self.timed("commit"):
                self.client.commit(lease_id=record["lease_id"], step=step, feedback=feedback, **self.names)
        except (LeaseExpiredError, UnknownLeaseError) as error:
            if not isinstance(error, UnknownLeaseError) or not self._is_committed(record):
                self.journal.write("undone", step=step, lease_id=record["lease_id"], why=error.reason)
                return step
        self.journal.write("committed", step=step, lease_id=record["lease_id"])
        self._announce(step + self.job.trainers)
        return step + self.job.trainers

    def _announce(self, finished: int) -> None:
        if self.job.number == 0:
            version = finished // self.job.trainers
            with self.timed("advance"):
                self.client.advance_policy(Policy(run=self.job.run, version=version, weights_uri=f"w{version}"))

    def _is_committed(self, record: Record) -> bool:
        try:
            return self.client.get_lineage(step=int(record["step"]), **self.names).lease_id == str(record["lease_id"])
        except UnknownStepError:
            return False


def committed_steps(records: Sequence[Record]) -> dict[int, Record]:
    """Return what a trainer trained in each step that it knows to be committed."""
    trained = {(record["step"], record["lease_id"]): record for record in records if record["kind"] == "trained"}
    return {
        record["step"]: trained[record["step"], record["lease_id"]]
        for record in records
        if record["kind"] == "committed"
    }


def is_undone(records: Sequence[Record], trained: Record) -> bool:
    """Return whether the newest training of a step was undone."""
    kinds: list[str] = [record["kind"] for record in records if record.get("step") == trained["step"]]
    return kinds[-1] == "undone"


class RetryCount:
    """Counts how often a client pauses to make a call again."""

    def __init__(self) -> None:
        self.count = 0

    def watch(self) -> None:
        """Count from now on."""
        original: Callable[[Attempts, Any], float | None] = Attempts.pause_unless_late

        def counting(attempts: Attempts, error: Any) -> float | None:
            pause_s = original(attempts, error)
            self.count += pause_s is not None
            return pause_s

        Attempts.pause_unless_late = counting  # type: ignore[method-assign, assignment]


retries = RetryCount()


def main(job: Job) -> None:
    """Do the job until SIGTERM."""
    stop = Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    retries.watch()
    kind = Producer if job.role == "producer" else Trainer
    token = job.token_file.read_text().strip() if job.token_file else ""
    with Journal(job.journal) as journal, Client(job.address, token=token, timeout_s=CALL_TIMEOUT_S) as client:
        kind(job, client, journal, stop).run()


if __name__ == "__main__":
    main(Job.from_json(sys.argv[1]))
