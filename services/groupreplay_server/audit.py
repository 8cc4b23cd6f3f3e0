"""Who did what to the service: one JSON line for each call that changes more than groups, refused ones too."""

import io
import json
import logging
import os
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path
from types import TracebackType
from typing import Self

LOGGER = "groupreplay.audit"


class _PrivateFile(WatchedFileHandler):
    """Opens its file anew once it was moved away, as by logrotate; a file that it makes is its owner's alone."""

    def _open(self) -> io.TextIOWrapper:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        return os.fdopen(descriptor, "a", encoding=self.encoding)


class AuditLog:
    """Writes to the logger `groupreplay.audit`, which the log of the service shows, and to a file where one is set."""

    def __init__(self, path: Path | None = None) -> None:
        """A file that is moved away, as by logrotate, is made anew, readable by its owner only."""
        self._path = path
        self._log = logging.getLogger(LOGGER)
        self._log.setLevel(logging.INFO)
        self._handler: logging.Handler | None = None

    def __enter__(self) -> Self:
        if self._path is not None:
            try:
                self._handler = _PrivateFile(self._path, encoding="utf-8")
            except OSError as error:
                raise OSError(f"--audit-log {self._path} cannot be written: {error.strerror}") from error
            self._handler.setFormatter(logging.Formatter("%(message)s"))
            self._log.addHandler(self._handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handler is not None:
            self._log.removeHandler(self._handler)
            self._handler.close()

    def record(self, *, who: str, peer: str, door: str, call: str, outcome: str, target: dict[str, str]) -> None:
        """Write a line. JSON spells out control characters, so that no name can forge a second one.

        Args:
            who: name of the caller's token; empty = it showed none.
            outcome: OK, the ErrorReason, or CANCELLED where the caller went away.
            target: the run, table, token or label that it was about.
        """
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"time": at, "who": who, "peer": peer, "door": door, "call": call, "outcome": outcome, **target}
        self._log.info("%s", json.dumps(line))
