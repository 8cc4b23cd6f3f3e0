"""A service and its Redis on this machine, each in a process of its own, to be watched while it works."""

import json
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from groupreplay import Client, Scope, TableConfig
from groupreplay_admin.load.jobs import Where
from groupreplay_demo.children import Child, stop_all
from service import usage
from service.access import Access, Door
from service.private_redis import OPTIONS, Keeping, PrivateRedis, wait_for

RUN: Final = "bench"
UNCACHED: Final = ("--payload-cache-bytes", "0")
"""Flags of a service that reads every payload from Redis."""


class Service:
    """`groupreplay serve` in a process of its own."""

    def __init__(self, folder: Path, redis_url: str, flags: Sequence[str] = ()) -> None:
        """Prepare it in a folder, which may hold no other."""
        self._folder = folder
        self._redis_url = redis_url
        self._flags = flags
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        ready = self._folder / "ready.json"
        ready.unlink(missing_ok=True)
        flags = {
            "--grpc-listen": "127.0.0.1:0",
            "--http-listen": "127.0.0.1:0",
            "--redis-url": self._redis_url,
            "--ready-file": ready,
        }
        given = [str(part) for item in flags.items() for part in item]
        process = Child("serve", ["serve", *given, *self._flags], folder=self._folder)
        self._stack.callback(stop_all, [process])
        process.start()
        wait_for(lambda: ready.exists() or not process.check(), "the service")
        written: dict[str, Any] = json.loads(ready.read_text())
        self.pid = int(written["pid"])
        self.address, self.http_address = str(written["grpc_address"]), str(written["http_address"])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def cpu_seconds(self) -> float:
        """Return the CPU time that it has taken."""
        return usage.cpu_seconds(self.pid)


class Deployment:
    """The service with a Redis of its own."""

    def __init__(
        self, folder: Path, keeping: Keeping = "memory", *, cached: bool = True, access: Access = "open"
    ) -> None:
        """Prepare it in an empty folder; cached=False reads every payload from Redis."""
        self._folder = folder
        self._keeping: Keeping = keeping
        self._cached = cached
        self._access: Access = access
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._door = Door.of(self._access, self._folder)
        self.redis = self._start_redis()
        flags = (*self._door.flags, *(() if self._cached else UNCACHED))
        self.service = self._stack.enter_context(Service(self._folder, self.redis.url, flags))
        self.client = self._stack.enter_context(Client(self.address, timeout_s=60.0, **self._door.login))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def pid(self) -> int:
        """Of the service's process."""
        return self.service.pid

    @property
    def address(self) -> str:
        """Of the service's gRPC."""
        return self.service.address

    def empty(self, table: str, config: TableConfig) -> Where:
        """Remove all there is and make a table; return where it is for producers."""
        self.redis.flush()
        self.client.create_table(run=RUN, table=table, config=config)
        login = self._door.grant(self.client, Scope.PRODUCER, RUN)
        return Where(server=self.address, run=RUN, table=table, login=login)

    def for_trainers(self, where: Where) -> Where:
        """Return where a table is for those who draw from it: they may do other things than producers."""
        return replace(where, login=self._door.grant(self.client, Scope.CONSUMER, RUN))

    def _start_redis(self) -> PrivateRedis:
        if self._keeping != "replicas":
            return self._stack.enter_context(PrivateRedis(self._folder / "redis", OPTIONS[self._keeping]))
        port = _free_port()  # replicas do not follow a unix socket
        options = (*OPTIONS["replicas"], "--port", str(port), "--bind", "127.0.0.1")
        primary = self._stack.enter_context(PrivateRedis(self._folder / "redis", options))
        follow = ("--appendonly", "no", "--replicaof", f"127.0.0.1 {port}")
        replica = self._stack.enter_context(PrivateRedis(self._folder / "replica", follow))
        wait_for(lambda: replica.info("replication")["master_link_status"] == "up", "the replica")
        return primary


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Watch:
    """CPU time and memory of a deployment while a block runs."""

    def __init__(self, deployment: Deployment) -> None:
        self._server, self._redis = deployment.pid, deployment.redis.pid

    def __enter__(self) -> Self:
        self._idle = usage.resident_bytes(self._server)
        usage.reset_peak(self._server)
        self._cpu = self._cpu_now()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        server, redis = self._cpu_now()
        self.server_cpu_s, self.redis_cpu_s = server - self._cpu[0], redis - self._cpu[1]
        self.peak_above_idle = max(0, usage.peak_bytes(self._server) - self._idle)

    def _cpu_now(self) -> tuple[float, float]:
        return usage.cpu_seconds(self._server), usage.cpu_seconds(self._redis)
