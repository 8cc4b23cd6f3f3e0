"""A master is killed under load: what was acknowledged with durability `replicas` is there, and calls go on."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from insert_load import Load, make_table
from processes import wait_until
from redis_groups import SentinelGroup, TcpRedis, plain_client, redis_cluster, sentinel_group
from samples import ids, make_group
from service_user import serve_table

from groupreplay.table_config import Durability
from groupreplay_server.store.connection import open_redis
from groupreplay_server.store.keys import WAKE_CHANNEL, TableKeys
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


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
async def test_no_acknowledged_group_is_lost_with_a_master_behind_sentinel(
    sentinels: SentinelGroup, how: signal.Signals, report: Report
) -> None:
    """The Sentinels make a replica the master, the service finds it, and every acknowledged group is there."""
    async with open_redis(sentinels.url) as redis:
        load = Load(RedisStore(redis), Durability.REPLICAS)
        await make_table(load.store)
        async with load.running():
            await load.until(100)
            await asyncio.to_thread(sentinels.master().signal, how)
            await load.until(100)
        await check(load, f"Sentinel, master {how.name}", report)


@pytest.mark.parametrize(
    ("shard", "how"), [("index", signal.SIGKILL), ("payloads", signal.SIGSTOP)], ids=["index-killed", "payloads-hung"]
)
async def test_no_acknowledged_group_is_lost_with_a_master_of_a_cluster(
    cluster: list[TcpRedis], shard: str, how: signal.Signals, report: Report
) -> None:
    """Its replica takes over, the old master comes back as a replica, and every acknowledged group is there."""
    masters, replicas = cluster[:3], cluster[3:]
    lost = index_shard(cluster) if shard == "index" else (index_shard(cluster) + 1) % 3
    async with open_redis(f"redis+cluster://127.0.0.1:{masters[(lost + 1) % 3].port}") as redis:
        load = Load(RedisStore(redis), Durability.REPLICAS)
        await make_table(load.store)
        async with load.running():
            await load.until(100)
            await asyncio.to_thread(masters[lost].signal, how)
            await asyncio.to_thread(wait_until, partial(is_master, replicas[lost]), "its replica takes over")
            if how is signal.SIGKILL:  # or no write there could reach a replica
                masters[lost].start()
            else:
                masters[lost].signal(signal.SIGCONT)
            await load.until(100)
        await check(load, f"Cluster, master of the {shard} {how.name}", report)


async def test_a_call_that_waits_is_woken_after_the_node_of_its_subscription_died(cluster: list[TcpRedis]) -> None:
    """Messages reach every node, so the service subscribes to another one, and nobody sleeps on."""
    url = f"redis+cluster://127.0.0.1:{cluster[0].port}"
    with plain_client(url) as connection:
        async with serve_table(url, connection) as table:
            waiting = asyncio.create_task(table.take(1, timeout_s=60.0))
            await table.until(missing=1)
            await asyncio.to_thread(wait_until, lambda: subscribed(cluster) is not None, "the service has subscribed")
            node = subscribed(cluster)
            assert node is not None
            await asyncio.to_thread(node.signal, signal.SIGKILL)
            cluster.remove(node)
            await asyncio.to_thread(wait_until, lambda: subscribed(cluster) is not None, "it subscribes elsewhere")
            assert not waiting.done()
            await table.client.insert(make_group("a"), timeout_s=30.0, **table.names)
            assert ids(await asyncio.wait_for(waiting, 20)) == ["a"]


def subscribed(nodes: list[TcpRedis]) -> TcpRedis | None:
    """Return the node that the service listens to."""
    return next((node for node in nodes if node.ask("PUBSUB", "NUMSUB", WAKE_CHANNEL)[1]), None)


def index_shard(nodes: list[TcpRedis]) -> int:
    """Return which of three masters has the index of the table."""
    return int(nodes[0].ask("CLUSTER", "KEYSLOT", TableKeys("run", "train").key("facts"))) // (16384 // 3 + 1)


async def check(load: Load, deployment: str, report: Report) -> None:
    """Hold what the producers were told against what is there."""
    lost = await load.lost()
    report(
        f"{deployment} under load: {len(load.acknowledged)} acknowledged, {len(lost)} lost, "
        f"calls succeeded again after {load.longest_gap_s():.1f} s; meanwhile {', '.join(sorted(load.errors))}"
    )
    assert lost == []
    assert load.longest_gap_s() < LONGEST_OUTAGE_S
    assert load.errors <= {"STORE_UNAVAILABLE", "DURABILITY_NOT_REACHED", "DEADLINE"}


def is_master(node: TcpRedis) -> bool:
    """Whether a node thinks so."""
    return bool(node.info("replication")["role"] == "master")
