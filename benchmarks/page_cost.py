"""Measure what an open page costs the service, by a real Chromium that looks at a table under load.

Windows with and without a page take turns. What is compared is CPU seconds of service and Redis, which other work of
the machine, the browser's included, changes least: of a window with the page, what as many groups took without it is
taken away, and the rest is the page's, as a share of a core. A saturated service has one core, that of its Python
process, and throughput is the inverse of the CPU time of a group: the share is what the page takes of it. (Redis has a
core of its own; its part is counted in all the same.) Needs what `make test-ui` needs.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np

from groupreplay import Client, Policy, RolloutGroup, TableConfig
from groupreplay_demo.local_service import free_address, local_service
from service import usage

RUN, TABLE, BATCH = "cost", "train", 64
TOKENS = 256
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
SETTLE_S = 1.0
"""Between a change of what is open and the window: what that itself costs is over."""


def main() -> None:
    """Measure, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, default=10_000, help="groups in the table")
    parser.add_argument("--pages", type=int, default=1, help="pages open at once")
    parser.add_argument("--loads", type=int, default=2, help="processes that insert, take and commit, a table each")
    parser.add_argument("--pairs", type=int, default=24, help="windows with, and as many without")
    parser.add_argument("--window-s", type=float, default=8.0, help="seconds of a window")
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="the browser")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        addresses = {
            "grpc_listen": free_address("gRPC", "127.0.0.1:0", ""),
            "http_listen": free_address("HTTP", "127.0.0.1:0", ""),
        }
        stack.enter_context(local_service(Path(name), **addresses))
        service = Service.of(Path(name))
        with Client(addresses["grpc_listen"], timeout_s=60) as client:
            for number in range(arguments.loads):
                Load(client, table_of(number)).fill(arguments.groups)
        browser = stack.enter_context(_chromium(arguments.chromium))
        groups = stack.enter_context(loads(addresses["grpc_listen"], arguments.loads, arguments.groups))
        measure(Watch(browser, addresses["http_listen"]), service, groups, arguments)


def measure(watch: "Watch", service: "Service", groups: "Synchronized[int]", arguments: argparse.Namespace) -> None:
    """Run the windows."""
    pairs: list[tuple[Window, Window]] = []
    for number in range(arguments.pairs):
        found = {}
        for pages in (0, arguments.pages) if number % 2 else (arguments.pages, 0):
            with watch.pages(pages):
                found[bool(pages)] = Window.of(service, groups, arguments.window_s)
        pairs.append((found[False], found[True]))
        print(f"pair {number}: {found[False]} without, {found[True]} with", flush=True)
    how = f"{arguments.pages} open, {arguments.groups} groups, {len(pairs)} pairs of {arguments.window_s:g} s"
    busy = statistics.mean(window.busy for pair in pairs for window in pair)
    print(f"{how}; the service was busy for {busy:.0%} of a core; load of the machine {os.getloadavg()[0]:.1f}")
    of_core = [it.seconds_beyond(no) / it.seconds for no, it in pairs]
    print(f"a page took {shown(of_core)} of a core, hence of a saturated service's throughput")
    print(f"CPU for a group, at these rates: {shown([it.cost / no.cost - 1 for no, it in pairs])} more with a page")
    print(f"throughput, the browser's work beside it: {shown([1 - it.rate / no.rate for no, it in pairs])} less")


def shown(shares: list[float]) -> str:
    """Return shares as mean, standard error and median."""
    error = statistics.stdev(shares) / len(shares) ** 0.5 if len(shares) > 1 else float("nan")
    return f"{statistics.mean(shares):.1%} (standard error {error:.1%}, median {statistics.median(shares):.1%})"


@dataclass(frozen=True, slots=True)
class Service:
    """The processes of the service."""

    server: int
    redis: tuple[int, ...]

    @classmethod
    def of(cls, folder: Path) -> "Service":
        """Return those of a service that wrote its ready file to a folder."""
        pid = int(json.loads((folder / "ready.json").read_text())["pid"])
        return cls(pid, tuple(_descendants(pid)))

    def cpu_seconds(self) -> tuple[float, float]:
        """Return the CPU time that the service has taken, and its Redis."""
        return usage.cpu_seconds(self.server), sum(map(usage.cpu_seconds, self.redis))


