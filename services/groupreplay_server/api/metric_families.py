"""Every metric of the service, in one list: the page that Prometheus scrapes and the reference are made from it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from groupreplay.types import ProducerHealth
from groupreplay_server.diagnosis import health_of
from groupreplay_server.store.records import RedisLoad, TableReading

PREFIX: Final = "groupreplay_"
DEAD_FOR_S: Final = 3600.0
"""A producer that was not heard of for longer has left for good: it is counted no more."""

Sample = tuple[tuple[str, ...], float]
"""Values of the labels beyond those of the source, and the value."""


class Kind(StrEnum):
    """Type of a Prometheus metric."""

    GAUGE = "gauge"
    COUNTER = "counter"
    """Its name in Prometheus ends with _total."""
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One metric."""

    name: str
    """Less the prefix, and less the _total of counters."""
    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """Name in Prometheus."""
        return PREFIX + self.name + ("_total" if self.kind is Kind.COUNTER else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFamily(Family):
    """A metric of a table, with the labels run and table before its own."""

    read: Callable[[TableReading, int], Iterable[Sample]]
    """Takes what was read, and the time in Unix milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisFamily(Family):
    """A metric of a Redis server, with the label node."""

    read: Callable[[RedisLoad], float | None]
    """None = Redis does not say."""


GONE: Final = (
    "ineffective", "trained", "exhausted", "evicted", "stale", "expired", "rewound", "deleted", "reset",
)  # fmt: skip
REFUSED: Final = (
    "stale_policy_version", "future_policy_version", "group_too_large", "table_full", "quota_exceeded", "rate_limited",
)  # fmt: skip
_PARTIAL: Final = {
    "opened": "partial_opened",
    "closed": "partial_closed",
    "closed_short": "partial_closed_short",
    "dropped": "partial_dropped",
}


def _gauge(
    name: str, meaning: str, read: Callable[[TableReading], float | None], labels: tuple[str, ...] = ()
) -> TableFamily:
    def samples(reading: TableReading, _: int) -> Iterator[Sample]:
        value = read(reading)
        if value is not None:
            yield (), value

    return TableFamily(name=name, kind=Kind.GAUGE, meaning=meaning, labels=labels, read=samples)


def _counts(name: str, meaning: str, label: str, counters: dict[str, str]) -> TableFamily:
    """Return a family of the table's counters, by the value of a label; a label of "" has no values."""

    def samples(reading: TableReading, _: int) -> Iterator[Sample]:
        for value, counter in counters.items():
            yield (value,) if label else (), reading.table.counters.get(counter, 0)

    return TableFamily(name=name, kind=Kind.COUNTER, meaning=meaning, labels=(label,) if label else (), read=samples)


def _producers(reading: TableReading, now_ms: int) -> Iterator[Sample]:
    counts = dict.fromkeys(ProducerHealth, 0)
    for producer in reading.producers:
        health = health_of(producer, wanted=reading.waiting > 0, now_ms=now_ms)
        if health is not ProducerHealth.DEAD or now_ms - producer.last_seen_ms < DEAD_FOR_S * 1000:
            counts[health] += 1
    for health, count in counts.items():
        yield (health.value,), count


def _replay_staleness(reading: TableReading) -> float | None:
    oldest = reading.table.replay_version_min
    return None if oldest is None else reading.table.policy_version - oldest


def _seconds(milliseconds: int) -> float | None:
    return milliseconds / 1000 if milliseconds else None


TABLE_FAMILIES: Final = (
    _gauge("table_fresh_groups", "Groups waiting for NextBatch", lambda it: it.table.fresh),
    _gauge(
        "table_fresh_effective_groups",
        "Groups waiting for NextBatch whose rewards differ",
        lambda it: it.table.fresh_effective,
    ),
    _gauge("table_replay_groups", "Groups that wait to be used again", lambda it: it.table.replay),
    _gauge("table_leased_groups", "Fresh groups in leases", lambda it: it.table.leased),
    _gauge("table_leases", "Leases neither committed nor ended", lambda it: it.table.leases),
    _gauge("table_payload_bytes", "Payload bytes of the groups in the table", lambda it: it.table.payload_bytes),
    _gauge(
        "table_fresh_capacity_groups",
        "Fresh groups at which inserts are refused",
        lambda it: it.table.config.fresh_capacity,
    ),
    _gauge("table_missing_groups", "Fresh groups that the waiting NextBatch calls lack", lambda it: it.table.missing),
    _gauge("table_waiting_calls", "NextBatch calls that wait for a batch", lambda it: it.waiting),
    _gauge(
        "table_last_insert_timestamp_seconds",
        "When a group was last inserted, seconds since 1970; absent before the first",
        lambda it: _seconds(it.table.last_insert_ms),
    ),
    _gauge(
        "table_replay_staleness_max_versions",
        "Policy versions between the run's and the oldest group in replay; absent while there is none",
        _replay_staleness,
    ),
    TableFamily(
        name="table_producers",
        kind=Kind.GAUGE,
        meaning="Producers by health: alive, slow, or dead (heard of in the last hour, and no more)",
        labels=("health",),
        read=_producers,
    ),
    _counts(
        "table_inserted_groups",
        "Groups accepted, by whether their rewards differ",
        "effective",
        {"true": "inserted_effective", "false": "inserted_ineffective"},
    ),
    _counts("table_duplicate_groups", "Inserts of a group that is, or was, there", "", {"": "duplicate"}),
    _counts(
        "table_refused_groups",
        "Groups refused at insert, by reason",
        "reason",
        {reason: f"refused_{reason}" for reason in REFUSED},
    ),
    _counts("table_consumed_groups", "Fresh groups taken for batches, ineffective ones included", "", {"": "consumed"}),
    _counts(
        "table_delivered_groups",
        "Groups handed out, by where they came from; replay = slots refilled",
        "source",
        {"fresh": "delivered_fresh", "replay": "delivered_replay"},
    ),
    _counts("table_shortfall_slots", "Slots of batches and samples that stayed empty", "", {"": "shortfall"}),
    _counts(
        "table_redelivered_groups",
        "Deliveries of fresh groups that had been handed out before and came back",
        "",
        {"": "redelivered"},
    ),
    _counts(
        "table_returned_groups", "Fresh groups that came back with a released or expired lease", "", {"": "returned"}
    ),
    _counts("table_batches", "Batches and samples handed out", "kind", {"batch": "batches", "sample": "samples"}),
    _counts(
        "table_ended_leases",
        "Leases by how they ended",
        "how",
        {how: f"leases_{how}" for how in ("committed", "released", "expired")},
    ),
    _counts(
        "table_gone_groups", "Groups that left, by reason", "reason", {reason: f"gone_{reason}" for reason in GONE}
    ),
    _counts("table_partial_groups", "Partial groups, by what became of them", "outcome", _PARTIAL),
)

TASK_INSERTED: Final = Family(
    name="task_inserted_groups",
    kind=Kind.COUNTER,
    meaning="Groups accepted, by task and by whether their rewards differ; beyond 20 tasks of a table the rest is one",
    labels=("run", "table", "task", "effective"),
)
TASK_GONE: Final = Family(
    name="task_stale_groups",
    kind=Kind.COUNTER,
    meaning="Groups that left, older than max_staleness, by task: a share that differs by task biases the data",
    labels=("run", "table", "task"),
)
RUN_FAMILIES: Final = (
    Family(name="policy_version", kind=Kind.GAUGE, meaning="Policy clock of the run", labels=("run",)),
    Family(
        name="policy_published_timestamp_seconds",
        kind=Kind.GAUGE,
        meaning="When the run's policy was published, seconds since 1970; absent before the first",
        labels=("run",),
    ),
    Family(name="policy_rewinds", kind=Kind.COUNTER, meaning="Times the run's policy clock went back", labels=("run",)),
)

REDIS_FAMILIES: Final = (
    RedisFamily(name="redis_ping_seconds", kind=Kind.GAUGE, meaning="Round trip of a ping", read=lambda it: it.ping_s),
    RedisFamily(
        name="redis_commands_running",
        kind=Kind.GAUGE,
        meaning="Commands of this service without an answer yet; each holds a connection of at most 4096",
        read=lambda it: it.commands_running,
    ),
    RedisFamily(
        name="redis_memory_used_bytes", kind=Kind.GAUGE, meaning="Memory used", read=lambda it: it.used_memory_bytes
    ),
    RedisFamily(
        name="redis_memory_max_bytes",
        kind=Kind.GAUGE,
        meaning="maxmemory; 0 = no limit",
        read=lambda it: it.max_memory_bytes,
    ),
    RedisFamily(
        name="redis_persistence_ok",
        kind=Kind.GAUGE,
        meaning="1 where the last writes of append-only file and snapshot succeeded, else 0",
        read=lambda it: it.persistence_ok,
    ),
    RedisFamily(
        name="redis_append_only", kind=Kind.GAUGE, meaning="1 with an append-only file", read=lambda it: it.appends
    ),
    RedisFamily(name="redis_replicas", kind=Kind.GAUGE, meaning="Connected replicas", read=lambda it: it.replicas),
    RedisFamily(
        name="redis_evicted_keys",
        kind=Kind.COUNTER,
        meaning="Keys that Redis threw away; any is a loss: set maxmemory-policy noeviction",
        read=lambda it: it.evicted_keys,
    ),
)

REDIS_UP: Final = Family(name="redis_up", kind=Kind.GAUGE, meaning="1 while Redis answers, else 0")
TABLES_LEFT_OUT: Final = Family(
    name="tables_left_out",
    kind=Kind.GAUGE,
    meaning="Tables that are not shown: beyond the 100 that were inserted into last",
)
BUILD: Final = Family(name="build_info", kind=Kind.GAUGE, meaning="1, with the version", labels=("version",))
CALLS: Final = Family(
    name="call_seconds",
    kind=Kind.HISTOGRAM,
    meaning="Duration of calls, streams to their end, by method and ErrorReason (OK = none). Beside the RPCs "
    "there are Atropos.NAME, a route of the Atropos API, Page, all files of the page, and unknown, whatever else was "
    "asked for. Calls that were refused at the door, such as those without a good token, are among them",
    labels=("method", "reason"),
)
RUNNING: Final = Family(name="calls_running", kind=Kind.GAUGE, meaning="Calls that run or wait", labels=("method",))
PAYLOAD: Final = Family(
    name="payload_bytes",
    kind=Kind.COUNTER,
    meaning="Bytes of groups' payloads that came in and went out, headers and encoding left out",
    labels=("direction",),
)
READS: Final = Family(
    name="payload_reads_groups",
    kind=Kind.COUNTER,
    meaning="Groups whose payload was read, by where it was found: cache = in this server's memory",
    labels=("source",),
)
CACHE: Final = Family(name="payload_cache_bytes", kind=Kind.GAUGE, meaning="Payload bytes in this server's memory")
STALENESS: Final = Family(
    name="delivered_staleness_versions",
    kind=Kind.HISTOGRAM,
    meaning="Staleness of the groups that this service handed out, in policy versions",
    labels=("run", "table", "source"),
)
CERTIFICATE: Final = Family(
    name="certificate_left_seconds",
    kind=Kind.GAUGE,
    meaning="Until the first certificate ends, of the chain that a door (grpc, http) shows new connections; "
    "below 0 = it has ended. Absent without TLS",
    labels=("door",),
)

FAMILIES: Final = (
    BUILD, CERTIFICATE, CALLS, RUNNING, PAYLOAD, READS, CACHE, STALENESS, TABLES_LEFT_OUT,
    *TABLE_FAMILIES, TASK_INSERTED, TASK_GONE, *RUN_FAMILIES, REDIS_UP, *REDIS_FAMILIES,
)  # fmt: skip
"""In the order of the reference."""
