"""`groupreplay top`: runs and tables, live."""

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from cyclopts import Parameter
from rich.console import Console
from rich.live import Live

from groupreplay import Client, Diagnosis, InvalidRequestError
from groupreplay.groups import check_name
from groupreplay_admin.connection import ServiceSettings, open_client
from groupreplay_admin.observing import Look, Recent, look
from groupreplay_admin.output import console, to_json
from groupreplay_admin.statuses import Status
from groupreplay_admin.top_view import Order, View, frame

_KEYS = "q quit, s sort, arrows choose"
_ONCE_LINES = 60
_TABLE_FIELDS = (
    "run", "table", "policy_version", "fresh", "fresh_effective", "replay", "leased", "leases", "payload_bytes",
    "missing", "last_insert_ms", "replay_version_min", "replay_version_max",
)  # fmt: skip


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class TopSettings(ServiceSettings):
    """What to watch.

    Raises:
        InvalidRequestError: a name has characters that the service refuses, or the interval is out of range.
    """

    run: str = ""
    """Training run. Default: all."""
    batch_size: int = 64
    """Groups in the batch that a table is asked for; that of the trainer."""
    interval_s: float = 1.0
    """Seconds between two looks."""
    once: bool = False
    """Look twice, print what is there, and end; as it does by itself where standard output is no terminal."""
    json: bool = False
    """Print a line of JSON for each look, for programs, until Ctrl-C."""
    timeout_s: float = 5.0
    """Seconds to wait for the service at each look; it is asked again at the next."""

    def __post_init__(self) -> None:
        if self.run:
            check_name(self.run, "run")
        if not 0.05 <= self.interval_s <= 3600:
            raise InvalidRequestError(f"interval_s {self.interval_s} is not in 0.05 to 3600")


_DEFAULTS = TopSettings()


def top(settings: TopSettings = _DEFAULTS) -> int:
    """Watch runs and tables live: groups, rates, staleness, producers, leases, and why no batch is ready.

    For each table: policy version; groups that are fresh, in replay, leased; bytes of payload; and of the last minute
    the share of groups with reward variance, groups in and out per second, the share of delivered groups that replay
    refilled, empty slots of batches; and how stale its newest and oldest replay groups are. A name in red has no batch
    of --batch-size ready. Keys: q quits, s sorts by name, fresh groups, rate or bytes, arrows choose the table whose
    details are shown.
    """
    out = console()
    with open_client(settings) as client:
        try:
            if settings.json:
                return _print_lines(client, settings)
            if settings.once or not out.is_terminal:
                return _print_frame(client, settings, out)
            return _watch(client, settings, out)
        except KeyboardInterrupt:
            return Status.DONE


def _print_lines(client: Client, settings: TopSettings) -> int:
    recent = Recent()
    for number, seen in enumerate(_looks(client, settings, recent)):
        if number == 0 and not seen.error:
            continue  # rates need two looks
        print(to_json(as_dict(seen, recent), indent=None), flush=True)
        if settings.once:
            return Status.FAILED if seen.error else Status.DONE
    raise AssertionError("it looks for ever")


def _print_frame(client: Client, settings: TopSettings, out: Console) -> int:
    recent = Recent()
    looks = _looks(client, settings, recent)
    seen = next(looks)
    if not seen.error:
        seen = next(looks)  # rates need two
    out.print(frame(seen, recent, View(server=settings.server), columns=out.width, lines=_ONCE_LINES))
    return Status.FAILED if seen.error else Status.DONE


def _looks(client: Client, settings: TopSettings, recent: Recent) -> Iterator[Look]:
    while True:
        next_s = time.monotonic() + settings.interval_s
        yield _look(client, settings, recent)
        time.sleep(max(0.0, next_s - time.monotonic()))


def _look(client: Client, settings: TopSettings, recent: Recent) -> Look:
    seen = look(client, run=settings.run, batch_size=settings.batch_size)
    recent.add(seen)
    return seen


def _watch(client: Client, settings: TopSettings, out: Console) -> int:
    """Show frames until a key says stop."""
    recent, view = Recent(), View(server=settings.server, keys=_KEYS)
    with _keyboard() as keyboard, Live(console=out, screen=True, auto_refresh=False) as live:
        while True:
            next_s = time.monotonic() + settings.interval_s
            seen = _look(client, settings, recent)
            live.update(frame(seen, recent, view, columns=out.width, lines=out.height), refresh=True)
            while (left_s := next_s - time.monotonic()) > 0:
                key = _read_key(keyboard, left_s)
                if key == "q":
                    return Status.DONE
                if key:
                    view = _after_key(view, key, tables=len(seen.diagnoses))
                    live.update(frame(seen, recent, view, columns=out.width, lines=out.height), refresh=True)


def _after_key(view: View, key: str, *, tables: int) -> View:
    orders = list(Order)
    match key:
        case "s":
            return replace(view, order=orders[(orders.index(view.order) + 1) % len(orders)])
        case "\x1b[A" | "\x1bOA" | "k":
            return replace(view, selected=max(0, view.selected - 1))
        case "\x1b[B" | "\x1bOB" | "j":
            return replace(view, selected=max(0, min(tables - 1, view.selected + 1)))
    return view


@contextmanager
def _keyboard() -> Iterator[int | None]:
    """Yield where single keys can be read from; None where standard input is no terminal."""
    if not sys.stdin.isatty():
        yield None
        return
    number = sys.stdin.fileno()
    before = termios.tcgetattr(number)
    tty.setcbreak(number)
    try:
        yield number
    finally:
        termios.tcsetattr(number, termios.TCSADRAIN, before)


def _read_key(keyboard: int | None, timeout_s: float) -> str:
    """Return a key, or what an arrow sends; empty where none was pressed in time."""
    if keyboard is None:
        time.sleep(timeout_s)
        return ""
    readable, _, _ = select.select([keyboard], [], [], timeout_s)
    return os.read(keyboard, 16).decode(errors="replace") if readable else ""


def as_dict(seen: Look, recent: Recent) -> dict[str, Any]:
    """Return a look for programs; docs/reference/command-line.md lists its fields."""
    return {
        "time_ms": seen.time_ms,
        "error": seen.error,
        "policies": [asdict(policy) for policy in seen.policies],
        "tables": [_table(it, recent) for it in seen.diagnoses],
    }


def _table(it: Diagnosis, recent: Recent) -> dict[str, Any]:
    pace = recent.pace(it.table.run, it.table.table)
    return {name: getattr(it.table, name) for name in _TABLE_FIELDS} | {
        "ready": it.ready,
        "recent": asdict(pace) if pace else None,
        "findings": [asdict(finding) for finding in it.findings],
        "producers": [asdict(producer) for producer in it.producers],
        "held": [asdict(lease) for lease in it.leases],
    }
