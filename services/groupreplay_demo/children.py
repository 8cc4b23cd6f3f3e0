"""The demo's processes: each is a groupreplay command of its own, as on a cluster."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, a polite kill, and a terminal that is closed."""
STOP_TIMEOUT_S = 30.0
_LOG_LINES_SHOWN = 15


class ChildFailedError(RuntimeError):
    """A process ended by itself; the message has the end of its log."""


class Child:
    """One groupreplay command in a process of its own, which can be killed and started again."""

    def __init__(self, name: str, arguments: list[str], *, folder: Path) -> None:
        """Prepare `groupreplay <arguments>`; its output goes to folder/<name>.log."""
        self.name = name
        self._arguments = arguments
        self._log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; the log is appended to."""
        with self._log.open("ab") as log, uninterrupted():
            self._process = subprocess.Popen(
                [sys.executable, "-m", "groupreplay_demo.tethered", *self._arguments],
                stdin=subprocess.PIPE,  # which ends with this process, and the command with it
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(),
                start_new_session=True,  # Ctrl-C is for the demo, which stops its processes in order
            )

    def check(self) -> bool:
        """Return whether it still runs, False if it ended well.

        Raises:
            ChildFailedError: it ended otherwise.
        """
        assert self._process is not None
        status = self._process.poll()
        if status:
            tail = self._log.read_text(errors="replace").splitlines()[-_LOG_LINES_SHOWN:]
            raise ChildFailedError(
                f"{self.name} ended with status {status}; the end of {self._log}:\n" + "\n".join(tail)
            )
        return status is None

    def kill(self) -> None:
        """SIGKILL, as a machine that dies."""
        assert self._process is not None
        self._process.kill()
        self._wait()

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for one that does not end."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def _wait(self, timeout_s: float | None = None) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.wait(timeout_s)
        self._process.stdin.close()


def stop_all(children: Iterable[Child]) -> None:
    """Stop each, in order, also when the user is impatient."""
    with uninterrupted():
        for child in children:
            child.stop()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Put interrupts off to the end of the block.

    One that came while a process is being started, before it can be remembered, would leave it running for ever.
    """
    came: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        came.append(number)

    handlers = {number: signal.signal(number, remember) for number in INTERRUPTS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def _environment() -> dict[str, str]:
    """Settings for the demo are not settings for its processes.

    Idle OpenMP threads sleep rather than spin: on a machine with few cores spinning ones take the other processes'
    time, and a busy neighbour makes every step ten times slower.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GROUPREPLAY_")}
    return {"OMP_WAIT_POLICY": "PASSIVE"} | inherited
