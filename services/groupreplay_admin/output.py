"""What commands print: text for people, on which nothing that others wrote can play tricks, or JSON for programs."""

import json
from dataclasses import asdict, is_dataclass
from typing import Any

from rich.console import Console

_UNBROKEN = 10_000
"""Columns of what is no terminal: lines for other programs are not to be broken."""


def to_json(value: Any, *, indent: int | None = 2) -> str:
    """Return dataclasses, lists and dicts of them as JSON; without indent on one line."""
    return json.dumps(value, indent=indent, default=_plain, allow_nan=False)


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def clean(text: str) -> str:
    """Return text with control characters spelt out: a response or a name could steer the terminal otherwise."""
    return "".join(it if it.isprintable() or it in "\n\t" else it.encode("unicode_escape").decode() for it in text)


def console() -> Console:
    """Return where people read; lines are as long as they are where that is no terminal."""
    made = Console(highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made.width = _UNBROKEN
    return made


def short(number: float) -> str:
    """Return a number in at most five characters: 7, 0.25, 12.3k, 4.5M."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * size:
            scaled = number / size
            return f"{scaled:.1f}{unit}" if scaled < 99.95 else f"{scaled:.0f}{unit}"
    if number >= 99.5 or number == int(number):
        return f"{number:.0f}"
    return f"{number:.3g}" if number >= 1 else f"{number:.2f}"


def age(seconds: float) -> str:
    """Return a duration in at most five characters: 12s, 5m, 3h, 4d."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"
