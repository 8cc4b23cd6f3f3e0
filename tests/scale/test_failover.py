"""A master is killed under load: what was acknowledged with durability `replicas` is there, and calls go on."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from insert_load import Load, make_table
from processes import wait_until
from redis_groups import SentinelGroup, TcpRedis, redis_cluster, sentinel_group

from groupreplay.table_config import Durability
from groupreplay_server.store.connection import open_redis
from groupreplay_server.store.keys import TableKeys
from groupreplay_server.store.redis_store import RedisStore

LONGEST_OUTAGE_S = 10.0

Report = Callable[[str], None]


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Report:
    """Print a line that pytest shows."""

    def show(line: str) -> None:
        with capsys.disabled():
            print(f"\n{line}")

    return show


@pytest.fixture
def sentinels(tmp_path: Path) -> Iterator[SentinelGroup]:
    """A master, two replicas, three Sentinels."""
    with sentinel_group(tmp_path) as group:
        yield group


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[list[TcpRedis]]:
    """Three masters with a replica each."""
    with redis_cluster(tmp_path, replicas=1) as nodes:
        yield nodes


async def test_no_acknowledged_group_is_lost_with_a_master_behind_sentinel(
    sentinels: SentinelGroup, report: Report
) -> None:
    """The Sentinels make a replica the master, the service finds it, and every acknowledged group is there."""
    async with open_redis(sentinels.url) as redis:
        load = Load(RedisStore(redis), Durability.REPLICAS)
        await make_table(load.store)
        async with load.running():
            await load.until(100)
            await asyncio.to_thread(sentinels.master().signal, signal.SIGKILL)
            await load.until(100)
        await check(load, "Sentinel", report)


@pytest.mark.parametrize("shard", ["index", "payloads"])
async def test_no_acknowledged_group_is_lost_with_a_master_of_a_cluster(
    cluster: list[TcpRedis], shard: str, report: Report
) -> None:
    """Its replica takes over, the killed node comes back as a replica, and every acknowledged group is there."""
    masters, replicas = cluster[:3], cluster[3:]
    slot = int(masters[0].ask("CLUSTER", "KEYSLOT", TableKeys("run", "train").key("facts")))
    index = slot // (16384 // 3 + 1)
    killed = index if shard == "index" else (index + 1) % 3
    async with open_redis(f"redis+cluster://127.0.0.1:{masters[(killed + 1) % 3].port}") as redis:
        load = Load(RedisStore(redis), Durability.REPLICAS)
        await make_table(load.store)
        async with load.running():
            await load.until(100)
            await asyncio.to_thread(masters[killed].signal, signal.SIGKILL)
            await asyncio.to_thread(wait_until, partial(is_master, replicas[killed]), "its replica takes over")
            masters[killed].start()  # or no write there could reach a replica
            await load.until(100)
        await check(load, f"Cluster ({shard})", report)


async def check(load: Load, deployment: str, report: Report) -> None:
    """Hold what the producers were told against what is there."""
    lost = await load.lost()
    report(
        f"{deployment}: master killed under load: {len(load.acknowledged)} acknowledged, {len(lost)} lost, "
        f"calls succeeded again after {load.longest_gap_s():.1f} s; meanwhile {', '.join(sorted(load.errors))}"
    )
    assert lost == []
    assert load.longest_gap_s() < LONGEST_OUTAGE_S
    assert load.errors <= {"STORE_UNAVAILABLE", "DURABILITY_NOT_REACHED", "DEADLINE"}


def is_master(node: TcpRedis) -> bool:
    """Whether a node thinks so."""
    return bool(node.info("replication")["role"] == "master")
