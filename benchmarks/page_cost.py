"""Measure what an open page costs the service: its throughput with and without, in turns, and its CPU time.

The page's requests are made as the page makes them, without a browser, whose own work would be measured otherwise.
"""

import argparse
import http.client
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np

from groupreplay import Client, Policy, RolloutGroup, TableConfig
from groupreplay_demo.local_service import free_address, local_service
from service import usage

RUN, TABLE, BATCH = "cost", "train", 64
EVERY_S = 2.0
TOKENS = 256
LATE_STEPS = 32


def main() -> None:
    """Measure, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, default=10_000, help="groups in the table")
    parser.add_argument("--pages", type=int, default=1, help="pages open at once")
    parser.add_argument("--rounds", type=int, default=10, help="rounds with, and as many without")
    parser.add_argument("--round-s", type=float, default=8.0, help="seconds of a round")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        addresses = {
            "grpc_listen": free_address("gRPC", "127.0.0.1:0", ""),
            "http_listen": free_address("HTTP", "127.0.0.1:0", ""),
        }
        with local_service(folder, **addresses), Client(addresses["grpc_listen"], timeout_s=60) as client:
            load = Load(client)
            load.fill(arguments.groups)
            measure(load, addresses["http_listen"], folder, arguments)


def measure(load: "Load", http_address: str, folder: Path, arguments: argparse.Namespace) -> None:
    """Run the rounds."""
    load.run(arguments.round_s)
    pids = service_pids(folder)
    rounds: dict[bool, list[Round]] = {False: [], True: []}
    for number in range(arguments.rounds):
        for open_page in (False, True) if number % 2 else (True, False):
            with pages(http_address, arguments.pages if open_page else 0):
                rounds[open_page].append(Round.of(load, pids, arguments.round_s))
        print(f"round {number}: {rounds[False][-1]} without, {rounds[True][-1]} with", flush=True)
    pairs = list(zip(rounds[False], rounds[True], strict=True))
    table = load.client.describe_table(run=RUN, table=TABLE)
    print(f"table: {table.fresh} fresh, {table.replay} in replay; batch of {BATCH}, {load.steps} steps")
    how = f"{arguments.pages} open, {len(pairs)} pairs of {arguments.round_s:g} s, load {os.getloadavg()[0]:.1f}"
    print(f"throughput, groups/s: a page took {shown([1 - it.rate / no.rate for no, it in pairs])}; {how}")
    print(f"CPU of service and Redis for a group: a page added {shown([it.cost / no.cost - 1 for no, it in pairs])}")
    shares: dict[int, float] = {}
    for count in (0, arguments.pages):
        with pages(http_address, count) as asked:
            before, started = _cpu_seconds(pids), time.monotonic()
            time.sleep(5 * EVERY_S)
            shares[count] = (_cpu_seconds(pids) - before) / (time.monotonic() - started)
    print(
        f"CPU of service and Redis at rest: {shares[0]:.2%} of a core, with the page {shares[arguments.pages]:.2%}; "
        f"a round of its requests takes {statistics.median(asked.seconds) * 1000:.0f} ms (median)"
    )


def shown(shares: list[float]) -> str:
    """Return shares as mean, standard error and median."""
    error = statistics.stdev(shares) / len(shares) ** 0.5 if len(shares) > 1 else float("nan")
    return f"{statistics.mean(shares):.1%} (standard error {error:.1%}, median {statistics.median(shares):.1%})"


@dataclass(frozen=True, slots=True)
class Round:
    """What a round measured."""

    rate: float
    """Groups inserted, delivered and committed in a second."""
    cost: float
    """CPU seconds of service and Redis for a group, which other processes of the machine disturb less."""

    @classmethod
    def of(cls, load: "Load", pids: list[int], seconds: float) -> Self:
        """Work for some seconds."""
        before, first = _cpu_seconds(pids), load.steps
        rate = load.run(seconds)
        return cls(rate, (_cpu_seconds(pids) - before) / ((load.steps - first) * BATCH))

    def __str__(self) -> str:
        return f"{self.rate:.0f} groups/s at {self.cost * 1e6:.0f} us of CPU each"


@dataclass(slots=True)
class Load:
    """Inserts, takes and commits as fast as one caller can."""

    client: Client
    groups: int = 0
    steps: int = 0

    def fill(self, groups: int) -> None:
        """Make the table with so many fresh groups."""
        config = TableConfig(fresh_capacity=4 * groups, replay_capacity=groups)
        self.client.create_table(run=RUN, table=TABLE, config=config)
        self._insert(groups)

    def _insert(self, count: int) -> None:
        version = self.client.get_policy(run=RUN).version
        made = (_group(self.groups + index, version) for index in range(count))
        for result in self.client.insert_many(made, run=RUN, table=TABLE, timeout_s=300):
            if result.error is not None:
                raise result.error
        self.groups += count

    def run(self, seconds: float) -> float:
        """Work for some seconds; return groups per second."""
        started, first = time.monotonic(), self.steps
        while time.monotonic() - started < seconds:
            self._insert(BATCH)
            lease_id = f"step-{self.steps}"
            self.client.next_batch(run=RUN, table=TABLE, lease_id=lease_id, batch_size=BATCH, timeout_s=10)
            self.client.commit(run=RUN, table=TABLE, lease_id=lease_id, step=self.steps)
            self.steps += 1
            self.client.advance_policy(Policy(run=RUN, version=self.steps, weights_uri="w"))
        return (self.steps - first) * BATCH / (time.monotonic() - started)


def _group(number: int, version: int) -> RolloutGroup:
    rewards = np.array([0, 1, 0, 1] if number % 3 else [0, 0, 0, 0], np.float32)
    return RolloutGroup(
        group_id=f"g{number}", prompt_id=f"p{number}", prompt_token_ids=np.arange(32, dtype=np.int32),
        response_token_ids=np.zeros(4 * TOKENS, np.int32), response_lengths=np.full(4, TOKENS, np.int32),
        behaviour_logprobs=np.full(4 * TOKENS, -0.5, np.float32), rewards=rewards,
        policy_version_min=version, policy_version_max=version, producer_id="gen", task="cost",
    )  # fmt: skip


@dataclass(slots=True)
class Pages:
    """The requests of open pages; static/table.js makes the same."""

    address: str
    count: int
    seconds: list[float] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        """Ask, every two seconds, until stopped."""
        connection = http.client.HTTPConnection(self.address, timeout=20)
        known = -1
        while True:
            started = time.monotonic()
            known = self._ask(connection, known)
            self.seconds.append(time.monotonic() - started)
            if self.stop.wait(EVERY_S):
                return

    def _ask(self, connection: http.client.HTTPConnection, known: int) -> int:
        table = f"/v1/runs/{RUN}/tables/{TABLE}"
        after = f"&after_step={known - LATE_STEPS}" if known > LATE_STEPS else ""
        for path in (
            f"{table}/history?limit=1000{after}",
            f"/v1/runs/{RUN}/policy",
            f"{table}/diagnosis?batch_size={BATCH}",
        ):
            connection.request("GET", path)
            response = connection.getresponse()
            answer = response.read()
            if response.status != http.client.OK:
                raise RuntimeError(f"{path}: {answer!r}")
            if "/history" in path:
                known = json.loads(answer)["newest_step"] or -1
        return known


@contextmanager
def pages(address: str, count: int) -> Iterator[Pages]:
    """Keep pages open for as long as a block lasts."""
    watching = Pages(address, count)
    with ThreadPoolExecutor(max(1, count)) as threads:
        running = [threads.submit(watching.watch) for _ in range(count)]
        try:
            yield watching
        finally:
            watching.stop.set()
        for page in running:
            page.result()


def service_pids(folder: Path) -> list[int]:
    """Return the process ids of the service and of its Redis."""
    pid = int(json.loads((folder / "ready.json").read_text())["pid"])
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def _cpu_seconds(pids: list[int]) -> float:
    return sum(map(usage.cpu_seconds, pids))


if __name__ == "__main__":
    main()
