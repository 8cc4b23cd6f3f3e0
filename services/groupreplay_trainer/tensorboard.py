"""The trainer's metrics as TensorBoard event files."""

import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tensorboardX import SummaryWriter

from groupreplay_trainer.alarms import ALARMS
from groupreplay_trainer.metrics import ALARM, MEASURES, value_of
from groupreplay_trainer.watching import Undoing


class EventFiles:
    """Event files in one folder; each start of the trainer adds one."""

    def __init__(self, folder: Path) -> None:
        """Use `folder`, which is created when the first event is written."""
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def __enter__(self) -> Self:
        """Write nothing yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the file."""
        self._close()

    def resumed(self, step: int, newest: Mapping[str, Any] | None) -> None:
        """Begin a file that takes back the events of `step` and later, and write `step` again.

        A killed trainer may have finished a step without writing its events.
        """
        self._close()
        # The library names files by the second: a second one within it would overwrite the first.
        self._writer = SummaryWriter(str(self._folder), purge_step=step, filename_suffix=f".{time.time_ns():020d}")
        if newest is not None:
            self.finished(newest)

    def finished(self, record: Mapping[str, Any]) -> None:
        """Write a step; it is in the file when this returns."""
        assert self._writer is not None
        step, at_s = record["step"], record.get("at_unix_s")
        for measure in MEASURES:
            value = value_of(record, measure)
            if measure.tag is not None and value is not None:
                self._writer.add_scalar(measure.tag, value, step, walltime=at_s)
        on = record.get(ALARM.key, ())
        for alarm in ALARMS:
            self._writer.add_scalar(f"alarm/{alarm.name}", float(alarm.name in on), step, walltime=at_s)
        self._writer.flush()

    def undone(self, reason: Undoing) -> None:
        """Do nothing: a finished step's events are taken back by `resumed`, which follows."""

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
