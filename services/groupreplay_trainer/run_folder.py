"""The run folder: who owns it, and where things lie in it."""

import fcntl
from pathlib import Path
from types import TracebackType
from typing import IO, Self


class RunFolderBusyError(RuntimeError):
    """Another trainer works in the run folder."""


class RunFolder:
    """A run folder, locked for as long as it is open, so that two trainers never write into each other's files.

    The lock is the kernel's: it ends with the process, however that ends.
    """

    def __init__(self, path: Path) -> None:
        """Use `path`, which is created on entry."""
        self.path = path
        self._lock: IO[str] | None = None

    def __enter__(self) -> Self:
        """Create and lock the folder.

        Raises:
            RunFolderBusyError: another process has it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = (self.path / "trainer.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise RunFolderBusyError(
                f"another trainer works in {self.path}; stop it, or give this one its own run_dir and run"
            ) from None
        self._lock = lock
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Unlock the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def checkpoints(self) -> Path:
        """Where training states lie."""
        return self.path / "checkpoints"

    @property
    def rejected(self) -> Path:
        """Where batches of rejected steps are kept for a look."""
        return self.path / "rejected"
