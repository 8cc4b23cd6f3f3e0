"""The capacity model: what follows from its costs, and that it foretells a load that it was not fitted to."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from processes import ServerProcess
from redis_groups import TcpRedis, redis_cluster

from groupreplay import AsyncClient, Fill, RolloutGroup, TableConfig
from groupreplay_admin.load.producing import groups_of
from groupreplay_admin.load.shapes import SHAPES
from service.capacity import WORKLOADS, Workload, need, of_generators
from service.capacity_costs import Constants, Line
from service.usage import cpu_seconds

NAMES: dict[str, Any] = {"run": "run", "table": "train"}
PRODUCERS, EACH, BATCH = 64, 32, 64
COSTS = Constants(
    insert_server_s=Line(per_group=1e-3, per_byte=1e-9),
    insert_redis_s=Line(per_group=1e-4, per_byte=1e-9),
    draw_server_s=Line(per_group=1e-3, per_byte=1e-9),
    draw_redis_s=Line(per_group=2e-4, per_byte=0.0),
    stored_bytes=Line(per_group=1000.0, per_byte=1.0),
    cluster_server=1.5,
    cluster_redis=3.0,
    processors=2,
)


def test_a_workload_takes_what_its_groups_and_bytes_cost() -> None:
    """By hand: 100 groups a second of 1 MB, each given twice."""
    workload = Workload(groups_per_s=100, payload_bytes=1e6, deliveries=2, kept_groups=10_000)
    found = need(workload, COSTS)
    assert found.server_cores == pytest.approx(0.1 + 0.1 + 0.2 + 0.2)
    assert found.index_cores == pytest.approx(0.01 + 0.04)
    assert found.payload_cores == pytest.approx(0.1)
    assert found.memory_bytes == pytest.approx(10_000 * 1_001_000)
    assert (found.servers, found.shards) == (2, 1)
    assert found.fits_one_index
    larger = need(replace(workload, kept_groups=50_000), COSTS)  # 50 GB, on shards of 32 GB of which 70 % are used
    assert (larger.servers, larger.shards) == (2, 3)
    assert larger.server_cores == pytest.approx(1.5 * found.server_cores)
    assert larger.index_cores == pytest.approx(3 * found.index_cores)


def test_an_index_that_is_too_much_for_one_shard_is_said() -> None:
    """More shards do not help there: a run's index is in one."""
    found = need(Workload(groups_per_s=5000, payload_bytes=100, deliveries=1), COSTS)
    assert not found.fits_one_index


def test_a_thousand_generators_are_a_larger_rate() -> None:
    """And every workload can be served by what was measured."""
    thousand = of_generators("7B", 1000)
    assert thousand.groups_per_s == pytest.approx(750)
    assert all(need(workload, Constants.read()).fits_one_index for workload in WORKLOADS.values())


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[list[TcpRedis]]:
    """Three shards, without replicas."""
    with redis_cluster(tmp_path / "cluster", replicas=0) as nodes:
        yield nodes


@pytest.mark.minutes
@pytest.mark.timeout(900)
async def test_four_servers_on_a_cluster_take_about_what_one_takes(cluster: list[TcpRedis], tmp_path: Path) -> None:
    """CPU seconds of 64 producers and a trainer; prints the factors of a cluster, which the model has."""
    costs = Constants.read()
    one_server_s, one_redis_s, _ = await cpu_of_load(cluster, tmp_path / "one", servers=1)
    for node in cluster:
        node.ask("FLUSHALL")
    server_s, redis_s, payload_bytes = await cpu_of_load(cluster, tmp_path / "four", servers=4)
    groups = PRODUCERS * EACH
    bare_server_s = costs.insert_server_s.of(groups, payload_bytes) + costs.draw_server_s.of(groups, payload_bytes)
    bare_redis_s = costs.insert_redis_s.of(groups, payload_bytes) + costs.draw_redis_s.of(groups, payload_bytes)
    print(f"factors here: {one_server_s / bare_server_s:.2f} of servers, {one_redis_s / bare_redis_s:.2f} of Redis")
    print(f"four servers: {server_s:.2f} s, by one {one_server_s:.2f}; Redis: {redis_s:.2f} s, {one_redis_s:.2f}")
    assert 0.6 < server_s / one_server_s < 1.7
    assert 0.6 < redis_s / one_redis_s < 1.7


async def cpu_of_load(cluster: list[TcpRedis], folder: Path, *, servers: int) -> tuple[float, float, int]:
    """Return the CPU seconds of servers and of shards under the load, and its bytes."""
    url = "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in cluster)
    with ExitStack() as stack:
        started = []
        for number in range(servers):
            (folder / str(number)).mkdir(parents=True)
            started.append(ServerProcess(folder / str(number), url))
            stack.callback(started[-1].terminate)
            started[-1].start()
        pids = [server.pid for server in started], [node.pid for node in cluster]
        before = [sum(map(cpu_seconds, group)) for group in pids]
        payload_bytes = await load([server.grpc_address for server in started])
        server_s, redis_s = (sum(map(cpu_seconds, group)) - was for group, was in zip(pids, before, strict=True))
    return server_s, redis_s, payload_bytes


async def load(addresses: list[str]) -> int:
    """Let producers insert and a trainer take all of it; return the bytes of the payloads."""
    config = TableConfig(fill=Fill.REPLAY, ahead_groups=0, fresh_capacity=2**16, replay_capacity=2**16)
    sent = 0

    async def produce(client: AsyncClient, number: int) -> None:
        nonlocal sent
        groups = list(islice(groups_of(SHAPES["M"], prefix=f"p{number}"), EACH))
        sent += sum(group.response_token_ids.nbytes + group.behaviour_logprobs.nbytes for group in groups)

        async def each() -> AsyncIterator[RolloutGroup]:
            for group in groups:
                yield group

        async for result in client.insert_many(each(), **NAMES):
            assert result.error is None

    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(AsyncClient(address, timeout_s=120.0)) for address in addresses]
        await clients[0].create_table(**NAMES, config=config)
        await asyncio.gather(*(produce(clients[number % len(clients)], number) for number in range(PRODUCERS)))
        for step in range(PRODUCERS * EACH // BATCH):
            client = clients[step % len(clients)]
            batch = await client.next_batch(**NAMES, batch_size=BATCH, timeout_s=60.0)
            await client.commit(**NAMES, lease_id=batch.lease_id, step=step)
    return sent
