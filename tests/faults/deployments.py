"""The ways to deploy Redis under the faults: what is killed, what durability holds, and how to look inside."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import redis
from faults.victims import ClusterMaster, SentinelMaster, StandaloneRedis, Victim
from processes import RedisProcess
from redis.cluster import RedisCluster
from redis_groups import redis_cluster, sentinel_group

from groupreplay import Durability

Kind = Literal["standalone", "sentinel", "cluster"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A running Redis, or several."""

    url: str
    durability: Durability
    victim: Victim
    server_options: tuple[str, ...]
    connect: Callable[[], redis.Redis]
    """Opens a connection to look with, to wherever the data are now."""


@contextmanager
def deployed(kind: Kind, folder: Path, rng: random.Random) -> Iterator[Deployment]:
    """Run Redis in one of three ways."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "standalone":
        with RedisProcess(folder) as process:
            yield Deployment(
                url=process.url,
                durability=Durability.AOF,
                victim=StandaloneRedis(process),
                server_options=(),
                connect=lambda: redis.Redis.from_url(process.url),
            )
    elif kind == "sentinel":
        with sentinel_group(folder) as group:
            yield Deployment(
                url=group.url,
                durability=Durability.REPLICAS,
                victim=SentinelMaster(group),
                server_options=("--durability-min-replicas", "2"),  # whichever is promoted has what was acknowledged
                connect=lambda: redis.Redis.from_url(group.master().url),
            )
    else:
        with redis_cluster(folder, replicas=1) as nodes:
            yield Deployment(
                url="redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes),
                durability=Durability.REPLICAS,
                victim=ClusterMaster(nodes, rng),
                server_options=(),
                connect=lambda: cast(redis.Redis, RedisCluster.from_url(nodes[0].url)),
            )
