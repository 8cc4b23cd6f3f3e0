"""The load that the capacity model is fitted to, and held to: producers that stream at once, then a trainer."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from groupreplay import AsyncClient, Fill, RolloutGroup, TableConfig
from groupreplay_admin.load.producing import groups_of
from groupreplay_admin.load.shapes import SHAPES
from service.cluster import Cluster
from service.deployment import RUN, Service
from service.private_redis import PrivateRedis

PRODUCERS_EACH: Final = 16
"""Of a server. A hundred streams cost more than one of as many groups: what they have under way is memory that the
kernel must give, and is warm for nobody."""
_BATCH: Final = 64
_TABLE: Final = TableConfig(
    fill=Fill.REPLAY,
    ahead_groups=0,
    fresh_capacity=2**16,
    replay_capacity=2**16,
    lineage_steps=0,
    max_staleness=None,
)
_NAMES: Final[dict[str, Any]] = {"run": RUN, "table": "capacity"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What a load took: seconds of CPU, and bytes of Redis's memory that are in use after it."""

    groups: int
    payload_bytes: int
    insert_server_s: float
    """Of all servers."""
    insert_redis_s: float
    """Of all shards."""
    draw_server_s: float
    draw_redis_s: float
    stored_bytes: float


def take(servers: Sequence[Service], redis: PrivateRedis | Cluster, shape: str, *, groups: int) -> Taken:
    """Empty Redis, let producers insert groups, and a trainer draw and commit all of them, in turn from each server.

    Args:
        groups: in all, a multiple of 64.
    """
    redis.flush()
    return asyncio.run(_take(servers, redis, shape, groups))


async def _take(servers: Sequence[Service], redis: PrivateRedis | Cluster, shape: str, count: int) -> Taken:
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(AsyncClient(server.address, timeout_s=120.0)) for server in servers]
        await clients[0].create_table(**_NAMES, config=_TABLE)
        empty_bytes = redis.used_bytes()
        producers = range(PRODUCERS_EACH * len(clients))
        each = count // len(producers)
        groups = [list(islice(groups_of(SHAPES[shape], prefix=f"p{number}"), each)) for number in producers]

        async def insert() -> None:
            await asyncio.gather(*(_insert(clients[number % len(clients)], groups[number]) for number in producers))

        async def draw() -> None:
            for step in range(count // _BATCH):
                client = clients[step % len(clients)]
                batch = await client.next_batch(**_NAMES, batch_size=_BATCH, timeout_s=60.0)
                await client.commit(**_NAMES, lease_id=batch.lease_id, step=step)

        inserted = await _cpu_of(insert, servers, redis)
        drawn = await _cpu_of(draw, servers, redis)
        return Taken(
            groups=count,
            payload_bytes=sum(_size(group) for part in groups for group in part),
            insert_server_s=inserted[0],
            insert_redis_s=inserted[1],
            draw_server_s=drawn[0],
            draw_redis_s=drawn[1],
            stored_bytes=redis.used_bytes() - empty_bytes,
        )


async def _cpu_of(
    what: Callable[[], Awaitable[None]], servers: Sequence[Service], redis: PrivateRedis | Cluster
) -> tuple[float, float]:
    """Return the CPU seconds of servers and of Redis while something is done."""
    before = sum(server.cpu_seconds() for server in servers), redis.cpu_seconds()
    await what()
    return sum(server.cpu_seconds() for server in servers) - before[0], redis.cpu_seconds() - before[1]


async def _insert(client: AsyncClient, groups: Sequence[RolloutGroup]) -> None:
    async def all_of_them() -> AsyncIterator[RolloutGroup]:
        for group in groups:
            yield group

    async for result in client.insert_many(all_of_them(), **_NAMES):
        if result.error is not None:
            raise result.error


def _size(group: RolloutGroup) -> int:
    return group.response_token_ids.nbytes + group.behaviour_logprobs.nbytes
