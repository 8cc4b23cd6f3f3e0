"""What a load balancer, an operator and Prometheus see."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, cast

import grpc
import grpc.aio
import httpx
import pytest
import redis
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from processes import RedisProcess
from samples import effective, ineffective
from service_user import settings
from table_user import TableUser

from groupreplay import AsyncClient, BatchNotReadyError, TableConfig, UnknownTableError
from groupreplay.convert import group_to_wire
from groupreplay.retry import error_from_rpc
from groupreplay_server.app import RunningServer, running_server

SERVICE = "groupreplay.v1.ReplayService"


@pytest.fixture
async def channel(server: RunningServer) -> AsyncIterator[grpc.aio.Channel]:
    """A bare channel to the service."""
    async with grpc.aio.insecure_channel(server.grpc_address) as opened:
        yield opened


@pytest.fixture
async def http(server: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of the service."""
    async with httpx.AsyncClient(base_url=f"http://{server.http_address}") as opened:
        yield opened


@pytest.mark.parametrize("name", ["", SERVICE])
async def test_a_running_service_is_serving(channel: grpc.aio.Channel, name: str) -> None:
    """grpc_health_probe and Kubernetes ask like this."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_the_health_of_an_unknown_service_is_not_found(channel: grpc.aio.Channel) -> None:
    """A typing error in a probe is found."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    with pytest.raises(grpc.RpcError) as raised:
        await stub.Check(health_pb2.HealthCheckRequest(service="groupreplay.v1.Nothing"))
    assert cast(grpc.Call, raised.value).code() is grpc.StatusCode.NOT_FOUND


