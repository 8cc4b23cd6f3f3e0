"""The groups of a model table: where they are, what time does to them, how they come in, and how replay orders them."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from model.parts import Group, Lease, Quotas

from groupreplay import Fill, Remover, Sampler, StalenessRule, TableConfig

RANDOM = {Sampler.PRIORITIZED, Sampler.UNIFORM}


@dataclass(slots=True)
class StoredGroups:
    """What a table in a run of its own holds."""

    config: TableConfig
    now_ms: int
    version: int = 0
    groups: dict[str, Group] = field(default_factory=dict)
    """Groups that are here, or that left while a lease holds them."""
    seen: set[str] = field(default_factory=set)
    """Ids that left; they are taken for duplicates."""
    leases: dict[str, Lease] = field(default_factory=dict)
    counters: Counter[str] = field(default_factory=Counter)
    tasks: Counter[str] = field(default_factory=Counter)
    quota: Quotas = field(default_factory=Quotas)
    waiting: dict[str, tuple[int, int]] = field(default_factory=dict)
    """call -> (fresh groups it wants, until when)"""
    admitted: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """producer -> (groups, until when, policy version at the grant)"""
    rewinds: list[tuple[int, int]] = field(default_factory=list)
    """(version, last step that stays) of rewinds that the table has not followed yet"""
    sequence: int = 0
    sampled: int = 0
    paced_from: tuple[int, int] = (0, 0)
    """(version, groups inserted) from which groups_per_version counts"""

    # Looking at what is there

    def at(self, *places: str) -> list[Group]:
        """Return the groups in these places, in order of arrival."""
        return sorted((g for g in self.groups.values() if g.place in places), key=lambda g: g.sequence)

    def locate(self, group_id: str) -> str:
        """Say where a group is."""
        group = self.groups.get(group_id)
        if group and group.place != "gone":
            return group.place
        return "gone" if group_id in self.seen else "unknown"

    def live(self) -> dict[str, Lease]:
        """Return the leases that have not ended."""
        return {name: lease for name, lease in self.leases.items() if lease.state == "live"}

    def held_bytes(self) -> int:
        """Payload of all groups, also of those that left while a lease holds them."""
        return sum(group.bytes for group in self.groups.values())

    def available(self) -> int:
        """Fresh groups that count towards a batch."""
        return sum(g.effective or self.config.fill is not Fill.RESAMPLE for g in self.at("fresh"))

    def missing(self) -> int:
        """Fresh groups that waiting calls still need."""
        return max(0, self.wanted() - self.available())

    def wanted(self) -> int:
        return sum(wanted for wanted, until in self.waiting.values() if until > self.now_ms)

    def staleness(self, group: Group) -> int:
        """Policy versions by which a group is old."""
        return self.version - group.version_min

    def is_stale(self, group: Group) -> bool:
        """Whether a group is older than the table delivers."""
        return self.config.max_staleness is not None and self.staleness(group) > self.config.max_staleness

    def is_expired(self, group: Group) -> bool:
        ttl_s = self.config.ttl_s
        return ttl_s is not None and self.now_ms - group.inserted_ms >= 1000 * ttl_s

    def is_used_up(self, group: Group) -> bool:
        """Whether a group was delivered as often as the table allows."""
        most = self.config.max_times_sampled
        return most is not None and group.uses >= most

    # What happens by itself, when the table is next looked at

    def look(self) -> None:
        """Carry out what the policy clock and time have brought: every operation but a commit begins with it."""
        self.follow_rewinds()
        for lease in sorted(self.live().values(), key=lambda lease: (lease.deadline_ms, lease.lease_id)):
            if lease.deadline_ms <= self.now_ms:
                self.give_back(lease, "expired")
        for group in self.at("fresh", "replay"):
            if self.is_expired(group):
                self.leave(group, "expired")

    def follow_rewinds(self) -> None:
        """After a rewind no lease lives, later steps may be committed anew, and groups of undone versions leave."""
        if not self.rewinds:
            return
        version = min(version for version, _ in self.rewinds)
        step = min(step for _, step in self.rewinds)
        self.rewinds.clear()
        for lease in self.live().values():
            self.give_back(lease, "released")
        self.leases = {name: lease for name, lease in self.leases.items() if lease.step is None or lease.step <= step}
        for group in self.at("fresh", "replay"):
            if group.version_max > version:
                self.leave(group, "rewound")
        self.paced_from = (version, self.counters["inserted"])

    def give_back(self, lease: Lease, how: str) -> None:
        """Fresh groups return to their place, replay groups get their use back."""
        for group_id in lease.fresh + lease.replay:
            self.groups[group_id].uses -= 1
        for group_id in lease.consumed:
            group = self.groups[group_id]
            group.place, group.returns = "fresh", group.returns + 1
            if self.is_expired(group):
                self.leave(group, "expired")
        if lease.sampled:
            self.sampled -= len(lease.replay)
        self.counters["returned"] += len(lease.consumed)
        self.end(lease, how)

    def end(self, lease: Lease, how: str) -> None:
        lease.state = how
        self.counters[f"leases_{how}"] += 1
        self.forget_unheld()

    def leave(self, group: Group, why: str) -> None:
        """A group leaves for good; what is known of it goes with the last lease that holds it."""
        group.place = "gone"
        self.seen.add(group.group_id)
        self._count(f"gone_{why}", group.task)
        self.forget_unheld()

    def forget_unheld(self) -> None:
        held = {group_id for lease in self.live().values() for group_id in lease.replay}
        self.groups = {name: g for name, g in self.groups.items() if g.place != "gone" or name in held}

    def _count(self, event: str, task: str) -> None:
        self.counters[event] += 1
        self.tasks[f"{event}:{task}"] += 1

    # Insert

    def insert(self, incoming: Iterable[Group]) -> list[str]:
        """Take groups in, in order; return INSERTED, DUPLICATE or the reason of a refusal for each."""
        self.look()
        results = []
        for group in incoming:
            if group.group_id in self.groups or group.group_id in self.seen:
                self.counters["duplicate"] += 1
                results.append("DUPLICATE")
            elif reason := self._refusal(group):
                self._count(f"refused_{reason.lower()}", group.task)
                results.append(reason)
            else:
                self._insert(group)
                results.append("INSERTED")
        return results

    def _refusal(self, group: Group) -> str:
        config, limit = self.config, self.config.rate_limit
        unmovable = self.held_bytes() - sum(other.bytes for other in self.at("replay")) + group.bytes
        refused = {
            "FUTURE_POLICY_VERSION": group.version_max > self.version,
            "STALE_POLICY_VERSION": self.is_stale(group) and config.staleness_rule is not StalenessRule.WITHHOLD,
            "GROUP_TOO_LARGE": group.bytes > config.max_group_bytes,
            "TABLE_FULL": (config.fill is not Fill.SAMPLE and len(self.at("fresh")) >= config.fresh_capacity)
            or (config.capacity_bytes is not None and unmovable > config.capacity_bytes),
            "QUOTA_EXCEEDED": self.quota.is_exceeded(len(self.groups), self.held_bytes() + group.bytes),
            "RATE_LIMITED": limit is not None
            and len(self.at("replay")) >= limit.min_size_to_sample
            and (self.joined() + 1) * limit.samples_per_insert - self.sampled > limit.max_diff,
        }
        return next((reason for reason, holds in refused.items() if holds), "")

    def joined(self) -> int:
        """Inserted groups that could be sampled, for the rate limit."""
        return self.counters["inserted" if self.config.replay_ineffective else "inserted_effective"]

    def _insert(self, group: Group) -> None:
        self.sequence += 1
        group.sequence, group.inserted_ms = self.sequence, self.now_ms
        self.counters["inserted"] += 1
        self._count("inserted_effective" if group.effective else "inserted_ineffective", group.task)
        self.make_room_for_bytes(group.bytes)
        self.groups[group.group_id] = group
        if self.config.fill is not Fill.SAMPLE:
            group.place = "fresh"
        elif group.effective or self.config.replay_ineffective:
            self.join_replay(group)
        else:
            self.leave(group, "ineffective")
        if group.producer_id in self.admitted:
            left, until, version = self.admitted.pop(group.producer_id)
            if left > 1:
                self.admitted[group.producer_id] = left - 1, until, version

    # Replay

    def make_room_for_bytes(self, size: int = 0) -> None:
        most = self.config.capacity_bytes
        while most is not None and self.held_bytes() + size > most and self.at("replay"):
            self.evict()

    def join_replay(self, group: Group) -> None:
        while len(self.at("replay")) >= self.config.replay_capacity:
            self.evict()
        group.place = "replay"

    def evict(self) -> None:
        replay = self.at("replay")
        match self.config.remover:
            case Remover.FIFO:
                group = replay[0]
            case Remover.LIFO:
                group = replay[-1]
            case Remover.LOWEST_PRIORITY:
                group = min(replay, key=lambda g: (g.priority, g.group_id))
            case Remover.MOST_STALE:
                group = min(replay, key=lambda g: (g.version_min, g.sequence))
        self.leave(group, "evicted")

    def weight(self, group: Group) -> float:
        """Return the weight of a group, relative to those of the current version."""
        config = self.config
        if config.sampler is not Sampler.PRIORITIZED:
            return 1.0
        return float(
            group.priority**config.alpha
            * config.recency_decay ** self.staleness(group)
            * config.use_decay**group.uses
            * group.ess**config.ess_alpha
            * math.exp(-config.kl_decay * group.kl)
        )

    def _order(self) -> list[Group]:
        """Replay groups in the order in which a sampler that is not random looks at them."""
        replay = self.at("replay")
        match self.config.sampler:
            case Sampler.LIFO:
                replay.reverse()
            case Sampler.MAX_PRIORITY:
                replay.sort(key=lambda g: (g.priority, g.group_id), reverse=True)
            case Sampler.MIN_DIVERGENCE:
                replay.sort(key=lambda g: (g.kl, g.group_id))
            case Sampler.RECENCY:
                replay.sort(key=lambda g: (g.version_min, g.sequence), reverse=True)
                replay = [g for g in replay if self.staleness(g) >= self.config.min_staleness]
        return replay

    def is_drawable(self, group: Group) -> bool:
        """Whether a replay group may be delivered now."""
        config = self.config
        return not (
            self.is_stale(group)
            or self.staleness(group) < config.min_staleness
            or self.is_used_up(group)
            or (config.max_kl is not None and group.kl > config.max_kl)
        )

    def _must_leave(self, group: Group) -> str:
        """Why a group that a draw meets leaves, if it does."""
        if self.is_stale(group) and self.config.staleness_rule is not StalenessRule.WITHHOLD:
            return "stale"
        held = any(group.group_id in lease.replay for lease in self.live().values())
        return "exhausted" if self.is_used_up(group) and not held else ""

    def fits(self, group: Group, chosen: Sequence[Group]) -> bool:
        return self.config.allow_repeated_prompts or group.prompt_id not in {other.prompt_id for other in chosen}

    def draw(self, slots: int, chosen: list[Group], drawn: Sequence[str], left: Sequence[str]) -> list[Group]:
        """Return up to `slots` groups, none of a prompt that is in the batch; stale ones met on the way leave.

        drawn, left: what a random sampler drew, and which groups left while it did.
        """
        found: list[Group] = []
        if self.config.sampler in RANDOM:
            for group_id in drawn:
                group = self.groups[group_id]
                assert group.place == "replay", f"{group_id} was drawn and is {group.place}"
                assert self.is_drawable(group), f"{group_id} must not be drawn"
                assert self.weight(group) > 0, f"{group_id} has no weight"
                assert self.fits(group, chosen + found), f"{group_id} is of a prompt that is in the batch"
                found.append(group)
            assert len(found) <= slots
            others = [g for g in self.at("replay") if self.is_drawable(g) and self.weight(g) > 0 and g not in found]
            assert len(found) == slots or not any(self.fits(g, chosen + found) for g in others), "drew too few"
            met = [self.groups[group_id] for group_id in left]
            assert all(self._must_leave(group) for group in met), f"{left} should not all have left"
        else:
            met = []
            for group in self._order():
                if len(found) == slots:
                    break
                if self.is_drawable(group) and self.fits(group, chosen + found):
                    found.append(group)
                elif self._must_leave(group):
                    met.append(group)
        for group in met:
            self.leave(group, self._must_leave(group))
        return found
