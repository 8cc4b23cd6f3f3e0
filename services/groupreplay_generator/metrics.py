"""What a generator reports to Prometheus, in one list; the reference is made from it."""

import logging
import threading
import time
from collections import Counter as Tally
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server

from groupreplay_generator.scoring.verdict import RewardFailure

_log = logging.getLogger(__name__)
_BUCKETS_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One metric."""

    name: str
    """In Prometheus."""
    kind: str
    """gauge, counter or histogram."""
    meaning: str
    labels: tuple[str, ...] = ()


def _measure(kind: str, name: str, meaning: str, *labels: str) -> Measure:
    return Measure(name=f"groupreplay_generator_{name}", kind=kind, meaning=meaning, labels=labels)


GROUPS: Final = _measure("counter", "groups_total", "Groups by outcome: inserted, duplicate, refused", "outcome")
ROLLOUTS: Final = _measure("counter", "rollouts_total", "Rollouts sampled and scored")
TOKENS: Final = _measure("counter", "response_tokens_total", "Tokens of responses sampled")
REWARD: Final = _measure("gauge", "reward_mean", "Mean reward of the groups inserted last")
FAILURES: Final = _measure("counter", "reward_failures_total", "Responses whose verifier failed, by cause", "cause")
UNFIT: Final = _measure("counter", "unfit_prompts_total", "Prompts left out, as too long for the policy")
AWAY: Final = _measure("counter", "engine_away_total", "Times that the engine did not answer, and was tried again")
VERSION: Final = _measure("gauge", "policy_version", "Policy version that it samples with")
INSERTED_AT: Final = _measure(
    "gauge", "last_insert_timestamp_seconds", "When groups were last inserted, seconds since 1970; 0 = not yet"
)
STAGE: Final = _measure(
    "histogram",
    "stage_seconds",
    "Duration of each stage of a go: admission (waits until groups are wanted), sampling, scoring, inserting",
    "stage",
)
MEASURES: Final = (GROUPS, ROLLOUTS, TOKENS, REWARD, FAILURES, UNFIT, AWAY, VERSION, INSERTED_AT, STAGE)


class GeneratorMetrics:
    """Counts what a generator does; answers /metrics while it is open, if it has an address."""

    def __init__(self, listen: str | None = None) -> None:
        """Use host:port, where port 0 takes a free one; None = serve nobody."""
        self._listen = listen
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self.groups = self._counter(GROUPS)
        self.rollouts = self._counter(ROLLOUTS)
        self.tokens = self._counter(TOKENS)
        self.reward = self._gauge(REWARD)
        self._failures = self._counter(FAILURES)
        self._failed: Tally[RewardFailure] = Tally()
        self.unfit = self._counter(UNFIT)
        self.away = self._counter(AWAY)
        self.version = self._gauge(VERSION)
        self.inserted_at = self._gauge(INSERTED_AT)
        self._stages = self._histogram(STAGE)
        self._server: WSGIServer | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Start to answer, in a thread.

        Raises:
            OSError: the address is in use, or not of this machine.
        """
        if self._listen is not None:
            host, _, port = self._listen.rpartition(":")
            self._server, self._thread = start_http_server(int(port), host, self._registry)
            _log.info("metrics at http://%s/metrics", self.address)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    @property
    def address(self) -> str:
        """host:port where it answers."""
        assert self._server is not None
        assert self._listen is not None
        return f"{self._listen.rpartition(':')[0]}:{self._server.server_port}"

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Observe how long a stage takes."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._stages.labels(name).observe(time.perf_counter() - started)

    def failed(self, so_far: Mapping[RewardFailure, int]) -> None:
        """Take note of how many rewards have failed, by cause."""
        for cause, count in so_far.items():
            self._failures.labels(cause.value).inc(count - self._failed[cause])
        self._failed = Tally(so_far)

    def _counter(self, measure: Measure) -> Counter:
        return Counter(measure.name, measure.meaning, measure.labels, registry=self._registry)

    def _gauge(self, measure: Measure) -> Gauge:
        return Gauge(measure.name, measure.meaning, measure.labels, registry=self._registry)

    def _histogram(self, measure: Measure) -> Histogram:
        return Histogram(measure.name, measure.meaning, measure.labels, registry=self._registry, buckets=_BUCKETS_S)