def _descendants(pid: int) -> Iterator[int]:
    """Yield the processes below one: the service starts its Redis by way of a shell."""
    for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        yield child
        yield from _descendants(child)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What some seconds of load took."""

    seconds: float
    groups: int
    server_s: float
    redis_s: float

    @classmethod
    def of(cls, service: Service, groups: "Synchronized[int]", seconds: float) -> "Window":
        """Look on for some seconds, in which the loads go on."""
        time.sleep(SETTLE_S)
        started, first, before = time.monotonic(), groups.value, service.cpu_seconds()
        time.sleep(seconds)
        after, last, ended = service.cpu_seconds(), groups.value, time.monotonic()
        return cls(
            seconds=ended - started,
            groups=last - first,
            server_s=after[0] - before[0],
            redis_s=after[1] - before[1],
        )

    @property
    def rate(self) -> float:
        """Groups in a second."""
        return self.groups / self.seconds

    @property
    def busy(self) -> float:
        """Share of a core that the service used."""
        return self.server_s / self.seconds

    @property
    def cost(self) -> float:
        """CPU seconds of service and Redis for a group."""
        return (self.server_s + self.redis_s) / self.groups

    def seconds_beyond(self, other: "Window") -> float:
        """Return the CPU seconds beyond those that as many groups would have taken in another window."""
        return self.groups * (self.cost - other.cost)

    def __str__(self) -> str:
        return f"{self.rate:.0f} groups/s at {self.cost * 1e6:.0f} us of CPU each"


@dataclass(frozen=True, slots=True)
class Watch:
    """A browser that opens the page of the first load's table."""

    browser: Any
    address: str

    @contextmanager
    def pages(self, count: int) -> Iterator[None]:
        """Keep so many pages open, each in a window of its own, and drawn, for as long as a block lasts."""
        contexts = [self.browser.new_context(viewport={"width": 1280, "height": 800}) for _ in range(count)]
        try:
            for context in contexts:
                page = context.new_page()
                page.goto(f"http://{self.address}/ui/#/{RUN}/{TABLE}")
                page.locator("main svg").first.wait_for()
            yield
        finally:
            for context in contexts:
                context.close()


@contextmanager
def _chromium(path: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright  # noqa: PLC0415  `make test-ui` installs it

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield launched
        launched.close()


@contextmanager
def loads(address: str, count: int, filled: int) -> Iterator["Synchronized[int]"]:
    """Keep loads going; yield how many groups they have committed."""
    spawning = multiprocessing.get_context("spawn")
    groups, stop = spawning.Value("q", 0), spawning.Event()
    working = [
        spawning.Process(target=_work, args=(address, table_of(number), filled, groups, stop))
        for number in range(count)
    ]
    for process in working:
        process.start()
    try:
        while groups.value < count * BATCH:
            if not all(process.is_alive() for process in working):
                raise RuntimeError("a load ended by itself")
            time.sleep(0.1)
        yield groups
    finally:
        stop.set()
        for process in working:
            process.join()


def _work(address: str, table: str, filled: int, groups: "Synchronized[int]", stop: Event) -> None:
    with Client(address, timeout_s=60) as client:
        load = Load(client, table, filled)
        while not stop.is_set():
            load.step()
            with groups.get_lock():
                groups.value += BATCH


def table_of(number: int) -> str:
    """Return the name of a load's table."""
    return f"{TABLE}-{number}" if number else TABLE


@dataclass(slots=True)
class Load:
    """Inserts, takes and commits as fast as one caller can."""

    client: Client
    table: str
    groups: int = 0
    steps: int = 0

    def fill(self, groups: int) -> None:
        """Make the table with so many fresh groups."""
        config = TableConfig(fresh_capacity=4 * groups, replay_capacity=groups)
        self.client.create_table(run=RUN, table=self.table, config=config)
        self._insert(groups)

    def step(self) -> None:
        """Insert a batch, and train on one."""
        self._insert(BATCH)
        names: dict[str, Any] = {"run": RUN, "table": self.table}
        lease_id = f"step-{self.steps}"
        self.client.next_batch(**names, lease_id=lease_id, batch_size=BATCH, timeout_s=10)
        self.client.commit(**names, lease_id=lease_id, step=self.steps)
        self.steps += 1
        if self.table == TABLE:  # the clock is the run's
            self.client.advance_policy(Policy(run=RUN, version=self.steps, weights_uri="w"))

    def _insert(self, count: int) -> None:
        version = self.client.get_policy(run=RUN).version
        made = (_group(self.groups + index, version) for index in range(count))
        for result in self.client.insert_many(made, run=RUN, table=self.table, timeout_s=300):
            if result.error is not None:
                raise result.error
        self.groups += count


def _group(number: int, version: int) -> RolloutGroup:
    rewards = np.array([0, 1, 0, 1] if number % 3 else [0, 0, 0, 0], np.float32)
    return RolloutGroup(
        group_id=f"g{number}", prompt_id=f"p{number}", prompt_token_ids=np.arange(32, dtype=np.int32),
        response_token_ids=np.zeros(4 * TOKENS, np.int32), response_lengths=np.full(4, TOKENS, np.int32),
        behaviour_logprobs=np.full(4 * TOKENS, -0.5, np.float32), rewards=rewards,
        policy_version_min=version, policy_version_max=version, producer_id="gen", task="cost",
    )  # fmt: skip


if __name__ == "__main__":
    main()
