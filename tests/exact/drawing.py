"""Draws thousands of times from a small table, in pipelines of script calls, and holds each draw to its law."""

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import redis
from exact.reference import importance_weights, place_in_law

from groupreplay.table_config import Fill, Sampler, TableConfig
from groupreplay_server.store.fields import config_to_fields
from groupreplay_server.store.keys import RunKeys, TableKeys
from groupreplay_server.store.scripts import Value, load_script

KEYS = TableKeys("run", "exact")
_AT_ONCE = 1000


@dataclass(slots=True)
class Known:
    """What the law needs to know of a group."""

    version: int
    prompt: str
    priority: float
    kl: float = 0.0
    ess: float = 1.0
    uses: int = 0


@dataclass(frozen=True, slots=True)
class Draw:
    """Groups in the order in which one call drew them, and where each stood in its law."""

    ids: tuple[str, ...]
    places: tuple[float, ...]


class ExactTable:
    """A table that only samples. Each operation takes one millisecond, and a lease lives for lease_ms of them.

    Operations are queued; `flush` runs them, and compares every draw with the law of the table as it then was.
    """

    def __init__(self, connection: redis.Redis, *, seed: int, lease_ms: int = 1, **config: Any) -> None:
        """Make the table in an empty Redis."""
        self.config = replace(TableConfig(**config), fill=Fill.SAMPLE)
        self.draws: list[Draw] = []
        self.groups: dict[str, Known] = {}
        self._redis, self._lease_ms, self._random = connection, lease_ms, random.Random(seed)
        self._pipeline = connection.pipeline(transaction=False)
        self._checks: list[tuple[int, Callable[[Any], None]]] = []
        self._now = self._step = self._version = self.version = 0
        self._leases: dict[str, tuple[int, tuple[str, ...]]] = {}
        self._loaded: set[str] = set()
        connection.flushall()
        self._call("create_table", {}, list(config_to_fields(self.config).items()), lambda _: None)
        self.flush()

    @property
    def places(self) -> list[float]:
        """Where each drawn group stood in its law."""
        return [place for draw in self.draws for place in draw.places]

    def counts(self) -> Counter[tuple[str, ...]]:
        """How often each ordered draw came."""
        return Counter(draw.ids for draw in self.draws)

    # Operations

    def insert(self, group_id: str, priority: float = 1.0, *, version: int | None = None, prompt: str = "") -> None:
        """Insert a group, of the current policy version unless another is named."""
        known = Known(self._version if version is None else version, prompt or f"prompt-of-{group_id}", priority)

        def check(reply: list[bytes]) -> None:
            assert reply == [b"INSERTED"]
            self.groups[group_id] = known

        record = (group_id, b"", known.version, known.version, 0.5, 0, "", known.prompt, "", "", priority, 0.5)
        self._call("insert_groups", {}, [record], check)

    def draw(self, count: int) -> str:
        """Draw groups; return the lease."""
        lease_id, deadline = f"lease-{self._now + 1}", self._now + 1 + self._lease_ms
        shares = [self._random.random() for _ in range(count)]

        def check(reply: list[Any]) -> None:
            draw = self._checked(reply[6] if reply[0] else [], shares)
            self.draws.append(draw)
            for group_id in draw.ids:
                self.groups[group_id].uses += 1
            self._leases[lease_id] = deadline, draw.ids

        values: dict[str, Value] = {"batch_size": count, "deadline_ms": deadline, "holder": ""}
        self._call("draw_sample", values | {"lease_id": lease_id}, (), check)
        return lease_id

    def commit(self, lease_id: str) -> None:
        """Commit a lease, so that its uses stay."""
        self._step += 1

        def check(reply: int) -> None:
            assert reply == 0
            for group_id in self._leases.pop(lease_id)[1]:
                if self.groups[group_id].uses >= (self.config.max_times_sampled or math.inf):
                    del self.groups[group_id]

        self._call("commit_lease", {"lease_id": lease_id, "step": self._step}, (), check)

    def update(self, group_id: str, **fields: float) -> None:
        """Feed priority, kl or ess back."""

        def check(reply: list[int]) -> None:
            assert reply == [int(group_id in self.groups)]
            for name, value in fields.items() if group_id in self.groups else ():
                setattr(self.groups[group_id], name, value)

        record = (group_id, *(str(fields.get(name, "")) for name in ("priority", "kl", "ess")), "", "0")
        self._call("update_priorities", {}, [record], check)

    def delete(self, group_id: str) -> None:
        """Remove a group."""

        def check(reply: list[int]) -> None:
            assert reply == [int(self.groups.pop(group_id, None) is not None)]

        self._call("delete_groups", {}, [(group_id,)], check)

    def advance(self, version: int) -> None:
        """Move the policy clock."""
        self._version = version
        self._pipeline.hset(RunKeys(KEYS.run).policy, "version", str(version))
        self._checks.append((self._now, lambda _: setattr(self, "version", version)))

    def let_time_pass(self, arrivals: float) -> None:
        """Let the clock have run for so many arrivals, as after as many draws."""
        self.flush()
        state, clock = KEYS.key("state"), KEYS.key("clock")
        passed = arrivals / math.fsum(map(self.weight, self.groups))
        self._redis.hincrbyfloat(state, "clock_now", passed)
        for member in self.groups:
            self._redis.zincrby(clock, passed, member)

    def flush(self) -> None:
        """Run what is queued."""
        replies = self._pipeline.execute()
        for (now, check), reply in zip(self._checks, replies, strict=True):
            for lease_id in [name for name, (deadline, _) in self._leases.items() if deadline <= now]:
                for group_id in self._leases.pop(lease_id)[1]:
                    if group_id in self.groups:
                        self.groups[group_id].uses -= 1
            check(reply)
        self._checks = []

    # The law

    def weight(self, group_id: str) -> float:
        """Return the weight of a group, by the definition of the table's configuration."""
        if self.config.sampler == Sampler.UNIFORM:
            return 1.0
        known, config = self.groups[group_id], self.config
        newest = max(other.version for other in self.groups.values())  # cancels out, and keeps numbers in range
        return float(
            known.priority**config.alpha
            * config.recency_decay ** (newest - known.version)
            * config.use_decay**known.uses
            * known.ess**config.ess_alpha
            * math.exp(-config.kl_decay * known.kl)
        )

    def law(self, drawn: Sequence[str] = ()) -> dict[str, float]:
        """Return the weight of each group that may follow these in a draw."""
        prompts = {self.groups[group_id].prompt for group_id in drawn}
        return {
            group_id: self.weight(group_id)
            for group_id, known in self.groups.items()
            if known.prompt not in prompts
            and known.uses < (self.config.max_times_sampled or math.inf)
            and self.version - known.version >= self.config.min_staleness
        }

    def _checked(self, groups: Iterable[Sequence[Any]], shares: Sequence[float]) -> Draw:
        """Return a draw, after checking all that is told of it but the chance of it."""
        ids: list[str] = []
        places: list[float] = []
        found = list(groups)
        total = math.fsum(map(self.weight, self.groups))
        probabilities = [self.weight(reply[1].decode()) / total for reply in found]
        expected = importance_weights(probabilities, len(self.groups), self.config.importance_beta)
        for reply, probability, importance, share in zip(found, probabilities, expected, shares, strict=False):
            group_id, law = reply[1].decode(), self.law(ids)
            assert group_id in law, f"{group_id} could not be drawn after {ids}"
            assert reply[5] == self.groups[group_id].uses + 1
            assert math.isclose(float(reply[7]), probability, rel_tol=1e-12), (group_id, reply[7], probability)
            assert math.isclose(float(reply[8]), importance, rel_tol=1e-12), (group_id, reply[8], importance)
            places.append(place_in_law(group_id, law, share))
            ids.append(group_id)
        assert len(ids) == len(shares) or not self.law(ids), "a group that could be drawn was not"
        return Draw(tuple(ids), tuple(places))

    def _call(
        self,
        script: str,
        values: dict[str, Value],
        records: Iterable[Sequence[Value]],
        check: Callable[[Any], None],
    ) -> None:
        if len(self._checks) >= _AT_ONCE:
            self.flush()
        self._now += 1
        shared: dict[str, Value] = {
            "now_ms": self._now,
            "topic": KEYS.topic,
            "seed": f"{self._random.getrandbits(128):032x}",
        }
        loaded = load_script(script)
        if script not in self._loaded:
            self._redis.script_load(loaded.source)
            self._loaded.add(script)
        arguments = loaded.arguments(shared | values, records)
        self._pipeline.evalsha(loaded.sha, len(KEYS.all()), *KEYS.all(), *arguments)
        self._checks.append((self._now, check))
