"""A name whose addresses come and go, as those of a headless Service in Kubernetes do."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import redis
from processes import free_port
from samples import effective
from scale.name_server import NameServer
from scale.test_one_name import calls
from service_user import settings

from groupreplay import AsyncClient
from groupreplay_server.app import RunningServer, running_server


@asynccontextmanager
async def pod(redis_url: str, address: str) -> AsyncIterator[RunningServer]:
    """Run a server that renews its connections, at an address of its own, as Pods have."""
    values = replace(settings(redis_url), grpc_listen=address, max_connection_age_s=0.5)
    async with running_server(values) as server:
        yield server


async def test_a_rolling_update_is_followed_from_the_old_server_to_the_new(
    clean_redis: redis.Redis, redis_url: str
) -> None:
    """The client finds a server that came since it connected, and goes on when the old one goes; no call fails."""
    port = free_port()
    async with NameServer(["127.0.0.1"]) as names, AsyncExitStack() as first, AsyncExitStack() as second:
        await first.enter_async_context(pod(redis_url, f"127.0.0.1:{port}"))
        address = f"dns://{names.address}/replay.test:{port}"
        async with AsyncClient(address, timeout_s=30.0) as client:
            await client.create_table(run="run", table="train")
            waiting = asyncio.create_task(client.next_batch(run="run", table="train", batch_size=40, timeout_s=60.0))
            successor = await second.enter_async_context(pod(redis_url, f"127.0.0.2:{port}"))
            names.addresses = ["127.0.0.1", "127.0.0.2"]
            inserted = 0
            async with asyncio.timeout(30):
                while not await calls(successor, "Insert"):
                    await client.insert(effective(f"g{inserted}")[0], run="run", table="train")
                    inserted += 1
            names.addresses = ["127.0.0.2"]
            ending = asyncio.create_task(first.aclose())
            async with asyncio.timeout(30):
                while not ending.done() or inserted < 40:
                    await client.insert(effective(f"g{inserted}")[0], run="run", table="train")
                    inserted += 1
            await ending
            assert len((await waiting).groups) == 40
            assert (await client.describe_table(run="run", table="train")).counters["inserted"] == inserted
