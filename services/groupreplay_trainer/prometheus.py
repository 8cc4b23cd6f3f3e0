"""The trainer's metrics for Prometheus."""

import logging
import threading
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Final, Self
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily

from groupreplay_trainer.alarms import ALARMS
from groupreplay_trainer.metrics import ALARM, MEASURES, PREFIX, UNDONE, Kind, Measure, value_of
from groupreplay_trainer.watching import Undoing

_BUCKETS_S: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500)
_log = logging.getLogger(__name__)


class PrometheusEndpoint:
    """Answers /metrics while it is open."""

    def __init__(self, listen: str) -> None:
        """Use host:port, where port 0 takes a free one."""
        self._listen = listen
        self._registry = CollectorRegistry()
        self._newest: Mapping[str, Any] = {}
        self._counters = {it.key: self._counter(it) for it in MEASURES if it.kind is Kind.COUNTER}
        self._histograms = {it.key: self._histogram(it) for it in MEASURES if it.kind is Kind.HISTOGRAM}
        self._undone = self._counter(UNDONE)
        self._registry.register(self)
        self._server: WSGIServer | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Start to answer, in a thread.

        Raises:
            OSError: the address is in use, or not of this machine.
        """
        host, _, port = self._listen.rpartition(":")
        self._server, self._thread = start_http_server(int(port), host, self._registry)
        _log.info("metrics at http://%s/metrics", self.address)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop."""
        assert self._server is not None
        assert self._thread is not None
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def address(self) -> str:
        """host:port where it answers."""
        assert self._server is not None
        return f"{self._listen.rpartition(':')[0]}:{self._server.server_port}"

    def resumed(self, step: int, newest: Mapping[str, Any] | None) -> None:
        """Show the newest finished step; it does not count, because an earlier start of the trainer made it."""
        self._newest = newest or {"step": step}

    def finished(self, record: Mapping[str, Any]) -> None:
        """Show and count a step."""
        self._newest = record
        for measure in MEASURES:
            value = value_of(record, measure)
            if value is None:
                continue
            if measure.kind is Kind.COUNTER:
                self._counters[measure.key].inc(value)
            elif measure.kind is Kind.HISTOGRAM:
                self._histograms[measure.key].observe(value)

    def undone(self, reason: Undoing) -> None:
        """Count it."""
        self._undone.labels(reason).inc()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges that the newest step has a value for; for the client library."""
        families: dict[str, GaugeMetricFamily] = {}
        for measure in MEASURES:
            value = value_of(self._newest, measure)
            if measure.kind is Kind.GAUGE and value is not None:
                family = families.setdefault(measure.name, _family(measure))
                family.add_metric(tuple(measure.labels.values()), value)
        yield from families.values()
        alarms, on = _family(ALARM), self._newest.get(ALARM.key, ())
        for alarm in ALARMS:
            alarms.add_metric((alarm.name,), alarm.name in on)
        yield alarms

    def _counter(self, measure: Measure) -> Counter:
        return Counter(PREFIX + measure.name, measure.meaning, tuple(measure.labels), registry=self._registry)

    def _histogram(self, measure: Measure) -> Histogram:
        return Histogram(PREFIX + measure.name, measure.meaning, registry=self._registry, buckets=_BUCKETS_S)


def _family(measure: Measure) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + measure.name, measure.meaning, labels=tuple(measure.labels))
