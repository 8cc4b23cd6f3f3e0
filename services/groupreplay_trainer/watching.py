"""Those who watch a run while it trains: log lines or a progress bar, Prometheus, TensorBoard."""

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from groupreplay_trainer.settings import TrainerSettings
from groupreplay_trainer.step_record import summary

Undoing = Literal["nonfinite", "lease_lost"]
"""Why a step was undone."""

_log = logging.getLogger(__name__)


class StepWatcher(Protocol):
    """Is told of each step. Called from the training loop, so it must be quick and must not raise."""

    def resumed(self, step: int, newest: Mapping[str, Any] | None) -> None:
        """Training goes on after `step`, at the start, after a restart, or after steps were undone.

        Args:
            step: the newest finished one.
            newest: its line of train.jsonl; None before the first.
        """

    def finished(self, record: Mapping[str, Any]) -> None:
        """A step is done and published.

        Args:
            record: its line of train.jsonl, and `publishing_s`.
        """

    def undone(self, reason: Undoing) -> None:
        """A step was undone: before its end for `nonfinite`, after it for `lease_lost`; then `resumed` follows."""


class LogLines:
    """One line of the log for each step."""

    def resumed(self, step: int, newest: Mapping[str, Any] | None) -> None:
        """Say nothing: the trainer does."""

    def finished(self, record: Mapping[str, Any]) -> None:
        """Log the step in a sentence."""
        _log.info("%s", summary(record))

    def undone(self, reason: Undoing) -> None:
        """Say nothing: the trainer does."""


@contextmanager
def open_watchers(settings: TrainerSettings) -> Iterator[Sequence[StepWatcher]]:
    """Open what the settings ask for.

    Raises:
        ModuleNotFoundError: TensorBoard files are asked for, and the extra for them is not installed.
        OSError: the address is in use, or the folder cannot be written.
    """
    with ExitStack() as stack:
        watchers: list[StepWatcher] = []
        # Imported late: most runs need none of their libraries.
        if settings.progress and sys.stderr.isatty():
            from groupreplay_trainer.progress_bar import ProgressBar  # noqa: PLC0415

            watchers.append(stack.enter_context(ProgressBar(steps=settings.steps)))
        else:
            watchers.append(LogLines())
        if settings.metrics.listen is not None:
            from groupreplay_trainer.prometheus import PrometheusEndpoint  # noqa: PLC0415

            watchers.append(stack.enter_context(PrometheusEndpoint(settings.metrics.listen)))
        if settings.metrics.tensorboard is not None:
            watchers.append(stack.enter_context(_event_files(settings.metrics.tensorboard)))
        yield watchers


def _event_files(folder: Path) -> AbstractContextManager[StepWatcher]:
    try:
        from groupreplay_trainer.tensorboard import EventFiles  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"metrics.tensorboard {folder} needs a package more: pip install 'groupreplay[tensorboard]' ({error})"
        ) from error
    return EventFiles(folder)
