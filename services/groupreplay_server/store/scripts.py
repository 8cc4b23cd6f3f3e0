"""Loads the Lua scripts, one per atomic operation, and calls them by the names of their parameters.

A script's header is its signature: lines `local name = ARGV[n]`, and at most one `-- repeated: a, b` for a tail of
records. Calling it with a missing or unknown name is a TypeError.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import NoScriptError, ResponseError

Value = str | bytes | int | float

_PARAMETER = re.compile(r"^local (\w+) = (?:tonumber\()?ARGV\[(\d+)\]", re.MULTILINE)
_REPEATED = re.compile(r"^-- repeated: (.+)$", re.MULTILINE)
_SHARED = ("now_ms", "topic", "seed")
_SHARED_FILES = ("prelude", "replay", "leases")
"""What stands before every script over a table, in this order."""
RUN_SCRIPTS = frozenset({"advance_policy", "rewind_policy", "set_quota"})
"""Scripts over a run rather than a table: they stand alone."""


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


@cache
def load_script(name: str) -> Script:
    """Return the script lua/<name>.lua, with what it shares before it."""
    folder = files("groupreplay_server.store").joinpath("lua")
    own = folder.joinpath(f"{name}.lua").read_text()
    found = sorted((int(position), parameter) for parameter, position in _PARAMETER.findall(own))
    if name in RUN_SCRIPTS:
        source = own
        parameters = tuple(parameter for _, parameter in found)
    else:
        source = "".join(folder.joinpath(f"{file}.lua").read_text() for file in _SHARED_FILES) + own
        parameters = _SHARED + tuple(parameter for _, parameter in found)
    repeated = _REPEATED.search(own)
    return Script(
        name=name,
        source=source,
        sha=hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest(),
        parameters=parameters,
        repeated=tuple(part.strip() for part in repeated[1].split(",")) if repeated else (),
    )


def script_names() -> list[str]:
    """Return the names of all scripts."""
    folder = files("groupreplay_server.store").joinpath("lua")
    return sorted({entry.name.removesuffix(".lua") for entry in folder.iterdir()} - set(_SHARED_FILES))


async def call_script(
    redis: Redis,
    name: str,
    keys: Sequence[str],
    values: Mapping[str, Value],
    records: Iterable[Sequence[Value]] = (),
    *,
    pipeline: Pipeline | None = None,
) -> Any:
    """Run a script atomically and return its answer.

    With a pipeline, the commands queued in it go out in the same round trip, before the script; in a transaction the
    script does not run when Redis refuses one of them.
    """
    script = load_script(name)
    argv = script.arguments(values, records)
    try:
        if pipeline is None:
            return await redis.evalsha(script.sha, len(keys), *keys, *argv)
        pipeline.evalsha(script.sha, len(keys), *keys, *argv)
        # Raised here rather than by execute(), which would put words of its own before the script's.
        results = await _execute(pipeline)
        for result in results:
            if isinstance(result, Exception):
                raise result
        return results[-1]
    except NoScriptError:
        return await redis.eval(script.source, len(keys), *keys, *argv)


async def _execute(pipeline: Pipeline) -> list[Any]:
    try:
        return await pipeline.execute(raise_on_error=False)
    except ResponseError as error:  # a transaction that Redis refused: redis-py says with which bytes, payload and all
        said = str(error).rpartition(" of pipeline caused error: ")[2]
        error.args = (said.removeprefix("(").removesuffix(",)"),)
        raise
