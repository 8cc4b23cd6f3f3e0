"""What an operation costs in things that can be counted: no clock, so that a busy machine changes nothing.

`python -m service.costs` compares with what was recorded and fails on a loss of more than a quarter; tests do the same.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import threading
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any, Final

from groupreplay import AsyncClient, Fill, RolloutGroup, Sampler, TableConfig
from groupreplay_admin.load.jobs import TableName
from groupreplay_admin.load.producing import groups_of
from groupreplay_admin.load.shapes import SHAPES
from groupreplay_server.app import running_server
from groupreplay_server.settings import ServerSettings
from service.deployment import RUN
from service.private_redis import PrivateRedis

RECORDED: Final = Path(__file__).with_name("recorded_costs.json")
ALLOWED: Final = 1.25
_SHAPE: Final = SHAPES["M"]
_GROUPS: Final = 64
_REPEATS: Final = 3
"""The lowest count of some repetitions is taken: background work may fall into any one of them."""

Costs = dict[str, float]
"""By "operation: what", per group or per byte of payload."""


@dataclass(slots=True)
class _Counted:
    python_calls: int = 0
    redis_commands: float = 0.0
    redis_bytes: float = 0.0


def count_costs() -> Costs:
    """Return what inserts and draws of groups of shape M cost, client and service together."""
    with (
        tempfile.TemporaryDirectory(prefix="groupreplay-costs-") as folder,
        PrivateRedis(Path(folder) / "redis", ("--appendonly", "no")) as redis,
    ):
        return asyncio.run(_count(redis))


async def _count(redis: PrivateRedis) -> Costs:
    settings = ServerSettings(grpc_listen="127.0.0.1:0", http_listen="127.0.0.1:0", redis_url=redis.url, drain_s=1.0)
    supply = groups_of(_SHAPE, prefix="costs")
    config = TableConfig(fill=Fill.SAMPLE, sampler=Sampler.PRIORITIZED, replay_capacity=2**20)
    where: TableName = {"run": RUN, "table": "costs"}
    costs: Costs = {}
    async with running_server(settings) as server, AsyncClient(server.grpc_address) as client:
        await client.create_table(**where, config=config)
        steps = iter(range(10**6))

        async def each() -> int:
            for group in islice(supply, 16):
                await client.insert(group, **where)
            return 16

        async def stream() -> int:
            return len([it async for it in client.insert_many(_aiter(islice(supply, _GROUPS)), **where)])

        async def draw() -> int:
            batch = await client.sample(**where, batch_size=32)
            await client.commit(**where, lease_id=batch.lease_id, step=next(steps))
            return len(batch.groups)

        for name, operation in {"insert": each, "stream": stream, "draw": draw}.items():
            await operation()  # caches, connections and scripts
            costs |= {f"{name}: {what}": cost for what, cost in (await _lowest(redis, operation)).items()}
        await client.reset_table(**where)
    return costs


async def _aiter(groups: Iterator[RolloutGroup]) -> AsyncIterator[RolloutGroup]:
    for group in groups:
        yield group


async def _lowest(redis: PrivateRedis, operation: Callable[[], Awaitable[int]]) -> Costs:
    found = [await _once(redis, operation) for _ in range(_REPEATS)]
    lowest = {name: min(costs[name] for costs in found) for name in found[0]}
    peaks = [await _peak_bytes(operation) for _ in range(_REPEATS)]
    return lowest | {"peak bytes allocated per payload byte": min(peaks) / _SHAPE.mean_bytes}


async def _peak_bytes(operation: Callable[[], Awaitable[int]]) -> float:
    """Return the most memory that is allocated at once for each group."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    groups = await operation()
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    return peak / groups


async def _once(redis: PrivateRedis, operation: Callable[[], Awaitable[int]]) -> Costs:
    with _counting(redis) as counted:
        groups = await operation()
    return {
        "Python calls per group": counted.python_calls / groups,
        "Redis commands per group, those in scripts included": counted.redis_commands / groups,
        "bytes to and from Redis per payload byte": counted.redis_bytes / groups / _SHAPE.mean_bytes,
    }


@contextmanager
def _counting(redis: PrivateRedis) -> Iterator[_Counted]:
    """Count what happens in a block."""
    counted = _Counted()

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        if event in {"call", "c_call"}:
            counted.python_calls += 1

    commands, moved = _redis_counts(redis)
    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        yield counted
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    commands_after, moved_after = _redis_counts(redis)
    counted.redis_commands, counted.redis_bytes = commands_after - commands, moved_after - moved


def _redis_counts(redis: PrivateRedis) -> tuple[int, int]:
    commands = sum(entry["calls"] for entry in redis.info("commandstats").values())
    stats = redis.info("stats")
    return commands, stats["total_net_input_bytes"] + stats["total_net_output_bytes"]


def losses(costs: Mapping[str, float], recorded: Mapping[str, float]) -> list[str]:
    """Return a sentence for each cost that is more than a quarter above what was recorded."""
    return [
        f"{name}: {costs[name]:.4g}, recorded {known:.4g}; what a change needs is recorded with "
        "`PYTHONPATH=benchmarks python -m service.costs --record`"
        for name, known in recorded.items()
        if costs[name] > ALLOWED * known
    ]


def main() -> int:
    """Count from the command line."""
    parser = argparse.ArgumentParser(prog="python -m service.costs", description=__doc__)
    parser.add_argument("--record", action="store_true", help=f"write {RECORDED.name}")
    arguments = parser.parse_args()
    costs = count_costs()
    for name, cost in costs.items():
        print(f"{cost:12.3f}  {name}")
    if arguments.record:
        RECORDED.write_text(json.dumps({name: round(cost, 3) for name, cost in costs.items()}, indent=1) + "\n")
        return 0
    found = losses(costs, json.loads(RECORDED.read_text()))
    print(*found, sep="\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
