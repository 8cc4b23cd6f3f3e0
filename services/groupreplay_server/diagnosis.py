"""Why a batch is, or is not, ready: what the store knows, in words that say what to do. Pure functions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from groupreplay.table_config import Fill
from groupreplay.types import Diagnosis, Finding, Lease, Producer, ProducerHealth, Severity, Table
from groupreplay_server.store.records import TableVitals

BEATS_UNTIL_DEAD = 3
SILENT_UNTIL_DEAD_S = 120.0
"""For a producer that never beat: it may only let itself be heard when it inserts."""
SLOW_FACTOR = 5.0
SLOW_AFTER_S = 30.0
LOW_EFFECTIVE_SHARE = 0.2
HIGH_STALE_SHARE = 0.1
_SHOWN = 5


def diagnose(table: Table, vitals: TableVitals, *, batch_size: int, now_ms: int) -> Diagnosis:
    """Return what stands in the way of a batch of batch_size, and what is worth a look."""
    producers = tuple(
        replace(producer, health=health_of(producer, wanted=bool(vitals.waiting), now_ms=now_ms))
        for producer in vitals.producers
    )
    view = _View(table=table, vitals=vitals, producers=producers, batch_size=batch_size, now_ms=now_ms)
    findings = [*view.batch(), *view.producer_findings(), *view.pace(), *view.losses(), *view.holders()]
    order = [Severity.PROBLEM, Severity.WARNING, Severity.INFO]
    findings.sort(key=lambda finding: order.index(finding.severity))
    return Diagnosis(
        ready=view.missing == 0,
        findings=tuple(findings),
        producers=producers,
        leases=vitals.leases,
        table=table,
    )


def health_of(producer: Producer, *, wanted: bool, now_ms: int) -> ProducerHealth:
    """Return whether a producer lets itself be heard and, where groups are wanted, keeps the pace it had."""
    silent_s = (now_ms - producer.last_seen_ms) / 1000
    if silent_s > (BEATS_UNTIL_DEAD * producer.interval_s or SILENT_UNTIL_DEAD_S):
        return ProducerHealth.DEAD
    if wanted and producer.inserted > 1:
        usual_s = (producer.last_insert_ms - producer.first_seen_ms) / 1000 / producer.inserted
        if (now_ms - producer.last_insert_ms) / 1000 > max(SLOW_AFTER_S, SLOW_FACTOR * usual_s):
            return ProducerHealth.SLOW
    return ProducerHealth.ALIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    table: Table
    vitals: TableVitals
    producers: Sequence[Producer]
    batch_size: int
    now_ms: int

    @property
    def missing(self) -> int:
        """Groups that a batch (or, where the table only samples, one draw) still needs."""
        match self.table.config.fill:
            case Fill.SAMPLE:
                limit = self.table.config.rate_limit
                wanted = limit.min_size_to_sample if limit else 1
                return max(0, wanted - self.table.replay) or int(self.vitals.drawable == 0)
            case Fill.RESAMPLE:
                return max(0, self.batch_size - self.vitals.effective)
            case _:
                return max(0, self.batch_size - self.vitals.takeable)

    def _age(self, time_ms: int) -> str:
        return f"{max(0, self.now_ms - time_ms) / 1000:.0f} s ago"

    def _in(self, time_ms: int) -> str:
        return f"in {max(0, time_ms - self.now_ms) / 1000:.0f} s"

    def batch(self) -> Iterator[Finding]:
        """Say whether the batch is there, and whether replay can fill it."""
        table, vitals = self.table, self.vitals
        name = f"table {table.run}/{table.table}"
        kind = {Fill.RESAMPLE: "effective fresh", Fill.SAMPLE: "replay"}.get(table.config.fill, "fresh")
        if self.missing:
            last = (
                f"the last insert was {self._age(table.last_insert_ms)}" if table.last_insert_ms else "nothing came yet"
            )
            yield Finding(
                severity=Severity.PROBLEM,
                code="missing_groups",
                text=f"{name} needs {self.missing} more {kind} groups for a batch of {self.batch_size}; it has "
                f"{vitals.takeable} fresh ({vitals.effective} effective) that may be taken; {last}.",
            )
        else:
            yield Finding(
                severity=Severity.INFO,
                code="ready",
                text=f"A batch of {self.batch_size} is ready: {vitals.takeable} fresh groups may be taken, "
                f"{vitals.effective} of them effective; {table.replay} groups are in replay.",
            )
        if table.config.fill is Fill.REPLAY and vitals.takeable >= self.batch_size:
            short = self.batch_size - min(vitals.effective, self.batch_size) - table.replay
            if short > 0:
                yield Finding(
                    severity=Severity.WARNING,
                    code="short_replay",
                    text=f"Replay holds {table.replay} groups, so a batch of {self.batch_size} would stay {short} "
                    f"groups "
                    "short. It fills as steps are committed; at the start of a run this is as it should be.",
                )
        if vitals.passed_over:
            yield Finding(
                severity=Severity.WARNING,
                code="repeated_prompts",
                text=f"{vitals.passed_over} fresh groups wait because their prompt is in the batch already: draw "
                f"prompts "
                "without replacement, or set allow_repeated_prompts.",
            )
        if table.fresh >= table.config.fresh_capacity:
            yield Finding(
                severity=Severity.WARNING,
                code="table_full",
                text=f"{name} is full: {table.fresh} fresh groups, its fresh_capacity. Inserts are refused until a "
                f"batch "
                "is taken; see that a trainer runs.",
            )

    def producer_findings(self) -> Iterator[Finding]:
        """Say who is dead or slow."""
        blame = Severity.PROBLEM if self.missing else Severity.WARNING
        if not self.producers:
            yield Finding(
                severity=blame,
                code="no_producers",
                text=f"No producer was ever heard of in table {self.table.run}/{self.table.table}: start a generator "
                f"with "
                "this run and table, and give its groups a producer_id.",
            )
        for producer in self._worst(ProducerHealth.DEAD):
            due = f"it beats every {producer.interval_s:g} s" if producer.interval_s else "it never sent a beat"
            yield Finding(
                severity=blame,
                code="dead_producer",
                text=f"Producer {producer.producer_id} was last heard of {self._age(producer.last_seen_ms)} ({due}) "
                f"and had "
                f"inserted {producer.inserted} groups: see whether it still runs.",
            )
        for producer in self._worst(ProducerHealth.SLOW):
            doing = f"; it says: {producer.status}" if producer.status else ""
            yield Finding(
                severity=blame,
                code="slow_producer",
                text=f"Producer {producer.producer_id} lives, but inserted nothing for "
                f"{(self.now_ms - producer.last_insert_ms) / 1000:.0f} s, much longer than it used to{doing}.",
            )

    def _worst(self, health: ProducerHealth) -> list[Producer]:
        found = [producer for producer in self.producers if producer.health is health]
        return sorted(found, key=lambda producer: -producer.last_seen_ms)[:_SHOWN]

    def pace(self) -> Iterator[Finding]:
        """Say who generates, and who is waited for."""
        granted = sum(groups for _, groups, _ in self.vitals.admissions)
        if granted:
            latest = max(until for _, _, until in self.vitals.admissions)
            yield Finding(
                severity=Severity.INFO,
                code="admitted_groups",
                text=f"{granted} groups are being generated by {len(self.vitals.admissions)} admitted producers; what "
                f"does "
                f"not come is forgotten {self._in(latest)}.",
            )
        if self.vitals.waiting:
            wanted = sum(groups for groups, _ in self.vitals.waiting)
            yield Finding(
                severity=Severity.INFO,
                code="waiting_calls",
                text=f"{len(self.vitals.waiting)} NextBatch calls wait, for {wanted} groups.",
            )
        elif self.missing and not granted and self.table.config.ahead_groups == 0:
            yield Finding(
                severity=Severity.PROBLEM,
                code="no_demand",
                text="Nobody waits in NextBatch, and ahead_groups is 0, so producers that ask for admission make "
                "nothing: "
                "start the trainer, or raise ahead_groups.",
            )

    def losses(self) -> Iterator[Finding]:
        """Say what was filtered, dropped, evicted and refused."""
        counters = self.table.counters
        inserted = counters.get("inserted", 0)
        effective = counters.get("inserted_effective", 0)
        if inserted:
            low = effective < LOW_EFFECTIVE_SHARE * inserted
            yield Finding(
                severity=Severity.WARNING if low else Severity.INFO,
                code="effective_share",
                text=f"{effective} of {inserted} groups had reward variance ({effective / inserted:.0%})"
                + ("; prompts are too easy or too hard for this policy." if low else "."),
            )
        stale = counters.get("gone_stale", 0) + counters.get("refused_stale_policy_version", 0)
        if stale:
            share = stale / (inserted + counters.get("refused_stale_policy_version", 0))
            yield Finding(
                severity=Severity.WARNING if share > HIGH_STALE_SHARE else Severity.INFO,
                code="stale_groups",
                text=f"{stale} groups were dropped or refused as older than max_staleness "
                f"{self.table.config.max_staleness} "
                f"({share:.0%}), {self._by_task('stale')}; a share that differs by task biases the data: raise "
                "max_staleness, or set staleness_rule wait.",
            )
        for name, what in (("gone_evicted", "evicted for newer ones"), ("gone_expired", "dropped after ttl_s")):
            if counters.get(name):
                yield Finding(severity=Severity.INFO, code=name, text=f"{counters[name]} groups were {what}.")
        refused = {name: count for name, count in counters.items() if name.startswith("refused_")}
        if refused:
            listed = ", ".join(f"{name.removeprefix('refused_')} {count}" for name, count in sorted(refused.items()))
            yield Finding(severity=Severity.WARNING, code="refused_groups", text=f"Groups refused at insert: {listed}.")

    def _by_task(self, word: str) -> str:
        found: dict[str, int] = {}
        for name, count in self.table.task_counters.items():
            event, _, task = name.partition(":")
            if word in event:
                found[task or "(no task)"] = found.get(task or "(no task)", 0) + count
        most = sorted(found.items(), key=lambda item: -item[1])[:_SHOWN]
        return "by task: " + ", ".join(f"{task} {count}" for task, count in most)

    def holders(self) -> Iterator[Finding]:
        """Say which leases hold groups."""
        table = self.table
        if table.leases and self.vitals.leases:  # read one after the other: the last may just have ended
            shown = sorted(self.vitals.leases, key=lambda lease: lease.deadline_ms)[:_SHOWN]
            yield Finding(
                severity=Severity.INFO,
                code="leased_groups",
                text=f"{table.leased} fresh groups are in {table.leases} leases: "
                + "; ".join(self._lease(lease) for lease in shown)
                + ". They come back if a lease is neither committed nor extended.",
            )
        expired = table.counters.get("leases_expired", 0)
        if expired:
            yield Finding(
                severity=Severity.WARNING,
                code="expired_leases",
                text=f"{expired} leases ended at their deadline without a commit: a trainer died, or a step takes "
                f"longer than "
                "lease_s.",
            )

    def _lease(self, lease: Lease) -> str:
        holder = f" of {lease.holder}" if lease.holder else ""
        return f"{lease.lease_id}{holder} with {lease.fresh} fresh, until {self._in(lease.deadline_ms)}"
