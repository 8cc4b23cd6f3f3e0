"""Holds what processes wrote down against what the service and Redis say, once everything is quiet."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import redis
from faults.content import is_intact
from faults.journal import Record, group_ids
from faults.worker import committed_steps
from invariants import check_invariants, read_table

from groupreplay import Client, GroupReplayError, GroupSource, GroupState, Lineage
from groupreplay_server.store.keys import PREFIX, TableKeys

PAGE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a trainer says that a committed step was given."""

    lease_id: str | None
    """None: its log does not say."""
    fresh: list[str]
    all_ids: list[str]


@dataclass(slots=True)
class Verdict:
    """What is wrong, by name; a run is good when all of these are empty."""

    lost: list[str] = field(default_factory=list)
    """Acknowledged groups that the table does not know, or that are not what was sent."""
    committed_twice: list[str] = field(default_factory=list)
    """Groups that were fresh in two committed steps, and steps that were committed twice."""
    disagreements: list[str] = field(default_factory=list)
    """Where a journal, the service and Redis contradict each other."""
    orphans: int = 0
    """Payloads that no index names, as a kill between the write and the clean-up leaves them; not wrong."""

    @property
    def is_good(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.lost or self.committed_twice or self.disagreements)


class Audit:
    """The account of one table."""

    def __init__(self, client: Client, verdict: Verdict, *, run: str, table: str) -> None:
        self._client = client
        self._names: dict[str, Any] = {"run": run, "table": table}
        self.verdict = verdict

    def check_groups(self, producers: Mapping[str, Sequence[Record]]) -> None:
        """Every acknowledged group is known and whole, and the table holds no group that nobody acknowledged."""
        acknowledged = [name for records in producers.values() for name in group_ids(records, "acknowledged")]
        states: dict[str, GroupState] = {}
        for page in pages(acknowledged):
            states |= zip(page, self._client.locate_groups(page, **self._names), strict=True)
        self.verdict.lost += [name for name, state in states.items() if state is GroupState.UNKNOWN]
        for page in pages([name for name, state in states.items() if state in {GroupState.FRESH, GroupState.REPLAY}]):
            self.verdict.lost += self._damaged(page)
        inserted = self._client.describe_table(**self._names).counters.get("inserted", 0)
        if inserted != len(set(acknowledged)):
            self._disagree(f"the table counts {inserted} inserts, producers {len(set(acknowledged))}")

    def _damaged(self, page: list[str]) -> Iterator[str]:
        """Yield the groups of a page that cannot be read, or are not what was sent."""
        try:
            found = self._client.get_groups(page, **self._names)
        except GroupReplayError:
            if len(page) == 1:
                yield page[0]
            for group_id in page if len(page) > 1 else ():
                yield from self._damaged([group_id])
        else:
            yield from (stored.group.group_id for stored in found if not is_intact(stored.group))

    def check_steps(self, steps: Mapping[int, Trained], *, newest: int | None = None) -> None:
        """Each committed step has one lineage, which says what its trainer says, and no fresh group is in two."""
        told: Counter[str] = Counter()
        kept: Counter[str] = Counter()
        for trained in steps.values():
            told.update(trained.fresh)
        for step in sorted(steps)[-(newest or len(steps)) :]:
            try:
                lineage = self._client.get_lineage(step=step, **self._names)
            except GroupReplayError as error:
                self._disagree(f"step {step} was committed, says its trainer; the service: {error}")
            else:
                self._compare(lineage, steps[step])
                kept.update(fresh_of(lineage))
        self.verdict.committed_twice += sorted(name for name in told | kept if max(told[name], kept[name]) > 1)
        table = self._client.describe_table(**self._names)
        committed = table.counters.get("leases_committed", 0)
        if committed > len(steps):
            self.verdict.committed_twice.append(f"{committed - len(steps)} of {committed} steps")
        elif committed < len(steps):
            self._disagree(f"trainers committed {len(steps)} steps, the table counts {committed}")
        if table.leases:
            self._disagree(f"{table.leases} leases live after everybody has ended")

    def _compare(self, lineage: Lineage, trained: Trained) -> None:
        found = [item.group_id for item in lineage.groups]
        fresh = [item.group_id for item in lineage.groups if item.source is GroupSource.FRESH]
        if (found, fresh) != (trained.all_ids, trained.fresh):
            self._disagree(f"step {lineage.step} was given {trained.all_ids}, says its trainer; the service: {found}")
        if trained.lease_id not in {None, lineage.lease_id}:
            self._disagree(f"step {lineage.step} has lease {trained.lease_id}; the service says {lineage.lease_id}")

    def check_clock(self, steps: int) -> None:
        """The policy clock is where the trainer that moves it says."""
        version = self._client.get_policy(run=self._names["run"]).version
        if version != steps:
            self._disagree(f"the policy clock stands at {version}, its trainer at {steps}")

    def _disagree(self, message: str) -> None:
        self.verdict.disagreements.append(f"{self._names['run']}/{self._names['table']}: {message}")


def check_redis(connection: redis.Redis, tables: Sequence[TableKeys], verdict: Verdict) -> None:
    """All indexes, counts and payloads fit together, once what kills left over is swept away."""
    for keys in tables:
        found = read_table(connection, keys)
        prefix = f"{PREFIX}:payload:{keys.topic}/"
        named = {f"{prefix}{group_id}/{fact.payload_ref}" for group_id, fact in found.facts.items()}
        named |= {prefix + member for member in found.ids("garbage") | found.ratios.payloads.keys()}
        orphans = {key.decode() for key in connection.scan_iter(match=prefix + "*", count=1000)} - named
        for orphan in orphans:
            connection.delete(orphan)
        verdict.orphans += len(orphans)
    try:
        check_invariants(connection)
    except AssertionError as error:
        verdict.disagreements.append(f"an invariant does not hold: {error}")


def trained_steps(trainers: Mapping[str, Sequence[Record]], verdict: Verdict) -> dict[int, Trained]:
    """Return the committed steps of all trainers, by their journals."""
    found: dict[int, Trained] = {}
    for records in trainers.values():
        for step, record in committed_steps(records).items():
            if step in found:
                verdict.committed_twice.append(f"step {step}")
            found[step] = Trained(lease_id=record["lease_id"], fresh=record["fresh"], all_ids=record["group_ids"])
        verdict.lost += [name for record in records if record["kind"] == "trained" for name in record["damaged"]]
    return found


def logged_steps(group_log: Sequence[Record]) -> dict[int, Trained]:
    """Return the steps in groups.jsonl of `groupreplay train`."""
    return {
        line["step"]: Trained(
            lease_id=None,
            fresh=line["fresh_group_ids"],
            all_ids=[*line["fresh_group_ids"], *line["replay_group_ids"]],
        )
        for line in group_log
    }


def fresh_of(lineage: Lineage) -> list[str]:
    """Return the fresh groups that a step consumed, those without gradient included."""
    fresh = [item.group_id for item in lineage.groups if item.source is GroupSource.FRESH]
    return [*fresh, *lineage.undelivered_group_ids]


def pages(names: Sequence[str]) -> Iterator[list[str]]:
    """Yield names in pages that one call takes."""
    rest = iter(names)
    while page := list(islice(rest, PAGE)):
        yield page
