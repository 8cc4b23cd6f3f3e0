"""What must hold in Redis after anything that was done to it."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any, cast

import redis
from kept_ratios import KeptRatios, read_kept_ratios
from partial_groups import Partials, read_partials

from groupreplay.table_config import Remover, Sampler, TableConfig
from groupreplay_server.store.connection import text
from groupreplay_server.store.fields import config_from_fields
from groupreplay_server.store.keys import PREFIX, RESTORES, RUNS, RunKeys, TableKeys, is_declared

TOLERANCE = 1e-9
"""Relative error of a sum of weights after many changes."""

# All of a table at one moment, unpacked. Floats as text with all their digits.
_READ_TABLE = """
local function plain(value)
  if type(value) == 'table' then
    for key, inner in pairs(value) do value[key] = plain(inner) end
    return value
  elseif type(value) == 'number' then return string.format('%.17g', value)
  elseif type(value) == 'boolean' then return value and '1' or '' end
  return value
end
local function unpacked(key)
  local flat = redis.call('HGETALL', key)
  for i = 2, #flat, 2 do flat[i] = plain(cmsgpack.unpack(flat[i])) end
  return flat
end
local leases = redis.call('HGETALL', KEYS[3])
for i = 2, #leases, 2 do
  local lease = cmsgpack.unpack(leases[i])
  local replay, entries = {}, lease.entries or {}
  for _, entry in ipairs(entries) do
    if entry[2] == 1 then replay[#replay + 1] = entry[1] end
  end
  leases[i] = { lease.state, lease.consumed or {}, replay }
end
local logged = redis.call('HGETALL', KEYS[4])
for i = 2, #logged, 2 do
  local step = cmsgpack.unpack(logged[i])
  local kept = {}
  for _, entry in ipairs(step.pinned and step.entries or {}) do kept[#kept + 1] = entry[1] end
  logged[i] = kept
end
local rest = {}
for i = 5, #KEYS do
  local kind = redis.call('TYPE', KEYS[i]).ok
  rest[i - 4] = kind == 'hash' and redis.call('HGETALL', KEYS[i])
    or kind == 'zset' and redis.call('ZRANGE', KEYS[i], 0, -1, 'WITHSCORES') or {}
end
return { unpacked(KEYS[1]), unpacked(KEYS[2]), leases, logged, rest }
"""
_PLAIN = (
    "config", "state", "counters", "tasks", "fresh", "recency", "arrival", "priority", "divergence", "clock", "weights",
    "sums", "born", "headers", "uses", "pins", "returns", "leased", "leases", "ended", "seen", "garbage",
    "logged",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fact:
    """What the index knows of a group for good."""

    version_min: int
    sequence: int
    effective: bool
    bytes: int
    payload_ref: str
    task: str
    priority: float
    inserted_ms: int


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease on record."""

    state: str
    consumed: list[str]
    replay: list[str]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that Redis has of a table, read at one moment."""

    keys: TableKeys
    config: TableConfig
    facts: dict[str, Fact]
    marks: dict[str, list[float | None]]
    """group_id -> priority, KL and ESS that were fed back"""
    leases: dict[str, Lease]
    kept_by_step: dict[str, list[str]]
    """Training step -> groups whose payload it keeps."""
    plain: dict[str, dict[str, str]]
    """Hashes and sorted sets by name."""
    partials: Partials
    ratios: KeptRatios

    def ids(self, name: str) -> set[str]:
        """Return the fields of a hash or the members of a sorted set."""
        return set(self.plain[name])

    def numbers(self, name: str) -> dict[str, float]:
        """Return the values of a hash or the scores of a sorted set."""
        return {field: float(value) for field, value in self.plain[name].items()}

    def state(self, name: str) -> int:
        """Return a count of the table's state."""
        return int(self.plain["state"].get(name, 0))


def check_invariants(connection: redis.Redis) -> None:
    """Assert that every key is declared, counts add up, and all indexes and payloads name the same groups."""
    keys = [text(key) for key in connection.scan_iter(count=1000)]
    undeclared = [key for key in keys if not is_declared(key)]
    assert not undeclared, f"keys that keys.py does not declare: {undeclared}"
    _check_restores(connection, keys)
    for run in (text(name) for name in connection.smembers(RUNS)):
        held_groups = held_bytes = 0
        for table in (text(name) for name in connection.smembers(RunKeys(run).tables)):
            if connection.hexists(TableKeys(run, table).key("config"), "fill"):  # else it is being restored
                found = read_table(connection, TableKeys(run, table))
                check_table(found)
                _check_payloads(connection, found, keys)
                held_groups += len(found.facts) + len(found.partials.groups)
                held_bytes += sum(fact.bytes for fact in found.facts.values()) + found.partials.bytes
        usage = {text(k): int(v) for k, v in connection.hgetall(RunKeys(run).key("usage")).items()}
        assert (usage.get("groups", 0), usage.get("bytes", 0)) == (held_groups, held_bytes), f"usage of run {run}"


def _check_restores(connection: redis.Redis, keys: list[str]) -> None:
    """A table without a fill rule is one that is being restored, and is on the list of those."""
    restores = {text(topic) for topic in connection.smembers(RESTORES)}
    for key in keys:
        if key.endswith(":config") and connection.exists(key) and not connection.hexists(key, "fill"):
            _, run, table, _ = key.split(":")
            assert f"{run[1:-1]}/{table}" in restores, f"nobody will undo the restore of {run[1:-1]}/{table}"


def read_table(connection: redis.Redis, keys: TableKeys) -> Snapshot:
    """Return all of a table."""
    names = [keys.key(name) for name in ("facts", "marks", "records", "lineage", *_PLAIN)]
    facts, marks, leases, logged, rest = cast(list[Any], connection.eval(_READ_TABLE, len(names), *names))
    plain = {name: _pairs(flat) for name, flat in zip(_PLAIN, rest, strict=True)}
    return Snapshot(
        keys=keys,
        config=config_from_fields(plain["config"]),
        facts={group_id: _fact([text(v) for v in values]) for group_id, values in _items(facts)},
        marks={group_id: [float(v) if v else None for v in values] for group_id, values in _items(marks)},
        leases={
            lease_id: Lease(text(state), [text(i) for i in consumed], [text(i) for i in replay])
            for lease_id, (state, consumed, replay) in _items(leases)
        },
        kept_by_step={step: [text(i) for i in kept] for step, kept in _items(logged)},
        plain=plain,
        partials=read_partials(connection, keys),
        ratios=read_kept_ratios(connection, keys),
    )


def _items(flat: list[Any]) -> list[tuple[str, Any]]:
    return [(text(field), value) for field, value in zip(flat[::2], flat[1::2], strict=True)]


def _pairs(flat: list[Any]) -> dict[str, str]:
    return {field: value.decode("latin-1") for field, value in _items(flat)}


def _fact(values: list[str]) -> Fact:
    # An earlier version, which may have stored the group, knew nothing of the last one, the mean reward.
    low, sequence, effective, size, ref, _prompt, task, priority, inserted_ms, _high, *_mean = values
    return Fact(int(low), int(sequence), effective == "1", int(size), ref, task, float(priority), int(inserted_ms))


def check_table(found: Snapshot) -> None:
    """Assert everything that a table promises of itself."""
    _check_places(found)
    _check_leases(found)
    _check_totals(found)
    _check_orders(found)
    _check_weights(found)
    _check_partials(found)
    found.ratios.check(set(found.facts))


def _check_places(found: Snapshot) -> None:
    """Every group is in one place, and what is known of it goes when it goes."""
    topic, counters = found.keys.topic, {name: int(value) for name, value in found.plain["counters"].items()}
    fresh, replay, leased = found.ids("fresh"), found.ids("recency"), found.ids("leased")
    gone = sum(value for name, value in counters.items() if name.startswith("gone_"))
    assert counters.get("inserted", 0) == len(fresh) + len(leased) + len(replay) + gone, (topic, counters)
    here = fresh | replay | leased
    assert len(here) == len(fresh) + len(replay) + len(leased), f"{topic}: a group is twice"
    assert here == found.facts.keys() - (found.ids("pins") - here), f"{topic}: facts without a place, or the reverse"
    assert found.ids("headers") == found.facts.keys(), topic
    assert not here & found.ids("seen"), f"{topic}: a group is here and gone"
    for name in ("uses", "pins", "returns"):
        assert found.ids(name) <= found.facts.keys(), f"{topic}: {name} of groups that are gone"
    assert found.marks.keys() <= found.facts.keys(), f"{topic}: marks of groups that are gone"


def _check_leases(found: Snapshot) -> None:
    """The groups of live leases are the leased ones; theirs from replay, and those that steps keep, are pinned."""
    live = {lease_id: lease for lease_id, lease in found.leases.items() if lease.state == "live"}
    assert live.keys() == found.ids("leases"), found.keys.topic
    assert found.leases.keys() == found.ids("leases") | found.ids("ended"), found.keys.topic
    held = {group_id: lease_id for lease_id, lease in live.items() for group_id in lease.consumed}
    assert held == found.plain["leased"], found.keys.topic
    pinned = Counter(group_id for lease in live.values() for group_id in lease.replay)
    pinned.update(group_id for kept in found.kept_by_step.values() for group_id in kept)
    assert found.kept_by_step.keys() == found.ids("logged"), found.keys.topic
    assert pinned == found.numbers("pins"), found.keys.topic


def _check_totals(found: Snapshot) -> None:
    """Counts of state and of tasks are those of what is there."""
    facts, topic = found.facts, found.keys.topic
    assert found.state("fresh_effective") == sum(facts[i].effective for i in found.ids("fresh")), topic
    assert found.state("replay_bytes") == sum(facts[i].bytes for i in found.ids("recency")), topic
    assert found.state("payload_bytes") == sum(fact.bytes for fact in facts.values()) + found.partials.bytes, topic
    events: Counter[str] = Counter()
    for name, value in found.plain["tasks"].items():
        events[name.partition(":")[0]] += int(value)
    counted = {
        name: int(value)
        for name, value in found.plain["counters"].items()
        if name.startswith(("gone_", "refused_", "inserted_"))
    }
    assert events == counted, topic


def _check_orders(found: Snapshot) -> None:
    """Each index that the sampler, the remover or the ttl needs has every group, in its order; no other has any."""
    config, facts, replay = found.config, found.facts, found.ids("recency")
    ends = {config.sampler.value, config.remover.value}

    def known(group_id: str, index: int, otherwise: float) -> float:
        value = found.marks[group_id][index] if group_id in found.marks else None
        return otherwise if value is None else value

    needed: dict[str, tuple[bool, dict[str, float]]] = {
        "recency": (True, {i: facts[i].version_min * 2.0**32 + facts[i].sequence for i in replay}),
        "arrival": (bool(ends & {"fifo", "lifo"}), {i: facts[i].sequence for i in replay}),
        "priority": (
            config.sampler is Sampler.MAX_PRIORITY or config.remover is Remover.LOWEST_PRIORITY,
            {i: known(i, 0, facts[i].priority) for i in replay},
        ),
        "divergence": (config.sampler is Sampler.MIN_DIVERGENCE, {i: known(i, 1, 0) for i in replay}),
        "born": (config.ttl_s is not None, {i: facts[i].inserted_ms for i in replay | found.ids("fresh")}),
        "weights": (
            config.sampler in {Sampler.PRIORITIZED, Sampler.UNIFORM},
            {i: expected_weight(found, i) for i in replay},
        ),
    }
    for name, (is_needed, scores) in needed.items():
        assert found.ids(name) == (scores.keys() if is_needed else set()), f"{found.keys.topic}: members of {name}"
        for group_id, score in found.numbers(name).items():
            assert math.isclose(score, scores[group_id], rel_tol=TOLERANCE), f"{name} of {group_id}: {score}"


def expected_weight(found: Snapshot, group_id: str) -> float:
    """Return the weight of a group without its recency, from what is known of it."""
    config = found.config
    if config.sampler is Sampler.UNIFORM:
        return 1.0
    priority, kl, ess = found.marks.get(group_id, [None] * 3)
    weight = (found.facts[group_id].priority if priority is None else priority) ** config.alpha
    weight *= config.use_decay ** int(found.plain["uses"].get(group_id, 0))
    weight *= (1.0 if ess is None else ess) ** config.ess_alpha
    return float(weight * math.exp(-config.kl_decay * (kl or 0.0)))


def _check_weights(found: Snapshot) -> None:
    """The clock has every weighed group, none of them before now; the sums are those of the weights."""
    topic, weights, clock = found.keys.topic, found.numbers("weights"), found.numbers("clock")
    assert weights.keys() == clock.keys(), topic
    now = float(found.plain["state"].get("clock_now", 0))
    assert all(time >= now for time in clock.values()), f"{topic}: a sampling time is behind the clock"
    decays = found.config.sampler is Sampler.PRIORITIZED and found.config.recency_decay < 1
    groups: Counter[str] = Counter()
    sums: dict[str, list[float]] = {}
    for group_id, weight in weights.items():
        version = str(found.facts[group_id].version_min if decays else 0)
        groups[version] += 1
        sums.setdefault(version, []).append(weight)
    kept = found.numbers("sums")
    assert {name[2:]: value for name, value in kept.items() if name.startswith("n:")} == groups, topic
    assert {name[2:] for name in kept if name.startswith("w:")} == sums.keys(), topic
    for version, parts in sums.items():
        total = kept[f"w:{version}"] + kept.get(f"e:{version}", 0.0)
        assert math.isclose(total, math.fsum(parts), rel_tol=TOLERANCE), (topic, version, total, math.fsum(parts))


def _check_partials(found: Snapshot) -> None:
    """Every partial group that was opened is open, or has closed in one way; none is both partial and in the table."""
    counters = {name: int(value) for name, value in found.plain["counters"].items() if name.startswith("partial_")}
    ended = sum(counters.get(f"partial_{how}", 0) for how in ("closed", "closed_short", "dropped"))
    assert counters.get("partial_opened", 0) == len(found.partials.groups) + ended, (found.keys.topic, counters)
    assert not found.partials.groups.keys() & (found.facts.keys() | found.ids("seen")), found.keys.topic


def _check_payloads(connection: redis.Redis, found: Snapshot, all_keys: list[str]) -> None:
    """Each payload belongs to a group of the index, or is on its way out; each group has the payload it names."""
    prefix = f"{PREFIX}:payload:{found.keys.topic}/"
    named = {f"{group_id}/{fact.payload_ref}": fact.bytes for group_id, fact in found.facts.items() if fact.payload_ref}
    named |= found.partials.payloads | found.ratios.payloads
    stored = {key.removeprefix(prefix) for key in all_keys if key.startswith(prefix)}
    for member in stored - named.keys() - found.ids("garbage"):
        assert not connection.exists(prefix + member), f"orphan {member}"  # the service removes some meanwhile
    for member, size in named.items():
        assert connection.strlen(prefix + member) == size, f"{found.keys.topic}: payload of {member}"
