"""Several servers behind one name: the SDK uses all of them, finds new ones, and loses nothing when one goes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace

import httpx
import pytest
import redis
from samples import effective
from service_user import settings

from groupreplay import AsyncClient, Client
from groupreplay_server.app import RunningServer, running_server


async def calls(server: RunningServer, method: str) -> int:
    """Return how many calls of a method a server has answered."""
    async with httpx.AsyncClient() as http:
        page = (await http.get(f"http://{server.http_address}/metrics")).text
    counts = [
        line for line in page.splitlines() if line.startswith(f'groupreplay_call_seconds_count{{method="{method}"')
    ]
    return round(sum(float(line.rpartition(" ")[2]) for line in counts))


@pytest.fixture
async def servers(clean_redis: redis.Redis, redis_url: str) -> AsyncIterator[list[RunningServer]]:
    """Two servers on one Redis."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(running_server(settings(redis_url))) for _ in range(2)]


def one_name(servers: list[RunningServer]) -> str:
    """Return one address for all of them."""
    return "ipv4:" + ",".join(server.grpc_address for server in servers)


async def test_calls_go_to_each_server_behind_a_name(servers: list[RunningServer]) -> None:
    """A headless Service in Kubernetes needs no proxy before it."""
    async with AsyncClient(one_name(servers), timeout_s=20.0) as client:
        await client.create_table(run="run", table="train")
        for number in range(20):
            await client.insert(effective(f"g{number}")[0], run="run", table="train")
        async with asyncio.timeout(20):  # the second connection may come up late
            while not all([await calls(server, "Insert") for server in servers]):
                await client.insert(effective("g0")[0], run="run", table="train")
        assert (await client.describe_table(run="run", table="train")).fresh == 20


async def test_the_plain_client_does_so_too(servers: list[RunningServer]) -> None:
    """Both clients open their channel the same way."""
    await asyncio.to_thread(_use_all, one_name(servers))
    async with asyncio.timeout(20):
        while not all([await calls(server, "ListTables") for server in servers]):
            await asyncio.to_thread(_use_all, one_name(servers))


def _use_all(address: str) -> None:
    with Client(address, timeout_s=20.0) as client:
        for _ in range(10):
            client.list_tables()


async def test_no_call_fails_when_one_of_the_servers_goes(clean_redis: redis.Redis, redis_url: str) -> None:
    """The client goes on with the other, and every group is stored once."""
    async with running_server(settings(redis_url)) as stays, AsyncExitStack() as stack:
        goes = await stack.enter_async_context(running_server(settings(redis_url)))
        async with AsyncClient(one_name([stays, goes]), timeout_s=30.0) as client:
            await client.create_table(run="run", table="train")

            async def insert(producer: int) -> None:
                for number in range(30):
                    await client.insert(effective(f"g{producer}-{number}")[0], run="run", table="train")

            async with asyncio.TaskGroup() as tasks:
                producers = [tasks.create_task(insert(producer)) for producer in range(4)]
                await stack.aclose()
            assert all(producer.done() for producer in producers)
            assert (await client.describe_table(run="run", table="train")).counters["inserted"] == 120


async def test_connections_are_renewed_so_that_new_servers_are_found(clean_redis: redis.Redis, redis_url: str) -> None:
    """Calls go on over connections that end at a certain age, a call that waits included."""
    aging = replace(settings(redis_url), max_connection_age_s=0.2)
    async with running_server(aging) as server, AsyncClient(server.grpc_address, timeout_s=20.0) as client:
        await client.create_table(run="run", table="train")
        waiting = asyncio.create_task(client.next_batch(run="run", table="train", batch_size=1, timeout_s=60.0))
        loop = asyncio.get_running_loop()
        until = loop.time() + 1.0
        while loop.time() < until:
            await client.list_tables()
        await client.insert(effective("a")[0], run="run", table="train")
        assert len((await waiting).groups) == 1
        assert await calls(server, "NextBatch") == 1  # by one call: the age of its connection did not end it
