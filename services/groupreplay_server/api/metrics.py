"""What Prometheus scrapes. Labels are bounded: methods, reasons, so many tables, and so many tasks of each."""

import asyncio
import time
from collections import Counter as Tally
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.requests import ClientDisconnect

from groupreplay import __version__
from groupreplay.errors import GroupReplayError
from groupreplay.groups import now_ms
from groupreplay_server.api.metric_families import (
    BUILD,
    CACHE,
    CALLS,
    CERTIFICATE,
    PAYLOAD,
    PREFIX,
    READS,
    REDIS_FAMILIES,
    REDIS_UP,
    RUN_FAMILIES,
    RUNNING,
    STALENESS,
    TABLE_FAMILIES,
    TABLES_LEFT_OUT,
    TASK_GONE,
    TASK_INSERTED,
    Family,
    Kind,
)
from groupreplay_server.certificates import Certificates
from groupreplay_server.measuring import MAX_TABLES, Reading
from groupreplay_server.store.payload_cache import PayloadCache
from groupreplay_server.store.records import LeasedBatch, TableReading

_LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_STALENESS_BUCKETS = (0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 100)
MAX_TASKS = 20
OTHER = "(other)"
UNKNOWN = "unknown"
"""Method of all calls that are none of ours: strangers can think of any number of names."""


class Metrics:
    """The service's registry."""

    def __init__(self, cache: PayloadCache) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._seconds = Histogram(
            PREFIX + CALLS.name, CALLS.meaning, CALLS.labels, buckets=_LATENCY_BUCKETS, registry=self.registry
        )
        self._running = Gauge(PREFIX + RUNNING.name, RUNNING.meaning, RUNNING.labels, registry=self.registry)
        payload = Counter(PREFIX + PAYLOAD.name, PAYLOAD.meaning, PAYLOAD.labels, registry=self.registry)
        self._payload_of = {direction: payload.labels(direction) for direction in ("in", "out")}
        self._staleness = Histogram(
            PREFIX + STALENESS.name,
            STALENESS.meaning,
            STALENESS.labels,
            buckets=_STALENESS_BUCKETS,
            registry=self.registry,
        )
        self._certificate = Gauge(
            PREFIX + CERTIFICATE.name, CERTIFICATE.meaning, CERTIFICATE.labels, registry=self.registry
        )
        self._delivering: set[tuple[str, str]] = set()
        Gauge(PREFIX + BUILD.name, BUILD.meaning, BUILD.labels, registry=self.registry).labels(__version__).set(1)
        self._reading = ReadingCollector(cache)
        self._page = b""
        self._one = asyncio.Lock()
        self.registry.register(self._reading)

    @contextmanager
    def call(self, method: str) -> Iterator[None]:
        """Observe one call."""
        started, reason = time.perf_counter(), "OK"
        self._running.labels(method).inc()
        try:
            yield
        except BaseException as error:
            reason = outcome_of(error)
            raise
        finally:
            self._running.labels(method).dec()
            self._seconds.labels(method, reason).observe(time.perf_counter() - started)

    def refused(self, method: str, reason: str) -> None:
        """Observe a call that was refused before it began."""
        self._seconds.labels(method, reason).observe(0)

    def payload(self, direction: str, size: int) -> None:
        """Count payload bytes; direction is `in` or `out`."""
        self._payload_of[direction].inc(size)

    def delivered(self, run: str, table: str, batch: LeasedBatch) -> None:
        """Observe the groups of a batch."""
        if (run, table) not in self._delivering:
            if len(self._delivering) >= MAX_TABLES:
                run = table = OTHER
            self._delivering.add((run, table))
        sources = {group.source for group in batch.groups}
        of_source = {source: self._staleness.labels(run, table, source.value) for source in sources}
        for group in batch.groups:
            of_source[group.source].observe(group.staleness)

    def serves(self, certificates: Certificates) -> None:
        """Show from now on how long what both doors show is good."""
        for door in ("grpc", "http"):
            self._certificate.labels(door).set_function(lambda: (certificates.ends_ms() - now_ms()) / 1000)

    async def page(self, reading: Reading) -> bytes:
        """Return the text that Prometheus reads, with what was read of tables and Redis.

        It is made once of each reading, and in a thread: of a hundred tables it takes long enough to hold up calls.
        """
        async with self._one:
            if self._reading.reading is not reading:
                self._reading.reading = reading
                self._page = await asyncio.to_thread(generate_latest, self.registry)
            return self._page


