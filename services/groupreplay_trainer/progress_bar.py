"""A progress bar on a terminal."""

from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Final, Self

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from groupreplay_trainer.watching import Undoing

SHOWN: Final = {
    "reward_mean": "reward",
    "effective_ratio": "effective",
    "replay_share": "replay",
    "staleness_mean": "staleness",
}


class ProgressBar:
    """Steps done, seconds per step, time left, and the figures to watch; log lines go above it."""

    def __init__(self, *, steps: int) -> None:
        """Show nothing yet.

        Args:
            steps: of the whole run.
        """
        self._steps = steps
        self._stack = ExitStack()
        self._bar: tqdm | None = None

    def __enter__(self) -> Self:
        """Let log lines go above the bar."""
        self._stack.enter_context(logging_redirect_tqdm())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the bar as it is."""
        self._close()
        self._stack.close()

    def resumed(self, step: int, newest: Mapping[str, Any] | None) -> None:
        """Begin a bar at this step: the time left is that of the steps from here on."""
        self._close()
        self._bar = tqdm(total=self._steps, initial=step, unit="step", dynamic_ncols=True, smoothing=0.1, leave=True)
        self._show(newest or {})

    def finished(self, record: Mapping[str, Any]) -> None:
        """Move on by a step."""
        assert self._bar is not None
        self._show(record)
        self._bar.update()

    def undone(self, reason: Undoing) -> None:
        """Do nothing: where the bar must go back, `resumed` follows."""

    def _show(self, record: Mapping[str, Any]) -> None:
        assert self._bar is not None
        figures = {label: record[name] for name, label in SHOWN.items() if record.get(name) is not None}
        self._bar.set_postfix(figures)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
