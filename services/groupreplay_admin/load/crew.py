"""Client processes that begin together."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Protocol, Self

from groupreplay_admin.load.tally import Tally

Go = Callable[[], Awaitable[None]]
_READY = "ready"
_STOP_S = 5.0


class Job(Protocol):
    """What a client process does; it travels to the process."""

    async def run(self, go: Go) -> Tally:
        """Prepare, wait for go(), which all clients pass together, then push or pull and count."""


class ClientFailedError(RuntimeError):
    """A client process could not do its job; the message says why."""


class Crew:
    """Client processes, started once for many jobs."""

    def __init__(self, size: int) -> None:
        """Prepare `size` processes."""
        self._size = size

    def __enter__(self) -> Self:
        spawn = get_context("spawn")
        pipes = [spawn.Pipe() for _ in range(self._size)]
        self._connections = [ours for ours, _ in pipes]
        self._processes = [spawn.Process(target=_work, args=(theirs,), daemon=True) for _, theirs in pipes]
        for process in self._processes:
            process.start()
        for _, theirs in pipes:
            theirs.close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.join(0 if error else _STOP_S)  # an interrupted client may be in the middle of its job
            process.terminate()
            process.join()

    def run(self, jobs: Sequence[Job]) -> list[Tally]:
        """Let each job be done by a process of its own, all at once; return their tallies in order.

        Raises:
            ClientFailedError: one of them could not.
        """
        if len(jobs) > self._size:
            raise ValueError(f"{len(jobs)} jobs for {self._size} processes")
        at_work = self._connections[: len(jobs)]
        for connection, job in zip(at_work, jobs, strict=True):
            connection.send(job)
        for connection in at_work:
            _receive(connection)
        for connection in at_work:
            connection.send(None)
        return [tally for connection in at_work if (tally := _receive(connection)) is not None]


def _receive(connection: Connection) -> Tally | None:
    """Return what a process says: a tally, or None when it is ready."""
    try:
        answer = connection.recv()
    except EOFError:
        raise ClientFailedError("a client process has died") from None
    if isinstance(answer, Exception):
        raise ClientFailedError(f"a client failed with {type(answer).__name__}: {answer}") from answer
    return answer if isinstance(answer, Tally) else None


def _work(connection: Connection) -> None:
    while True:
        try:
            job: Job = connection.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            answer: Tally | Exception = asyncio.run(_do(job, connection))
        except (EOFError, KeyboardInterrupt):
            return
        except Exception as error:  # noqa: BLE001  it is raised again where the job came from
            answer = error
        connection.send(answer)


async def _do(job: Job, connection: Connection) -> Tally:
    cpu_before = 0.0

    async def go() -> None:
        nonlocal cpu_before
        connection.send(_READY)
        await asyncio.to_thread(connection.recv)
        cpu_before = time.process_time()

    tally = await job.run(go)
    return replace(tally, cpu_s=time.process_time() - cpu_before)