def outcome_of(error: BaseException) -> str:
    """Return how a call ended that an error ended: its ErrorReason, or CANCELLED where the caller went away."""
    if isinstance(error, GroupReplayError):
        return error.reason
    left = isinstance(error, ClientDisconnect) or not isinstance(error, Exception)
    return "CANCELLED" if left else "INTERNAL"


class ReadingCollector:
    """Shows what was read, and nothing of what was there before."""

    def __init__(self, cache: PayloadCache) -> None:
        self._cache = cache
        self.reading = Reading(redis_up=False)
        self._tasks: dict[tuple[str, str], set[str]] = {}

    def collect(self) -> Iterator[Metric]:
        """Yield all families; for the client library."""
        reading = self.reading
        yield _filled(READS, [(("cache",), self._cache.hits), (("redis",), self._cache.misses)])
        yield _filled(CACHE, [((), self._cache.size_bytes)])
        yield _filled(REDIS_UP, [((), reading.redis_up)])
        yield _filled(TABLES_LEFT_OUT, [((), reading.left_out)])
        for redis_family in REDIS_FAMILIES:
            loads = [((load.address,), redis_family.read(load)) for load in reading.loads]
            yield _filled(redis_family, loads, labels=("node",))
        time_ms = now_ms()
        for family in TABLE_FAMILIES:
            yield _filled(
                family,
                [
                    ((it.table.run, it.table.table, *values), value)
                    for it in reading.tables
                    for values, value in family.read(it, time_ms)
                ],
                labels=("run", "table", *family.labels),
            )
        yield from self._by_task(reading.tables)
        yield from _by_run(reading.tables)

    def _by_task(self, tables: tuple[TableReading, ...]) -> Iterator[Metric]:
        """Yield the counts by task; a task that was shown once stays, or its counts would go back."""
        inserted: Tally[tuple[str, ...]] = Tally()
        stale: Tally[tuple[str, ...]] = Tally()
        for table in (it.table for it in tables):
            names = (table.run, table.table)
            for counter, count in table.task_counters.items():
                event, _, task = counter.partition(":")
                if event in {"inserted_effective", "inserted_ineffective"}:
                    effective = str(event == "inserted_effective").lower()
                    inserted[*names, self._shown_task(names, task), effective] += count
                elif event == "gone_stale":
                    stale[*names, self._shown_task(names, task)] += count
        yield _filled(TASK_INSERTED, list(inserted.items()))
        yield _filled(TASK_GONE, list(stale.items()))

    def _shown_task(self, names: tuple[str, str], task: str) -> str:
        shown = self._tasks.setdefault(names, set())
        if task not in shown:
            if len(shown) >= MAX_TASKS:
                return OTHER
            shown.add(task)
        return task


def _by_run(tables: tuple[TableReading, ...]) -> Iterator[Metric]:
    runs = {it.table.run: it for it in tables}
    version, published, rewinds = RUN_FAMILIES
    yield _filled(version, [((run,), it.table.policy_version) for run, it in runs.items()])
    yield _filled(published, [((run,), it.published_at_ms / 1000 or None) for run, it in runs.items()])
    yield _filled(rewinds, [((run,), it.rewinds) for run, it in runs.items()])


def _filled(
    family: Family, samples: Sequence[tuple[tuple[str, ...], float | None]], labels: tuple[str, ...] | None = None
) -> Metric:
    """Return a family with its samples; those without a value are left out."""
    make = CounterMetricFamily if family.kind is Kind.COUNTER else GaugeMetricFamily
    filled = make(PREFIX + family.name, family.meaning, labels=family.labels if labels is None else labels)
    for values, value in samples:
        if value is not None:
            filled.add_metric(values, float(value))
    return filled
