"""What a trial leaves: numbers by name, and a line of JSON for each round of a scenario."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from groupreplay_admin.load.tally import Tally
from line_file import append_line, whole_lines
from service.deployment import Watch

Measured = Mapping[str, float]
"""Numbers of one subject in one trial, by name with its unit."""
_PERCENTILES: Final = {"p50_ms": 50.0, "p99_ms": 99.0, "p999_ms": 99.9}


def measured(tally: Tally, watch: Watch | None = None) -> Measured:
    """Return the numbers of a tally, with what the service used meanwhile where it was watched."""
    numbers = {"groups_per_s": tally.groups_per_s, "mb_per_s": tally.mb_per_s, "groups": float(tally.groups)}
    for name, percentile in _PERCENTILES.items():
        if (latency := tally.latency_ms(percentile)) is not None:
            numbers[name] = latency
    gigabytes = tally.payload_bytes / 1e9
    if watch is not None and gigabytes > 0:
        numbers["server_cpu_s_per_gb"] = watch.server_cpu_s / gigabytes
        numbers["redis_cpu_s_per_gb"] = watch.redis_cpu_s / gigabytes
        numbers["client_cpu_s_per_gb"] = tally.cpu_s / gigabytes
        numbers["server_peak_mb"] = watch.peak_above_idle / 1e6
    return numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """All subjects of a scenario, measured one after the other."""

    scenario: str
    number: int
    measured: Mapping[str, Measured]
    """By subject."""
    load: float
    """Load average of the last minute, at its end."""

    @property
    def key(self) -> tuple[str, int]:
        """Names the round, and its line, for ever."""
        return self.scenario, self.number


def read_rounds(path: Path) -> dict[tuple[str, int], Round]:
    """Return the rounds of a file."""
    return {found.key: found for found in (Round(**json.loads(line)) for line in whole_lines(path))}


def append_round(path: Path, finished: Round) -> None:
    """Add a round to a file."""
    append_line(path, json.dumps(asdict(finished)))


def by_scenario(rounds: Iterable[Round]) -> dict[str, list[Round]]:
    """Return the rounds of each scenario, in the order in which they were run."""
    found: dict[str, list[Round]] = {}
    for each in rounds:
        found.setdefault(each.scenario, []).append(each)
    return found
