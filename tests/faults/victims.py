"""The processes that are killed, and how each is started again."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import redis
from faults.worker import Job
from processes import RedisProcess, ServerProcess, plain_environment, wait_until
from redis_groups import SentinelGroup, TcpRedis

TESTS = Path(__file__).resolve().parent.parent
END_TIMEOUT_S = 120.0
"""A worker that drains may have to wait for leases of others to end."""


class DiedError(Exception):
    """A process ended that nobody had killed."""


class Victim(ABC):
    """A process, or one of several alike."""

    rest_s = 0.0
    """How long it must have run again before its next death, where that came late."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        """Its row in the table of kills."""

    @abstractmethod
    def kill(self) -> None:
        """SIGKILL.

        Raises:
            DiedError: it had ended before.
        """

    @abstractmethod
    def start(self) -> None:
        """Start it on what it has on disk; return when others can work with it again, or could after a failover."""


class CommandProcess(Victim):
    """A command that runs until SIGTERM, with a log file for what it says."""

    def __init__(self, kind: str, arguments: Sequence[str], log: Path) -> None:
        super().__init__(kind)
        self._arguments = arguments
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *self._arguments],
                env=plain_environment() | {"PYTHONPATH": path},
                stderr=log,
                stdout=log,
            )

    def kill(self) -> None:
        self.check()
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def check(self) -> None:
        """Raise DiedError if it has ended by itself."""
        if self._process is not None and (status := self._process.poll()) is not None:
            tail = self._log.read_text(errors="replace")[-3000:]
            raise DiedError(f"{self._log.stem} ended by itself with status {status}:\n{tail}")

    def finish(self) -> None:
        """SIGTERM, and wait until it has done what was under way."""
        self.check()
        assert self._process is not None
        self._process.terminate()
        if status := self._process.wait(timeout=END_TIMEOUT_S):
            tail = self._log.read_text(errors="replace")[-3000:]
            raise DiedError(f"{self._log.stem} did not end well, but with status {status}:\n{tail}")
        self._process = None

    def clear(self) -> None:
        """Kill it if it still runs, at the end of everything."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


class WorkerProcess(CommandProcess):
    """A producer or a trainer of worker.py."""

    def __init__(self, job: Job) -> None:
        super().__init__(job.role, ["faults.worker", job.to_json()], job.journal.with_suffix(".log"))
        self.job = job


class Server(Victim):
    """`groupreplay serve`."""

    def __init__(self, kind: str, process: ServerProcess) -> None:
        super().__init__(kind)
        self._process = process

    def kill(self) -> None:
        if (status := self._process.status()) is not None:
            raise DiedError(f"{self.kind} ended by itself with status {status}")
        self._process.kill()

    def start(self) -> None:
        self._process.start()


class StandaloneRedis(Victim):
    """The only Redis, which syncs every write."""

    def __init__(self, process: RedisProcess) -> None:
        super().__init__("redis")
        self._process = process

    def kill(self) -> None:
        self._process.kill()

    def start(self) -> None:
        self._process.start()


class SentinelMaster(Victim):
    """Whoever is the master behind the Sentinels. It comes back once another has taken over, as a replica."""

    rest_s = 4.0  # or nobody would make any progress

    def __init__(self, group: SentinelGroup) -> None:
        super().__init__("redis master")
        self._group = group
        self._dead: TcpRedis | None = None

    def kill(self) -> None:
        self._dead = self._group.master()
        self._dead.signal(signal.SIGKILL)

    def start(self) -> None:
        dead = self._dead
        assert dead is not None
        wait_until(lambda: self._group.master() is not dead, "the Sentinels have another master")
        dead.start()
        dead.wait_until_it_answers()
        wait_until(self._all_follow, "all others follow the new master")

    def _all_follow(self) -> bool:
        master = self._group.master()
        return is_master(master) and all(
            follows(server, master) for server in self._group.servers if server is not master
        )


class ClusterMaster(Victim):
    """One of the masters of a cluster of two nodes a shard; it comes back once its replica has taken over."""

    rest_s = 4.0  # or nobody would make any progress

    def __init__(self, nodes: Sequence[TcpRedis], rng: random.Random) -> None:
        super().__init__("redis master")
        shards = len(nodes) // 2
        self._pairs = [(nodes[number], nodes[number + shards]) for number in range(shards)]
        self._rng = rng
        self._dead: tuple[TcpRedis, TcpRedis] | None = None

    def kill(self) -> None:
        one, other = self._rng.choice(self._pairs)
        self._dead = (one, other) if is_master(one) else (other, one)
        self._dead[0].signal(signal.SIGKILL)

    def start(self) -> None:
        assert self._dead is not None
        dead, successor = self._dead
        wait_until(partial(is_master, successor), "its replica takes over")
        dead.start()
        dead.wait_until_it_answers()
        wait_until(partial(follows, dead, successor), "it follows its successor")


def is_master(node: TcpRedis) -> bool:
    """Whether a node thinks so."""
    return _role(node).get("role") == "master"


def follows(node: TcpRedis, master: TcpRedis) -> bool:
    """Whether a node is a replica of that master and has what it has."""
    state = _role(node)
    return (state.get("role"), state.get("master_link_status"), state.get("master_port")) == (
        "slave",
        "up",
        master.port,
    )


def _role(node: TcpRedis) -> dict[str, Any]:
    try:
        return node.info("replication")
    except redis.ConnectionError:  # Sentinel breaks all connections of a node whose role it changes
        return {}


class Graveyard:
    """Kills victims and has them started again after a while, each in a task of its own."""

    def __init__(self) -> None:
        self.kills: dict[str, int] = {}
        self._returning: dict[Victim, asyncio.Task[None]] = {}

    async def kill(self, victim: Victim, down_s: float) -> None:
        """Kill a victim, once it is back from its last death; it will be started down_s later."""
        if victim in self._returning:
            await self.has_returned(victim)
            await asyncio.sleep(victim.rest_s)
        await asyncio.to_thread(victim.kill)
        self.kills[victim.kind] = self.kills.get(victim.kind, 0) + 1
        self._returning[victim] = asyncio.create_task(self._return(victim, down_s))

    async def has_returned(self, victim: Victim) -> None:
        """Wait until a victim runs."""
        if task := self._returning.pop(victim, None):
            await task

    async def all_returned(self) -> None:
        """Wait until everybody runs."""
        for victim in list(self._returning):
            await self.has_returned(victim)

    @staticmethod
    async def _return(victim: Victim, down_s: float) -> None:
        await asyncio.sleep(down_s)
        await asyncio.to_thread(victim.start)


@contextmanager
def cleared(processes: Sequence[CommandProcess]) -> Iterator[None]:
    """Kill what still runs at the end of the block."""
    try:
        yield
    finally:
        for process in processes:
            process.clear()
