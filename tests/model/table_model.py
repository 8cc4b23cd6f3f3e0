"""What a table is: the operations of the store in plain Python, without Redis, processes or concurrency.

Read this to know what the service does; stored_groups.py has what lies beneath. tests/model/test_model.py holds the
real one to it. Where a sampler draws at random, the model is told what was drawn and says whether that was allowed,
and how likely it was.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from model.parts import Delivered, Group, Lease, NotReady, Taken
from model.stored_groups import RANDOM, StoredGroups

from groupreplay import (
    Fill,
    GroupFeedback,
    InvalidRequestError,
    LeaseExpiredError,
    StalenessRule,
    StepConflictError,
    TableConfig,
    UnknownLeaseError,
)


@dataclass(slots=True)
class TableModel(StoredGroups):
    """A table in a run of its own. Operations raise the errors that the store raises."""

    # Batches and samples

    def take(
        self,
        lease_id: str,
        batch_size: int,
        *,
        deadline_ms: int,
        wait_until_ms: int,
        drawn: Sequence[str] = (),
        left: Sequence[str] = (),
    ) -> Taken | NotReady:
        """Hand out the next batch by the fill rule, or say what is missing. The lease's id names the waiting call."""
        if self.config.fill is Fill.SAMPLE:
            raise InvalidRequestError("fill rule sample makes no batches")
        self.look()
        if known := self._known(lease_id):
            self.waiting.pop(lease_id, None)
            return known
        awaited_ms = self._awaited_admission()
        consumed, chosen, passed_over, complete = self._choose_fresh(batch_size)
        if not complete or awaited_ms:
            wanted = batch_size + passed_over
            self.waiting[lease_id] = wanted, wait_until_ms
            ends = [lease.deadline_ms for lease in self.live().values()]
            ends += [awaited_ms] if awaited_ms else []
            return NotReady(wanted, self.available(), min(ends, default=0))
        self.waiting.pop(lease_id, None)
        effective = sum(group.effective for group in consumed)
        fresh = [self._deliver(group, "fresh", 1.0, 1.0) for group in chosen]
        for group in consumed:
            group.place = "leased"
        replay = self._draw_and_deliver(batch_size - len(chosen), chosen, drawn, left) if self._refills() else []
        self.counters["batches"] += 1
        self.counters["consumed"] += len(consumed)
        taken = Taken(len(consumed), effective, (*fresh, *replay))
        self.counters["shortfall"] += batch_size - len(taken.groups)
        return self._lease(
            Lease(
                lease_id,
                deadline_ms,
                taken,
                consumed=[group.group_id for group in consumed],
                fresh=[group.group_id for group in chosen],
                replay=[delivered.group_id for delivered in replay],
            )
        )

    def _refills(self) -> bool:
        return self.config.fill is Fill.REPLAY

    def _choose_fresh(self, batch_size: int) -> tuple[list[Group], list[Group], int, bool]:
        """Walk the fresh groups in order: (used up, of these delivered, passed over, whether that makes a batch)."""
        config = self.config
        consumed: list[Group] = []
        chosen: list[Group] = []
        passed_over = 0

        def complete() -> bool:
            counted = [g for g in consumed if g.effective] if config.fill is Fill.RESAMPLE else consumed
            return len(counted) >= batch_size

        for group in self.at("fresh"):
            if complete():
                break
            delivered = group.effective or config.fill is Fill.KEEP
            if self.is_stale(group) and config.staleness_rule is not StalenessRule.WITHHOLD:
                self.leave(group, "stale")
            elif self.is_stale(group) or (delivered and not self.fits(group, chosen)):
                passed_over += 1
            else:
                consumed.append(group)
                chosen += [group] if delivered else []
        return consumed, chosen, passed_over, complete()

    def _awaited_admission(self) -> int:
        """Under staleness_rule wait: when the first admission ends whose groups the next version would be too late."""
        config = self.config
        if config.staleness_rule is not StalenessRule.WAIT or config.max_staleness is None:
            return 0
        ends = [
            until
            for _, until, version in self.admitted.values()
            if until > self.now_ms and self.version - version >= config.max_staleness
        ]
        return min(ends, default=0)

    def sample(
        self, lease_id: str, batch_size: int, *, deadline_ms: int, drawn: Sequence[str] = (), left: Sequence[str] = ()
    ) -> Taken | NotReady:
        """Hand out a draw of replay groups, within the rate limit, or say how many are there."""
        if self.config.fill not in {Fill.SAMPLE, Fill.REPLAY}:
            raise InvalidRequestError("the fill rule keeps no replay")
        self.look()
        if known := self._known(lease_id):
            return known
        groups, limit = len(self.at("replay")), self.config.rate_limit
        allowed, wanted = batch_size, limit.min_size_to_sample if limit else 1
        if limit:
            diff = self.joined() * limit.samples_per_insert - self.sampled
            allowed = min(allowed, math.floor(diff - limit.min_diff))
        delivered = []
        if groups >= wanted and allowed > 0:
            delivered = self._draw_and_deliver(allowed, [], drawn, left)
        if not delivered:
            return NotReady(wanted, groups, min((lease.deadline_ms for lease in self.live().values()), default=0))
        self.sampled += len(delivered)
        self.counters["samples"] += 1
        self.counters["shortfall"] += batch_size - len(delivered)
        replay = [group.group_id for group in delivered]
        return self._lease(Lease(lease_id, deadline_ms, Taken(0, 0, tuple(delivered)), replay=replay, sampled=True))

    def _known(self, lease_id: str) -> Taken | None:
        """A lease that lives gives the same answer again."""
        lease = self.leases.get(lease_id)
        if lease and lease.state == "committed":
            raise StepConflictError("the lease was committed")
        return lease.taken if lease and lease.state == "live" else None

    def _lease(self, lease: Lease) -> Taken:
        self.leases[lease.lease_id] = lease
        return lease.taken

    def _draw_and_deliver(
        self, slots: int, chosen: list[Group], drawn: Sequence[str], left: Sequence[str]
    ) -> list[Delivered]:
        replay = self.at("replay")
        total = math.fsum(self.weight(group) for group in replay)
        at_random = self.config.sampler in RANDOM
        found = [
            (group, self.weight(group) / total if at_random else 1.0) for group in self.draw(slots, chosen, drawn, left)
        ]
        beta = self.config.importance_beta if at_random else 0.0
        raw = [(len(replay) * probability) ** -beta for _, probability in found]
        return [
            self._deliver(group, "replay", probability, weight / max(raw))
            for (group, probability), weight in zip(found, raw, strict=True)
        ]

    def _deliver(self, group: Group, source: str, probability: float, importance_weight: float) -> Delivered:
        group.uses += 1
        self.counters[f"delivered_{source}"] += 1
        self.counters["redelivered"] += source == "fresh" and group.returns > 0
        return Delivered(
            group.group_id, source, self.staleness(group), group.uses, group.returns, probability, importance_weight
        )

    # The end of a lease

    def commit(self, lease_id: str, step: int, feedback: Iterable[GroupFeedback]) -> bool:
        """End a lease after training; one that expired, too, while nobody else has its groups."""
        self.follow_rewinds()
        lease = self._lease_of(lease_id)
        if lease.state == "committed":
            if lease.step == step:
                return True
            raise StepConflictError("the lease was committed with another step")
        if lease.state == "released":
            raise LeaseExpiredError("the lease was released")
        if any(other.step == step for other in self.leases.values()):
            raise StepConflictError("the step was committed with another lease")
        late = lease.state == "expired"
        if late and any(self.locate(group_id) != "fresh" for group_id in lease.consumed):
            raise LeaseExpiredError("the lease expired, and its groups were taken again or left")
        for item in feedback:
            self._note(item)
        self._train(lease, late)
        self.end(lease, "committed")
        lease.step = step
        return False

    def _lease_of(self, lease_id: str) -> Lease:
        if lease_id not in self.leases:
            raise UnknownLeaseError("the table never gave this lease")
        return self.leases[lease_id]

    def _train(self, lease: Lease, late: bool) -> None:
        """Effective groups join replay where the fill rule uses it, used ones leave, and late uses count after all."""
        if late:
            for group_id in lease.fresh + lease.replay:
                if group_id in self.groups:
                    self.groups[group_id].uses += 1
            self.sampled += len(lease.replay) if lease.sampled else 0
        lease.state = "ending"  # its groups are no longer held, and not yet gone
        for group_id in lease.replay:
            group = self.groups.get(group_id)
            if group and group.place == "replay" and self.is_used_up(group):
                self.leave(group, "exhausted")
        for group_id in lease.consumed:
            group = self.groups[group_id]
            if not group.effective and not self.config.replay_ineffective:
                self.leave(group, "ineffective")
            elif not self._refills():
                self.leave(group, "trained")
            elif self.is_used_up(group):
                self.leave(group, "exhausted")
            elif self.is_expired(group):
                self.leave(group, "expired")
            else:
                self.join_replay(group)

    def release(self, lease_id: str) -> int:
        """Give the groups of a lease back; return how many fresh ones, 0 where it had ended before."""
        self.look()
        lease = self._lease_of(lease_id)
        if lease.state == "committed":
            raise StepConflictError("the lease was committed")
        if lease.state != "live":
            return 0
        self.give_back(lease, "released")
        return len(lease.consumed)

    def extend(self, lease_id: str, deadline_ms: int) -> int:
        """Move the deadline of a live lease."""
        self.look()
        lease = self._lease_of(lease_id)
        if lease.state == "committed":
            raise StepConflictError("the lease was committed")
        if lease.state != "live":
            raise LeaseExpiredError("the lease ended")
        lease.deadline_ms = deadline_ms
        return deadline_ms

    # Producers

    def admit(self, producer_id: str, most: int, until_ms: int) -> tuple[int, int]:
        """Grant a producer groups in place of its earlier grant; return how many, and when something else ends."""
        self.look()
        self.admitted.pop(producer_id, None)
        self.admitted = {name: grant for name, grant in self.admitted.items() if grant[1] > self.now_ms}
        outstanding = sum(groups for groups, _, _ in self.admitted.values())
        ends = [lease.deadline_ms for lease in self.live().values()] + [grant[1] for grant in self.admitted.values()]
        config, fresh = self.config, len(self.at("fresh"))
        granted = min(most, config.fresh_capacity - fresh - outstanding)
        if config.groups_per_version is not None and config.max_staleness is not None:
            versions = config.max_staleness + self.version - self.paced_from[0] + 1
            made = self.counters["inserted"] - self.paced_from[1]
            granted = min(granted, versions * config.groups_per_version - made - outstanding)
        if config.ahead_groups is not None:
            have = self.available() if self.wanted() else fresh
            granted = min(granted, self.wanted() + config.ahead_groups - have - outstanding)
        if granted > 0:
            self.admitted[producer_id] = granted, until_ms, self.version
        return max(granted, 0), min(ends, default=0)

    # Changes from outside

    def update_priorities(self, feedback: Iterable[GroupFeedback]) -> list[str]:
        """Take note of what callers found out; return the ids of groups that are not here."""
        self.look()
        return [item.group_id for item in feedback if not self._note(item)]

    def _note(self, item: GroupFeedback) -> bool:
        group = self.groups.get(item.group_id)
        if group is None or group.place == "gone":
            return False
        group.priority = group.priority if item.priority is None else item.priority
        group.kl = group.kl if item.kl is None else item.kl
        group.ess = group.ess if item.ess is None else item.ess
        return True

    def delete(self, group_ids: Iterable[str]) -> int:
        """Remove groups that are fresh or in replay; return how many."""
        self.look()
        here = [self.groups[name] for name in dict.fromkeys(group_ids) if self.locate(name) in {"fresh", "replay"}]
        for group in here:
            self.leave(group, "deleted")
        return len(here)

    def reset(self) -> int:
        """Remove all groups, and end all leases and admissions; return how many left."""
        self.look()
        for lease in self.live().values():
            self.give_back(lease, "released")
        here = self.at("fresh", "replay")
        for group in here:
            self.leave(group, "reset")
        self.admitted.clear()
        return len(here)

    def update(self, config: TableConfig) -> None:
        """Change limits: what is beyond a capacity leaves now, what is too old or used up when it is met."""
        self.look()
        self.config = config
        while len(self.at("replay")) > config.replay_capacity:
            self.evict()
        self.make_room_for_bytes()

    def rewind(self, version: int, step: int) -> None:
        """Move the policy clock back; the table follows when it is next looked at."""
        self.version = version
        self.rewinds.append((version, step))
