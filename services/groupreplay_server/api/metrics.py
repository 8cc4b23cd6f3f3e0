"""What Prometheus scrapes. Labels are bounded: methods, reasons, and the tables that exist."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.requests import ClientDisconnect

from groupreplay.errors import GroupReplayError
from groupreplay.types import Table

_LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_GAUGES = {
    "fresh": "Groups waiting for NextBatch",
    "fresh_effective": "Groups waiting for NextBatch that have reward variance",
    "replay": "Groups that wait to be used again",
    "leased": "Fresh groups in leases",
    "leases": "Leases neither committed nor ended",
    "payload_bytes": "Payload bytes of the groups in the table",
    "policy_version": "Policy clock of the run",
    "missing": "Groups that NextBatch calls wait for",
}


class Metrics:
    """The service's registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._seconds = Histogram(
            "groupreplay_call_seconds",
            "Duration of calls, streams to their end, by method and ErrorReason (OK = none)",
            ["method", "reason"],
            buckets=_LATENCY_BUCKETS,
            registry=self.registry,
        )
        self._tables = {
            name: Gauge(f"groupreplay_table_{name}", text, ["run", "table"], registry=self.registry)
            for name, text in _GAUGES.items()
        }
        self._events = Gauge(
            "groupreplay_table_events_count",
            "Monotonic counts of a table, by event (docs/reference/counters.md)",
            ["run", "table", "event"],
            registry=self.registry,
        )
        self._payload = Counter(
            "groupreplay_payload_bytes", "Payload bytes in and out", ["direction"], registry=self.registry
        )

    @contextmanager
    def call(self, method: str) -> Iterator[None]:
        """Observe one call."""
        started, reason = time.perf_counter(), "OK"
        try:
            yield
        except GroupReplayError as error:
            reason = error.reason
            raise
        except ClientDisconnect:
            reason = "CANCELLED"
            raise
        except BaseException as error:
            reason = "CANCELLED" if not isinstance(error, Exception) else "INTERNAL"
            raise
        finally:
            self._seconds.labels(method, reason).observe(time.perf_counter() - started)

    def payload(self, direction: str, size: int) -> None:
        """Count payload bytes; direction is `in` or `out`."""
        self._payload.labels(direction).inc(size)

    def exposition(self, tables: Sequence[Table]) -> bytes:
        """Return the text that Prometheus reads, with these tables as they are now."""
        self._events.clear()
        for name, gauge in self._tables.items():
            gauge.clear()
            for table in tables:
                gauge.labels(table.run, table.table).set(getattr(table, name))
        for table in tables:
            for event, value in table.counters.items():
                self._events.labels(table.run, table.table, event).set(value)
        return generate_latest(self.registry)
