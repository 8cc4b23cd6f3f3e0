"""A line on the terminal that says how far a transfer is."""

import sys
import time
from types import TracebackType
from typing import Self

_EVERY_S = 0.2


class ProgressLine:
    """Rewrites one line of standard error; says nothing where that is no terminal."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._shown = sys.stderr.isatty()
        self._next_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._next_s:
            print(file=sys.stderr)

    def __call__(self, done: int, total: int) -> None:
        """Say that so much of so much is done, in bytes."""
        now_s = time.monotonic()
        if self._shown and (now_s >= self._next_s or done == total):
            self._next_s = now_s + _EVERY_S
            share = 100 * done // max(total, 1)
            print(f"\r{self._what}: {share:3} % of {size(total)}", end="", file=sys.stderr, flush=True)


def size(count: int) -> str:
    """Return a number of bytes for people."""
    for unit, limit in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= limit:
            return f"{count / limit:.1f} {unit}"
    return f"{count} bytes"
