"""Measures what the capacity model is made of: CPU time and memory of inserts and draws, by group and by byte."""

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np

from groupreplay import Fill, TableConfig
from groupreplay_admin.load.producing import groups_of
from groupreplay_admin.load.shapes import SHAPES
from service.deployment import RUN, Deployment
from service.usage import cpu_seconds

CONSTANTS: Final = Path(__file__).with_name("capacity.json")
_GROUPS: Final = {"tiny": 2048, "S": 1024, "M": 512, "D": 128}
"""So many of each shape; enough that a tick of the CPU clock, 10 ms, is a small part."""
_BATCH: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """So much for each group, and so much for each byte of its payload."""

    per_group: float
    per_byte: float

    def of(self, groups: float, payload_bytes: float) -> float:
        """Return what so many groups of so many bytes in all take."""
        return self.per_group * groups + self.per_byte * payload_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """Seconds of CPU, and bytes of Redis's memory."""

    insert_server_s: Line
    insert_redis_s: Line
    draw_server_s: Line
    """A draw includes its commit."""
    draw_redis_s: Line
    stored_bytes: Line
    """Of a group in replay, with all that the index has of it."""
    cluster_server: float
    """Times as much, with a Redis Cluster of several shards: each payload goes to its own."""
    cluster_redis: float
    """The same, of all shards together."""
    processors: int
    """Of the machine that this was measured on."""

    def write(self, path: Path = CONSTANTS) -> None:
        """Write."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path = CONSTANTS) -> "Constants":
        """Read what was measured last."""
        found: dict[str, Any] = json.loads(path.read_text())
        parts: dict[str, Any] = {name: Line(**it) if isinstance(it, dict) else it for name, it in found.items()}
        return cls(**parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What was measured of one shape."""

    groups: int
    payload_bytes: int
    insert_server_s: float
    insert_redis_s: float
    draw_server_s: float
    draw_redis_s: float
    stored_bytes: float


def measure(repeats: int = 3) -> tuple[Constants, dict[str, Point]]:
    """Return the constants on this machine, and the points that they were fitted to; the least of some repeats each.

    What a cluster costs more is taken over from what was recorded: tests/bench/test_capacity.py runs one, and says it.
    """
    with (
        tempfile.TemporaryDirectory(prefix="groupreplay-capacity-") as folder,
        Deployment(Path(folder), "memory") as deployment,
    ):
        points = {shape: _least([_point(deployment, shape) for _ in range(repeats)]) for shape in _GROUPS}
    lines = {
        name: _fit(list(points.values()), name) for name in Point.__annotations__ if name in Constants.__annotations__
    }
    known = Constants.read()
    return (
        Constants(
            **lines,
            cluster_server=known.cluster_server,
            cluster_redis=known.cluster_redis,
            processors=os.cpu_count() or 1,
        ),
        points,
    )


def _point(deployment: Deployment, shape: str) -> Point:
    config = TableConfig(
        fill=Fill.REPLAY,
        ahead_groups=0,
        fresh_capacity=2**16,
        replay_capacity=2**16,
        lineage_steps=0,
        max_staleness=None,
    )
    groups = list(islice(groups_of(SHAPES[shape], prefix=shape), _GROUPS[shape]))
    client = deployment.client
    # SYNC, or what was there before would go meanwhile.
    deployment.redis.client.execute_command("FLUSHALL", "SYNC")  # type: ignore[no-untyped-call]
    deployment.empty("capacity", config)
    memory_before, before = int(deployment.redis.info("memory")["used_memory"]), _cpu(deployment)
    assert all(result.error is None for result in client.insert_many(groups, run=RUN, table="capacity"))
    inserted = _cpu(deployment)
    for step in range(len(groups) // _BATCH):
        batch = client.next_batch(batch_size=_BATCH, timeout_s=30.0, run=RUN, table="capacity")
        client.commit(lease_id=batch.lease_id, step=step, run=RUN, table="capacity")
    drawn, memory = _cpu(deployment), int(deployment.redis.info("memory")["used_memory"]) - memory_before
    return Point(
        groups=len(groups),
        payload_bytes=sum(group.response_token_ids.nbytes + group.behaviour_logprobs.nbytes for group in groups),
        insert_server_s=inserted[0] - before[0],
        insert_redis_s=inserted[1] - before[1],
        draw_server_s=drawn[0] - inserted[0],
        draw_redis_s=drawn[1] - inserted[1],
        stored_bytes=memory,
    )


def _cpu(deployment: Deployment) -> tuple[float, float]:
    return cpu_seconds(deployment.pid), cpu_seconds(deployment.redis.pid)


def _least(points: Sequence[Point]) -> Point:
    """Return the least of each measure: other work on the machine only adds."""
    return Point(**{name: min(getattr(point, name) for point in points) for name in Point.__annotations__})


def _fit(points: Sequence[Point], name: str) -> Line:
    """Return the line through points, by least squares of relative errors; neither part is negative."""
    per_group = np.array([getattr(point, name) / point.groups for point in points])
    sizes = np.array([point.payload_bytes / point.groups for point in points])
    weights = 1 / np.maximum(per_group, 1e-12)
    matrix = np.stack([weights, sizes * weights], axis=1)
    (fixed, slope), *_ = np.linalg.lstsq(matrix, np.ones(len(points)), rcond=None)
    return Line(per_group=max(float(fixed), 0.0), per_byte=max(float(slope), 0.0))
