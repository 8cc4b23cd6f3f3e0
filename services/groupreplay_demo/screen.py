"""What the demo shows while it runs: a live panel on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from groupreplay_demo.records import RunRecords

_LINE_EVERY_STEPS = 10
_RATE_OVER_STEPS = 20
_SPARKS = " ▁▂▃▄▅▆▇█"


class Screen:
    """Shows one run."""

    def __init__(self, console: Console, *, title: str, steps: int) -> None:
        self._console = console
        self._title = title
        self._steps = steps
        self._times: list[tuple[float, int]] = []
        self._printed = 0
        self._live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator[Callable[[RunRecords], None]]:
        """Yield the function that shows the newest records."""
        if not self._console.is_terminal:
            self._console.print(self._title)
            yield self._print_line
            return
        with Live(console=self._console, refresh_per_second=4, transient=True) as live:
            self._live = live
            yield self._update_panel

    def say(self, message: str) -> None:
        """Put a line above the panel."""
        self._console.print(message)

    def _update_panel(self, records: RunRecords) -> None:
        assert self._live is not None
        self._live.update(self._panel(records))

    def _print_line(self, records: RunRecords) -> None:
        self._note_time(records)
        done = len(records.steps)
        if done >= self._printed + _LINE_EVERY_STEPS or (done == self._steps and done > self._printed):
            self._printed = done
            self._console.print(", ".join(f"{name} {value}" for name, value in self._figures(records).items()))

    def _panel(self, records: RunRecords) -> Panel:
        self._note_time(records)
        table = Table.grid(padding=(0, 2))
        for name, value in self._figures(records).items():
            table.add_row(Text(name, style="dim"), value)
        table.add_row(Text("accuracy over time", style="dim"), sparkline([e["accuracy"] for e in records.evaluations]))
        rows = Table.grid()  # a progress bar does not end its line by itself
        rows.add_row(ProgressBar(total=self._steps, completed=len(records.steps), width=60))
        rows.add_row(table)
        return Panel(rows, title=self._title, border_style="cyan", width=78)

    def _figures(self, records: RunRecords) -> dict[str, str]:
        last = records.steps[-1] if records.steps else None
        start, now = records.accuracy(0), records.accuracy(-1)
        return {
            "step": f"{len(records.steps)}/{self._steps}",
            "held-out accuracy": f"{now:.3f} (began at {start:.3f})" if now is not None else "measuring",
            "effective share": f"{last['effective_ratio']:.2f}"
            if last and last["effective_ratio"] is not None
            else "-",
            "batch": (
                f"{last['groups'] - last['refilled']} fresh + {last['refilled']} refilled, {last['shortfall']} short"
                if last
                else "waiting for the first"
            ),
            "staleness": f"{last['replay_staleness_mean'] or 0:.1f}" if last else "-",
            "rollouts": f"{records.rollouts:,}",
            "time left": self._time_left(records),
        }

    def _note_time(self, records: RunRecords) -> None:
        done = len(records.steps)
        if done and (not self._times or self._times[-1][1] != done):
            self._times.append((time.monotonic(), done))

    def _time_left(self, records: RunRecords) -> str:
        recent = self._times[-_RATE_OVER_STEPS:]
        if len(recent) < 2:
            return "-"
        seconds_per_step = (recent[-1][0] - recent[0][0]) / max(1, recent[-1][1] - recent[0][1])
        seconds = round(seconds_per_step * (self._steps - len(records.steps)))
        return f"{seconds // 60}:{seconds % 60:02d}"


def sparkline(values: list[float]) -> str:
    """Return values as a row of bars, scaled to the highest."""
    top = max(values, default=0) or 1
    return "".join(_SPARKS[round(value / top * (len(_SPARKS) - 1))] for value in values[-50:])
