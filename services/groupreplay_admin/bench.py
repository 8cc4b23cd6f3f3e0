"""`groupreplay bench`: how fast is this deployment."""

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Annotated, Any, Final

from cyclopts import Parameter
from rich.table import Table as Grid

from groupreplay import Fill, InvalidRequestError, TableConfig
from groupreplay.groups import check_name
from groupreplay_admin.connection import ServiceSettings, open_client
from groupreplay_admin.load.crew import ClientFailedError, Crew, Job
from groupreplay_admin.load.jobs import Draw, InsertEach, InsertStream, Where
from groupreplay_admin.load.shapes import SHAPES, Shape
from groupreplay_admin.load.tally import Tally, together
from groupreplay_admin.output import console, short, to_json
from groupreplay_admin.statuses import Status

_MOST_PRODUCERS: Final = 256
_CLEAN_UP_S: Final = 60.0


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSettings(ServiceSettings):
    """What is moved, and for how long.

    Raises:
        InvalidRequestError: a value is out of its range.
    """

    shapes: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = ("S", "M", "D")
    """Groups to move: S = 8 responses of about 512 tokens, M = 8 of 1,280, D = 16 of 4,800, L = 16 of 32k, A = 16 of
    131k, tiny = 2 of 8."""
    producers: int = 4
    """Client processes that stream at once."""
    seconds: float = 5.0
    """How long each measurement goes on."""
    batch_size: int = 32
    """Groups in a batch that is drawn."""
    max_mb: int = 1024
    """Payload, in MB, that a measurement may put into the service's Redis."""
    run: str = "groupreplay-bench"
    """Training run of its own; its tables are emptied at the end."""
    json: bool = False
    """Print a JSON list of measurements, for programs."""

    def __post_init__(self) -> None:
        check_name(self.run, "run")
        if not self.shapes or (strange := [name for name in self.shapes if name not in SHAPES]):
            raise InvalidRequestError(f"--shapes {' '.join(strange)}: there are {' '.join(SHAPES)}")
        for name, low, high in (
            ("producers", 1, _MOST_PRODUCERS),
            ("seconds", 0.1, 3600),
            ("batch_size", 1, 4096),
            ("max_mb", 1, 2**20),
        ):
            if not low <= getattr(self, name) <= high:
                raise InvalidRequestError(f"{name} {getattr(self, name)} is not in {low} to {high}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """How fast one kind of call was on groups of one shape; None where calls are not timed one by one."""

    shape: str
    """Name of the groups' shape."""
    call: str
    """What was called, in words."""
    clients: int
    """Processes that called it at once."""
    groups: int
    """Groups moved."""
    seconds: float
    """From the start to the last answer."""
    groups_per_s: float
    """Over all clients."""
    mb_per_s: float
    """Payload, in millions of bytes a second."""
    p50_ms: float | None
    """Median latency of a call, until its answer is whole."""
    p99_ms: float | None
    """99th percentile."""
    p999_ms: float | None
    """99.9th percentile."""


_DEFAULTS = BenchSettings()


def bench(settings: BenchSettings = _DEFAULTS) -> int:
    """Measure how fast a running service takes groups and gives batches, from this machine.

    It makes a run of its own and empties it at the end; other runs only feel the load. For each shape: one client that
    waits for each acknowledgement, producers that stream, and a trainer that takes batches and commits them.
    """
    measurements: list[Measurement] = []
    try:
        with _interruptible(), ExitStack() as tables:
            for name in settings.shapes:
                tables.enter_context(_own_table(settings, name))
            with Crew(settings.producers) as crew:  # ends before the tables are emptied
                for name in settings.shapes:
                    measurements += _measure(crew, settings, SHAPES[name])
    except ClientFailedError as error:
        raise OSError(str(error)) from error
    except KeyboardInterrupt:
        print("groupreplay bench: interrupted; its tables are empty again", file=sys.stderr)
        return Status.FAILED
    print(to_json(measurements)) if settings.json else _show(measurements)
    return 0


@contextmanager
def _own_table(settings: BenchSettings, shape: str) -> Iterator[None]:
    """Make the table of a shape for a block, and empty it at the end, whatever happened."""
    with open_client(settings) as client:
        config = TableConfig(fill=Fill.KEEP, fresh_capacity=2**22)
        found = client.create_table(run=settings.run, table=shape, config=config)
    if groups := found.fresh + found.leased + found.replay:
        raise InvalidRequestError(
            f"table {settings.run}/{shape} holds {groups} groups: another benchmark runs, or one was killed; wait for "
            "it, or pass another --run"
        )
    try:
        yield
    finally:
        _empty(settings, shape)


def _empty(settings: BenchSettings, shape: str) -> None:
    with open_client(settings, timeout_s=_CLEAN_UP_S) as client:
        client.reset_table(run=settings.run, table=shape)


def _measure(crew: Crew, settings: BenchSettings, shape: Shape) -> Iterator[Measurement]:
    where = Where(server=settings.server, run=settings.run, table=shape.name, login=settings.login())
    asked: dict[str, Any] = {"where": where, "seconds": settings.seconds, "timeout_s": settings.timeout_s}
    most = max(settings.producers, settings.max_mb * 10**6 // shape.mean_bytes)
    one_by_one = InsertEach(**asked, shape=shape.name, max_groups=max(1, most // 4))
    streams = [
        InsertStream(**asked, shape=shape.name, number=number, max_groups=max(1, most * 3 // 4 // settings.producers))
        for number in range(settings.producers)
    ]
    drawing = Draw(**asked, call="next_batch", batch_size=settings.batch_size)
    yield _measurement(shape, "insert, acknowledged one by one", crew, [one_by_one])
    yield _measurement(shape, "insert, streamed", crew, streams)
    yield _measurement(shape, f"next_batch of {settings.batch_size} and commit", crew, [drawing])
    _empty(settings, shape.name)


def _measurement(shape: Shape, call: str, crew: Crew, jobs: Sequence[Job]) -> Measurement:
    tally: Tally = together(crew.run(jobs))
    return Measurement(
        shape=shape.name,
        call=call,
        clients=len(jobs),
        groups=tally.groups,
        seconds=round(tally.seconds, 3),
        groups_per_s=round(tally.groups_per_s, 2),
        mb_per_s=round(tally.mb_per_s, 3),
        p50_ms=tally.latency_ms(50),
        p99_ms=tally.latency_ms(99),
        p999_ms=tally.latency_ms(99.9),
    )


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let a polite kill end a block as Ctrl-C does, so that it cleans up."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _show(measurements: Sequence[Measurement]) -> None:
    grid = Grid(box=None, pad_edge=False)
    grid.add_column("shape")
    grid.add_column("call")
    for heading in ("clients", "groups/s", "MB/s", "p50 ms", "p99 ms", "p99.9 ms"):
        grid.add_column(heading, justify="right")
    for it in measurements:
        latencies = (it.p50_ms, it.p99_ms, it.p999_ms)
        grid.add_row(
            it.shape,
            it.call,
            str(it.clients),
            short(it.groups_per_s),
            short(it.mb_per_s),
            *("" if latency is None else short(latency) for latency in latencies),
        )
    console().print(grid)
