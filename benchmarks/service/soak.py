"""`make soak`: mixed load for a long time, and whether anything grows."""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

import numpy as np
from rich.console import Console

from groupreplay import Fill, RateLimit, Sampler, TableConfig
from groupreplay_admin.load.crew import Crew
from groupreplay_admin.load.jobs import Draw, InsertEach, InsertStream, Where
from groupreplay_admin.load.tally import Tally
from groupreplay_demo.children import INTERRUPTS
from groupreplay_server.store.keys import TableKeys
from service import usage
from service.deployment import Deployment

_PRODUCERS: Final = 2
_WAIT_S: Final = 2.0
_FILLING_S: Final = 60.0
_REMEMBERING: Final = ("seen", "ended", "steps", "records", "history")
"""Keys that grow by design: for a day, groups that left and leases that ended, with their steps and records; and the
history, until it has its 10,000 steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What there is after a while of load, in a table that has long been full."""

    at_s: float
    server_mb: float
    """Resident."""
    redis_mb: float
    """In use, without what is remembered."""
    server_files: int
    redis_keys: int
    """In all of Redis; payloads that wait to be removed are among them."""
    index_entries: int
    """Of all the table's keys together, without what is remembered."""
    remembered: int
    """Ids of groups that left and of leases that ended, kept for a day, so that a late retry changes nothing; and the
    steps of the history."""
    insert_p50_ms: float
    draw_p50_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """How much one thing has grown from the first third of the looks to the last."""

    what: str
    before: float
    """Median of the first third."""
    after: float
    allowed: float
    """Most that `after` may be."""

    @property
    def grew(self) -> bool:
        """Whether that is too much."""
        return self.after > self.allowed


_ALLOWED: Final = {
    # Share of what was there, and what there may be in addition: allocators breathe, and so do busy machines.
    "server_mb": (1.10, 8.0),
    "redis_mb": (1.10, 8.0),
    "server_files": (1.0, 8.0),
    "redis_keys": (1.05, 64.0),
    "index_entries": (1.05, 256.0),
    "insert_p50_ms": (1.5, 5.0),
    "draw_p50_ms": (1.5, 20.0),
}


def growth_of(looks: Sequence[Look]) -> list[Growth]:
    """Compare the first third of the looks with the last, without those while caches and allocators fill.

    Those are the very first, and all of the first minute, or of the first quarter of a short soak.

    Raises:
        ValueError: fewer than four looks.
    """
    if len(looks) < 4:
        raise ValueError(f"{len(looks)} looks are too few to see growth; it takes 4: raise --minutes or lower --every")
    filled_s = min(_FILLING_S, looks[-1].at_s / 4)
    settled = looks[max(1, sum(look.at_s < filled_s for look in looks)) :]
    third = max(1, len(settled) // 3)
    found = []
    for name, (factor, more) in _ALLOWED.items():
        before = float(np.median([getattr(look, name) for look in settled[:third]]))
        after = float(np.median([getattr(look, name) for look in settled[-third:]]))
        found.append(Growth(what=name, before=before, after=after, allowed=factor * before + more))
    return found


def main() -> int:
    """Run the soak from the command line; 1 where something grew."""
    arguments = parse_arguments()
    for number in INTERRUPTS:
        signal.signal(number, _interrupt)
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    looks: list[Look] = []
    try:
        with (
            tempfile.TemporaryDirectory(prefix="groupreplay-soak-") as folder,
            Deployment(Path(folder), "memory") as service,
            Crew(_PRODUCERS + 2) as crew,
        ):
            _soak(service, crew, arguments, looks, console)
    except KeyboardInterrupt:
        console.print("interrupted")
        if len(looks) < 4:
            return 130
    return report(growth_of(looks), console)


def report(growth: Sequence[Growth], console: Console) -> int:
    """Print what has grown; return 1 where something did."""
    for each in growth:
        verdict = "GREW" if each.grew else "steady"
        console.print(f"{each.what:14} {each.before:12.1f} -> {each.after:12.1f}   {verdict}", markup=False)
    return int(any(each.grew for each in growth))


def _soak(service: Deployment, crew: Crew, arguments: argparse.Namespace, looks: list[Look], console: Console) -> None:
    config = TableConfig(
        fill=Fill.SAMPLE,
        sampler=Sampler.PRIORITIZED,
        replay_capacity=arguments.groups,
        max_times_sampled=8,
        lineage_steps=100,
        rate_limit=RateLimit.of(2.0, min_size_to_sample=32, error_buffer=512.0),
    )
    where = service.empty("soak", config)
    started = time.monotonic()
    while time.monotonic() - started < 60 * arguments.minutes:
        number = len(looks)
        inserted, drawn = _load(crew, where, shape=arguments.shape, seconds=arguments.every, number=number)
        looks.append(_look(service, where, time.monotonic() - started, inserted, drawn))
        console.print(_line(looks[-1]), markup=False)


def _load(crew: Crew, where: Where, *, shape: str, seconds: float, number: int) -> tuple[Tally, Tally]:
    """Insert and draw for a while; return the tallies of the producer that waits for each ack, and of the trainer."""
    streams = [
        InsertStream(where=where, seconds=seconds, shape=shape, number=producer, ineffective=0.5)
        for producer in range(_PRODUCERS)
    ]
    waiting = InsertEach(where=where, seconds=seconds, shape=shape, number=_PRODUCERS, ineffective=0.5)
    trainer = Draw(
        where=where, seconds=20 * seconds, call="sample", batch_size=32, feedback=True, number=number, wait_s=_WAIT_S
    )
    *_, inserted, drawn = crew.run([*streams, waiting, trainer])
    return inserted, drawn


def _look(service: Deployment, where: Where, at_s: float, inserted: Tally, drawn: Tally) -> Look:
    keys = TableKeys(where.run, where.table)
    remembering = {keys.key(name) for name in _REMEMBERING}
    sizes = {key: service.redis.size_of(key) for key in keys.all()}
    remembered_bytes = sum(sizes[key][1] for key in remembering)
    return Look(
        at_s=at_s,
        server_mb=usage.resident_bytes(service.pid) / 1e6,
        redis_mb=(service.redis.info("memory")["used_memory"] - remembered_bytes) / 1e6,
        server_files=usage.open_files(service.pid),
        redis_keys=service.redis.client.dbsize(),
        index_entries=sum(count for key, (count, _) in sizes.items() if key not in remembering),
        remembered=sum(sizes[key][0] for key in remembering),
        insert_p50_ms=inserted.latency_ms(50) or 0.0,
        draw_p50_ms=drawn.latency_ms(50) or 0.0,
    )


def _line(look: Look) -> str:
    parts = (
        f"{look.at_s:6.0f} s",
        f"server {look.server_mb:.0f} MB, {look.server_files} files",
        f"Redis {look.redis_mb:.0f} MB, {look.redis_keys} keys, {look.index_entries} entries",
        f"{look.remembered} remembered",
        f"p50 insert {look.insert_p50_ms:.1f} ms, draw {look.draw_p50_ms:.1f} ms",
    )
    return "   ".join(parts)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0, help="how long (default: 20)")
    parser.add_argument("--every", type=float, default=15.0, help="seconds of load between two looks (default: 15)")
    parser.add_argument("--groups", type=int, default=512, help="replay capacity of the table (default: 512)")
    parser.add_argument("--shape", default="S", help="of the groups (default: S)")
    arguments = parser.parse_args()
    if min(arguments.minutes, arguments.every, arguments.groups) <= 0:
        parser.error("--minutes, --every and --groups must be above 0")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