async def test_reflection_lists_the_service_and_describes_it(channel: grpc.aio.Channel) -> None:
    """grpcurl works without the protos."""
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(cast(Any, channel))
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
    ]
    answers = [answer async for answer in stub.ServerReflectionInfo(iter(requests))]
    names = {service.name for service in answers[0].list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names
    assert any(b"NextBatchRequest" in file for file in answers[1].file_descriptor_response.file_descriptor_proto)


async def test_an_unknown_method_is_unimplemented(channel: grpc.aio.Channel) -> None:
    """A client that is newer than the service can tell, in whatever shape it calls."""
    for make in (channel.unary_unary, channel.stream_stream):
        call = cast(Any, make)(f"/{SERVICE}/NoSuchMethod")
        with pytest.raises(grpc.RpcError) as raised:
            await (call(b"") if make == channel.unary_unary else call(iter([b""])).read())
        assert cast(grpc.Call, raised.value).code() is grpc.StatusCode.UNIMPLEMENTED
        error = error_from_rpc(raised.value, "the service")
        assert error.reason == "INVALID_REQUEST"
        assert "/NoSuchMethod: there is no such call here" in str(error)


async def test_a_running_service_is_healthy_and_ready(http: httpx.AsyncClient) -> None:
    """The process runs, and Redis answers."""
    assert (await http.get("/healthz")).text == "ok\n"
    ready = await http.get("/readyz")
    assert (ready.status_code, ready.json()) == (200, {"ready": True, "obstacle": None})
    assert (await http.get("/nothing")).status_code == 404


async def test_metrics_show_calls_tables_and_bytes(http: httpx.AsyncClient, client: AsyncClient) -> None:
    """By method and outcome, and by table."""
    await client.create_table(run="run", table="train", config=TableConfig())
    for group in [*effective("a"), *ineffective("x")]:
        await client.insert(group, run="run", table="train")
    await client.next_batch(run="run", table="train", batch_size=2, timeout_s=0.0)
    with pytest.raises(BatchNotReadyError):
        await client.next_batch(run="run", table="train", batch_size=2, timeout_s=0.0)
    with pytest.raises(UnknownTableError):
        await client.describe_table(run="run", table="no")
    lines = (await http.get("/metrics")).text.splitlines()
    for line in (
        'groupreplay_call_seconds_count{method="Insert",reason="OK"} 2.0',
        'groupreplay_call_seconds_count{method="NextBatch",reason="OK"} 1.0',
        'groupreplay_call_seconds_count{method="NextBatch",reason="BATCH_NOT_READY"} 1.0',
        'groupreplay_call_seconds_count{method="DescribeTable",reason="UNKNOWN_TABLE"} 1.0',
        'groupreplay_table_leased_groups{run="run",table="train"} 2.0',
        'groupreplay_table_leases{run="run",table="train"} 1.0',
        'groupreplay_table_inserted_groups_total{effective="true",run="run",table="train"} 1.0',
    ):
        assert line in lines
    moved = {
        direction: float(line.split()[-1])
        for direction in ("in", "out")
        for line in lines
        if line.startswith(f'groupreplay_payload_bytes_total{{direction="{direction}"}}')
    }
    payloads = {group.group_id: len(group_to_wire(group)[1]) for group in (*effective("a"), *ineffective("x"))}
    assert moved == {"in": sum(payloads.values()), "out": payloads["a"]}


async def test_a_table_that_is_half_made_hides_no_other(
    http: httpx.AsyncClient, client: AsyncClient, clean_redis: redis.Redis
) -> None:
    """A name that a crash left without its table is passed over by lists and metrics."""
    await client.create_table(run="run", table="train")
    clean_redis.sadd("gr1:{run}:tables", "half-made")
    clean_redis.sadd("gr1:runs", "half-made")
    clean_redis.sadd("gr1:{half-made}:tables", "train")
    assert [table.table for table in await client.list_tables()] == ["train"]
    assert 'groupreplay_table_fresh_groups{run="run",table="train"} 0.0' in (await http.get("/metrics")).text
    clean_redis.delete("gr1:{half-made}:tables")


async def test_without_redis_the_service_is_healthy_but_not_ready(own_redis: RedisProcess) -> None:
    """It starts, says what is in the way, and is ready once Redis is there."""
    own_redis.kill()
    with redis.Redis.from_url(own_redis.url) as connection:
        async with (
            running_server(settings(own_redis.url)) as server,
            httpx.AsyncClient(base_url=f"http://{server.http_address}") as http,
            AsyncClient(server.grpc_address) as client,
        ):
            assert (await http.get("/healthz")).status_code == 200
            unready = await http.get("/readyz")
            assert unready.status_code == 503
            assert "Redis did not take the call" in unready.json()["obstacle"]
            metrics = await http.get("/metrics")
            assert metrics.status_code == 200
            assert "groupreplay_table_fresh_groups{" not in metrics.text
            own_redis.start()
            assert (await http.get("/readyz")).status_code == 200
            await client.create_table(run="run", table="train")
            table = TableUser(client, connection, "run", "train")
            await table.insert(*effective("a"))
            assert await table.train(1, step=1) == ["a"]


async def test_a_port_without_a_host_is_all_addresses_at_both_doors(clean_redis: redis.Redis, redis_url: str) -> None:
    """The short form means one thing; what the service says of itself can be called."""
    everywhere = replace(settings(redis_url), grpc_listen=":0", http_listen=":0", insecure=True)
    async with running_server(everywhere) as server:
        for address in (server.grpc_address, server.http_address):
            host, _, port = address.rpartition(":")
            assert host == "127.0.0.1"
            for other in ("127.0.0.1", "127.0.0.2"):  # the latter is loopback too, and nobody listens there alone
                _, writer = await asyncio.open_connection(other, int(port))
                writer.close()
        async with AsyncClient(server.grpc_address) as client:
            assert await client.list_tables() == []


async def test_http_listens_on_ipv6(clean_redis: redis.Redis, redis_url: str) -> None:
    """As gRPC does, by the form that its refusal of others names."""
    async with (
        running_server(replace(settings(redis_url), http_listen="[::1]:0")) as server,
        httpx.AsyncClient(base_url=f"http://{server.http_address}") as http,
    ):
        assert server.http_address.startswith("[::1]:")
        assert (await http.get("/healthz")).text == "ok\n"
