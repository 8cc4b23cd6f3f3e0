"""SIGTERM: calls that wait are sent elsewhere, running ones end, new ones are refused."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from typing import Any, cast

import grpc
import grpc.aio
import httpx
import pytest
import redis
from grpc_health.v1 import health_pb2, health_pb2_grpc
from processes import ServerProcess
from samples import effective, ids, make_group
from service_user import settings
from table_user import TableUser, connect

from groupreplay import ServiceUnavailableError, ShuttingDownError, TableConfig, convert
from groupreplay.parts import split_group
from groupreplay.retry import error_from_rpc
from groupreplay.v1 import replay_service_pb2 as pb
from groupreplay.v1.replay_service_pb2_grpc import ReplayServiceStub
from groupreplay_server.app import running_server

NAMES: dict[str, Any] = {"run": "run", "table": "train"}


@pytest.fixture
async def table(process: ServerProcess, clean_redis: redis.Redis) -> AsyncIterator[TableUser]:
    """A table of that service."""
    async with connect("async", process.grpc_address) as client:
        await client.create_table(**NAMES)
        yield TableUser(client, clean_redis, "run", "train")


@pytest.fixture
async def channel(process: ServerProcess) -> AsyncIterator[grpc.aio.Channel]:
    """A bare channel to that service."""
    async with grpc.aio.insecure_channel(process.grpc_address) as opened:
        yield opened


async def until_draining(process: ServerProcess) -> None:
    """Wait until the service says that it drains."""
    async with httpx.AsyncClient() as http, asyncio.timeout(60):
        while (await http.get(f"http://{process.http_address}/readyz")).json()["obstacle"] != "draining":
            pass


async def failure(call: Any) -> tuple[str, grpc.StatusCode]:
    """Return reason and code of a call that must fail."""
    with pytest.raises(grpc.RpcError) as raised:
        async for _ in call:
            pass
    return error_from_rpc(raised.value, "the service").reason, cast(grpc.Call, raised.value).code()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_calls_that_wait_are_told_to_go_elsewhere_and_the_service_ends_well(
    process: ServerProcess, table: TableUser, channel: grpc.aio.Channel, number: signal.Signals
) -> None:
    """At once, with a reason that clients repeat, and exit status 0."""
    stub = ReplayServiceStub(channel)
    await table.client.create_table(run="run", table="bounded", config=TableConfig(ahead_groups=0))
    batch = stub.NextBatch(pb.NextBatchRequest(lease_id="l", batch_size=1, timeout_s=3600, **NAMES))
    admission = stub.RequestAdmission(
        pb.RequestAdmissionRequest(producer_id="p", max_groups=1, timeout_s=3600, **NAMES | {"table": "bounded"})
    )
    watch = stub.WatchPolicy(pb.WatchPolicyRequest(run="run", after_version=0))
    await table.until(missing=1)
    ended = asyncio.create_task(asyncio.to_thread(process.end, number))
    assert await failure(batch) == ("SHUTTING_DOWN", grpc.StatusCode.UNAVAILABLE)
    assert await failure(watch) == ("SHUTTING_DOWN", grpc.StatusCode.UNAVAILABLE)
    with pytest.raises(grpc.RpcError) as raised:
        await cast(Any, admission)
    assert error_from_rpc(raised.value, "the service").reason == "SHUTTING_DOWN"
    assert await ended == 0
    assert table.redis.hlen(table.key("waiting")) == 0


async def test_running_calls_end_new_ones_are_refused_and_health_says_so(
    process: ServerProcess, table: TableUser, channel: grpc.aio.Channel
) -> None:
    """A producer in the middle of a stream finishes it; nobody else is let in."""
    health: Any = health_pb2_grpc.HealthStub(channel)
    statuses = health.Watch(health_pb2.HealthCheckRequest(service=""))
    assert (await statuses.read()).status == health_pb2.HealthCheckResponse.SERVING
    stream = cast(Any, ReplayServiceStub(channel).InsertStream())
    await stream.write(insert_request("a"))
    assert [result.outcome for result in (await stream.read()).results] == [pb.INSERTED]
    ended = asyncio.create_task(asyncio.to_thread(process.terminate))
    await until_draining(process)
    assert (await statuses.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    statuses.cancel()
    async with connect("async", process.grpc_address, timeout_s=0.3) as late:
        with pytest.raises((ServiceUnavailableError, ShuttingDownError)):
            await late.describe_table(**NAMES)
    await stream.write(insert_request("b"))
    assert [result.outcome for result in (await stream.read()).results] == [pb.INSERTED]
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF
    assert await ended == 0


def insert_request(group_id: str) -> pb.InsertStreamRequest:
    """Return a message with one whole group."""
    return pb.InsertStreamRequest(parts=list(split_group(*convert.group_to_wire(make_group(group_id)))), **NAMES)


async def test_a_call_that_does_not_end_is_cut_after_drain_s(clean_redis: redis.Redis, redis_url: str) -> None:
    """A stream that says nothing more cannot keep the service from ending; its client may try again."""
    async with running_server(settings(redis_url, drain_s=0.2)) as server:
        channel = grpc.aio.insecure_channel(server.grpc_address)
        async with connect("async", server.grpc_address) as client:
            await client.create_table(**NAMES)
        stream = cast(Any, ReplayServiceStub(channel).InsertStream())
        await stream.write(insert_request("a"))
        await stream.read()
        started = time.monotonic()
    assert time.monotonic() - started < 20
    with pytest.raises(grpc.RpcError) as raised:
        await stream.read()
    assert error_from_rpc(raised.value, "the service").retryable
    await channel.close()


async def test_a_client_that_waits_goes_on_with_the_successor(process: ServerProcess, table: TableUser) -> None:
    """A rolling update is invisible to trainers and producers that use the SDK."""
    waiting = asyncio.create_task(table.take(1, timeout_s=60.0))
    watch = table.client.watch_policy(run="run", after_version=0)
    following = asyncio.ensure_future(anext(watch))
    await table.until(missing=1)
    assert await asyncio.to_thread(process.terminate) == 0
    await asyncio.to_thread(process.start)
    await table.insert(*effective("a"))
    assert ids(await waiting) == ["a"]
    await table.advance(1)
    assert (await following).version == 1
