"""Measures what the capacity model is made of: CPU time and memory of inserts and draws, by group and by byte."""

import json
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from service.capacity_load import PRODUCERS_EACH, Taken, take
from service.cluster import Cluster
from service.deployment import UNCACHED, Service
from service.private_redis import PrivateRedis

CONSTANTS: Final = Path(__file__).with_name("capacity.json")
SERVERS: Final = 4
SHARDS: Final = 3
"""Of the cluster that is measured."""
_FITTED: Final = {"tiny": 8192, "S": 4096, "D": 1024}
_HELD_OUT: Final = {"M": 2048}
"""So many groups of each shape; enough that a tick of the CPU clock, 10 ms, is a small part."""
_REPEATS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """So much for each group, and so much for each byte of its payload."""

    per_group: float
    per_byte: float

    def of(self, groups: float, payload_bytes: float) -> float:
        """Return what so many groups of so many bytes in all take."""
        return self.per_group * groups + self.per_byte * payload_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Seconds of CPU of servers, and of Redis, with one Redis or with a cluster."""

    insert_server_s: Line
    insert_redis_s: Line
    draw_server_s: Line
    """A draw includes its commit. Of servers that fetch every payload from Redis, as they do of tables that are much
    larger than their caches."""
    draw_redis_s: Line

    def servers(self, inserted: float, drawn: float, size: float) -> float:
        """Return seconds of servers for groups of so many bytes each."""
        return self.insert_server_s.of(inserted, inserted * size) + self.draw_server_s.of(drawn, drawn * size)

    def redis(self, inserted: float, drawn: float, size: float) -> Line:
        """Return seconds of Redis: those of the groups, and those of their bytes, all together."""
        parts = (self.insert_redis_s, inserted), (self.draw_redis_s, drawn)
        return Line(
            per_group=sum(line.per_group * groups for line, groups in parts),
            per_byte=sum(line.per_byte * groups * size for line, groups in parts),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """What the model knows."""

    single: Costs
    """With one Redis and one server that has its hands full."""
    cluster: Costs
    """With a Redis Cluster of several shards, all together, and several servers: each payload is a command to its own
    shard, and servers that wait now and then do less with each look at their sockets."""
    stored_bytes: Line
    """Of Redis's memory, for a group in replay with all that the index has of it."""
    processors: int
    """Of the machine that this was measured on."""

    def write(self, path: Path = CONSTANTS) -> None:
        """Write."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path = CONSTANTS) -> "Constants":
        """Read what was measured last."""
        found: dict[str, Any] = json.loads(path.read_text())
        single, cluster = (
            Costs(**{name: Line(**it) for name, it in found[kind].items()}) for kind in ("single", "cluster")
        )
        stored = Line(**found["stored_bytes"])
        return cls(single=single, cluster=cluster, stored_bytes=stored, processors=found["processors"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """CPU seconds of 64 producers and a trainer on groups of a size that was not fitted to, measured and foretold."""

    server_s: float
    server_foretold_s: float
    redis_s: float
    redis_foretold_s: float

    @classmethod
    def of(cls, taken: Taken, costs: Costs) -> Self:
        """Return what was taken beside what the costs foretell of it."""
        size = taken.payload_bytes / taken.groups
        redis = costs.redis(taken.groups, taken.groups, size)
        return cls(
            server_s=taken.insert_server_s + taken.draw_server_s,
            server_foretold_s=costs.servers(taken.groups, taken.groups, size),
            redis_s=taken.insert_redis_s + taken.draw_redis_s,
            redis_foretold_s=redis.per_group + redis.per_byte,
        )

    @property
    def server_ratio(self) -> float:
        """Times as much as foretold."""
        return self.server_s / self.server_foretold_s

    @property
    def redis_ratio(self) -> float:
        """Times as much as foretold."""
        return self.redis_s / self.redis_foretold_s

    def __str__(self) -> str:
        servers = f"{self.server_s:.2f} CPU s, foretold {self.server_foretold_s:.2f}: {self.server_ratio:.2f} times"
        shards = f"{self.redis_s:.2f} CPU s, foretold {self.redis_foretold_s:.2f}: {self.redis_ratio:.2f} times"
        load = f"{SERVERS * PRODUCERS_EACH} producers and a trainer"
        return f"{load}: {SERVERS} servers took {servers}; {SHARDS} shards took {shards}"


def measure() -> tuple[Constants, Check]:
    """Return the constants on this machine, and what they foretell of groups that they were not fitted to."""
    with tempfile.TemporaryDirectory(prefix="groupreplay-capacity-") as name, ExitStack() as stack:
        redis = stack.enter_context(PrivateRedis(Path(name) / "redis"))
        shards = stack.enter_context(Cluster(Path(name) / "shards", SHARDS))
        single = _take_all(Path(name) / "single", redis, 1, _FITTED)
        *cluster, held_out = _take_all(Path(name) / "cluster", shards, SERVERS, _FITTED | _HELD_OUT)
    constants = Constants(
        single=_costs(single),
        cluster=_costs(cluster),
        stored_bytes=_fit(single, "stored_bytes"),
        processors=os.cpu_count() or 1,
    )
    return constants, Check.of(held_out, constants.cluster)


def _take_all(folder: Path, redis: PrivateRedis | Cluster, servers: int, shapes: Mapping[str, int]) -> list[Taken]:
    """Return what the load takes of servers and Redis for each shape; of some repeats, the median of each measure.

    Shapes take turns, since CPU time itself rises and falls by a third with what else the machine has to do. The first
    repeat is left out: in it, servers load what a first call needs.
    """
    with ExitStack() as stack:
        started = [stack.enter_context(Service(folder / str(number), redis.url, UNCACHED)) for number in range(servers)]
        repeats = [
            [take(started, redis, shape, groups=groups) for shape, groups in shapes.items()]
            for _ in range(1 + _REPEATS)
        ]
    return [_median(of_shape) for of_shape in zip(*repeats[1:], strict=True)]


def _costs(taken: Sequence[Taken]) -> Costs:
    return Costs(**{name: _fit(taken, name) for name in Costs.__annotations__})


def _median(taken: Sequence[Taken]) -> Taken:
    return Taken(**{name: statistics.median(getattr(it, name) for it in taken) for name in Taken.__annotations__})


def _fit(taken: Sequence[Taken], name: str) -> Line:
    """Return the line through points, by least squares of relative errors; neither part is negative."""
    per_group = np.array([getattr(it, name) / it.groups for it in taken])
    sizes = np.array([it.payload_bytes / it.groups for it in taken])
    weights = 1 / np.maximum(per_group, 1e-12)
    matrix = np.stack([weights, sizes * weights], axis=1)
    (fixed, slope), *_ = np.linalg.lstsq(matrix, np.ones(len(taken)), rcond=None)
    return Line(per_group=max(float(fixed), 0.0), per_byte=max(float(slope), 0.0))
