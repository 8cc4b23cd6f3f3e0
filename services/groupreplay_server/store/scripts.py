"""Loads the Lua scripts, one per atomic operation, and calls them by the names of their parameters.

A script's header is its signature: lines `local name = ARGV[n]`, and lines `-- repeated: a, b` for a tail of
records. Calling it with a missing or unknown name is a TypeError.
"""

import hashlib
import logging
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from groupreplay import tracing
from groupreplay.table_config import Durability
from groupreplay_server.store.durability import Command

if TYPE_CHECKING:
    from groupreplay_server.store.backend import Backend

Value = str | bytes | int | float
SLOW_S = 1.0
"""A script that took longer, queue and network included, is logged as a warning."""

_log = logging.getLogger(__name__)

_PARAMETER = re.compile(r"^local (\w+) = (?:tonumber\()?ARGV\[(\d+)\]", re.MULTILINE)
_REPEATED = re.compile(r"^-- repeated: (.+)$", re.MULTILINE)
_SHARED = ("now_ms", "topic", "seed")
_SHARED_FILES = ("prelude", "ratios", "replay", "partials", "leases", "restores")
"""What stands before every script over a table, in this order."""
STAND_ALONE = frozenset({"advance_policy", "rewind_policy", "set_quota", "add_environment", "reset_atropos"})
"""Scripts over a run, or over what the Atropos API remembers, rather than over a table: nothing stands before them."""


@dataclass(frozen=True, slots=True)
class Script:
    """One Lua script with its signature."""

    name: str
    source: str
    sha: str
    parameters: tuple[str, ...]
    repeated: tuple[str, ...]

    def arguments(self, values: Mapping[str, Value], records: Iterable[Sequence[Value]]) -> list[Value]:
        """Return ARGV for these named values and repeated records.

        Raises:
            TypeError: a name is missing or unknown, or a record has another length than the script's.
        """
        if set(values) != set(self.parameters):
            raise TypeError(f"script {self.name} takes {self.parameters}, not {tuple(values)}")
        argv = [values[name] for name in self.parameters]
        for record in records:
            if len(record) != len(self.repeated):
                raise TypeError(f"script {self.name} repeats {self.repeated}, not {len(record)} values")
            argv.extend(record)
        return argv

    def by_hash(self, keys: Sequence[str], arguments: Sequence[Value]) -> Command:
        """Return the command that runs it if Redis knows it."""
        return ("EVALSHA", self.sha, len(keys), *keys, *arguments)

    def in_full(self, keys: Sequence[str], arguments: Sequence[Value]) -> Command:
        """Return the command that runs it, and makes it known."""
        return ("EVAL", self.source, len(keys), *keys, *arguments)


@cache
def load_script(name: str) -> Script:
    """Return the script lua/<name>.lua, with what it shares before it."""
    folder = files("groupreplay_server.store").joinpath("lua")
    own = folder.joinpath(f"{name}.lua").read_text()
    found = sorted((int(position), parameter) for parameter, position in _PARAMETER.findall(own))
    if name in STAND_ALONE:
        source = own
        parameters = tuple(parameter for _, parameter in found)
    else:
        source = "".join(folder.joinpath(f"{file}.lua").read_text() for file in _SHARED_FILES) + own
        parameters = _SHARED + tuple(parameter for _, parameter in found)
    repeated = ",".join(_REPEATED.findall(own))
    return Script(
        name=name,
        source=source,
        sha=hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest(),
        parameters=parameters,
        repeated=tuple(part.strip() for part in repeated.split(",") if part.strip()),
    )


def script_names() -> list[str]:
    """Return the names of all scripts."""
    folder = files("groupreplay_server.store").joinpath("lua")
    return sorted({entry.name.removesuffix(".lua") for entry in folder.iterdir()} - set(_SHARED_FILES))


async def call_script(
    redis: "Backend",
    name: str,
    keys: Sequence[str],
    values: Mapping[str, Value],
    records: Iterable[Sequence[Value]] = (),
    *,
    payloads: Mapping[str, bytes | memoryview] | None = None,
    durability: Durability = Durability.MEMORY,
) -> Any:
    """Run a script atomically and return its answer.

    Payloads are written before it; it does not run when Redis refuses one of them. With a durability other than memory
    the answer comes once everything that the script wrote, or found written, is that durable.
    """
    script = load_script(name)
    argv = script.arguments(values, records)
    started = time.perf_counter()
    try:
        with tracing.part(f"script {name}"):
            return await redis.run_script(script, keys, argv, payloads=payloads or {}, durability=durability)
    finally:
        _note(name, time.perf_counter() - started, values, durability)


def _note(name: str, took_s: float, values: Mapping[str, Value], durability: Durability) -> None:
    """Log a script under the request id of its call; slow ones in any case, unless they waited for durability."""
    slow = took_s > SLOW_S and durability is Durability.MEMORY
    if slow or _log.isEnabledFor(logging.DEBUG):
        fields = {"script": name, "seconds": round(took_s, 6), "topic": values.get("topic", "")}
        level = logging.WARNING if slow else logging.DEBUG
        _log.log(level, "script %s took %.3f s", name, took_s, extra=fields)
