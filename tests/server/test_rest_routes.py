"""REST offers what gRPC offers, and fails as it fails."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, cast

import grpc.aio
import httpx
import pytest
import redis
from rest_client import CALLS
from table_user import TableUser

from groupreplay import AsyncClient, TableConfig
from groupreplay.errors import ERRORS
from groupreplay.v1 import replay_service_pb2 as pb
from groupreplay.v1.replay_service_pb2_grpc import ReplayServiceStub
from groupreplay_server.api.rest.problems import problem_response
from groupreplay_server.api.rest.routes import ROUTES
from groupreplay_server.app import RunningServer


def test_every_rpc_has_one_route_and_every_route_an_rpc() -> None:
    """The doors offer the same; paths are a promise, so they are written down here again."""
    rpcs = [method.name for method in pb.DESCRIPTOR.services_by_name["ReplayService"].methods]
    assert sorted(route.rpc for route in ROUTES) == sorted(rpcs) == sorted(CALLS)
    for route in ROUTES:
        parts = [f"{{{route.field_of(it[1:-1])}}}" if it.startswith("{") else it for it in route.path.split("/")]
        assert f"{route.verb} {'/'.join(parts)}" == CALLS[route.rpc]


@pytest.mark.parametrize("reason", sorted(ERRORS))
def test_every_reason_comes_out_with_its_status(reason: str) -> None:
    """By the table that gRPC and the SDK go by; who may retry is told when."""
    cls = ERRORS[reason]
    response = problem_response(cls("what was tried"))
    body = json.loads(bytes(response.body))
    assert response.status_code == body["status"] == cls.http_status
    assert (body["reason"], body["detail"], body["retryable"]) == (reason, "what was tried", cls.retryable)
    assert ("retry-after" in response.headers) == cls.retryable


async def test_rest_calls_are_counted_with_those_of_grpc(
    server: RunningServer, client: AsyncClient, clean_redis: redis.Redis
) -> None:
    """By operation and reason; a caller who hung up is no fault of the service."""
    table = TableUser(client, clean_redis, "run", "train")
    await client.create_table(run="run", table="train", config=TableConfig())
    path = "/v1/runs/run/tables/train"
    async with httpx.AsyncClient(base_url=f"http://{server.http_address}", timeout=None) as http:
        assert (await http.get("/v1/runs/run/tables/no")).status_code == 404
        assert (await http.get(f"{path}/history?timeout_s=soon")).status_code == 422
        request = {"batch_size": 9, "lease_id": "l"}
        waiting = asyncio.create_task(http.post(f"{path}/batches/next?timeout_s=3600", json=request))
        await table.until(missing=9)
        waiting.cancel()
        await table.until(missing=0)
        async with asyncio.timeout(60):
            while 'method="NextBatch",reason="CANCELLED"' not in (page := (await http.get("/metrics")).text):
                pass
    assert 'groupreplay_call_seconds_count{method="DescribeTable",reason="UNKNOWN_TABLE"} 1.0' in page
    assert 'groupreplay_call_seconds_count{method="GetTableHistory",reason="INVALID_REQUEST"} 1.0' in page
    assert 'reason="INTERNAL"' not in page


async def never() -> AsyncIterator[pb.SnapshotPart]:
    """Send nothing, and do not end."""
    await asyncio.Event().wait()
    yield pb.SnapshotPart()


async def test_a_call_is_counted_by_the_reason_that_its_caller_is_told(
    server: RunningServer, client: AsyncClient, clean_redis: redis.Redis
) -> None:
    """A body that comes too late, a stream whose request is no good, a deadline: none is INTERNAL, which alerts."""
    await client.create_table(run="run", table="train", config=TableConfig())
    path = "/v1/runs/run/tables/train"
    host, _, port = server.http_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST {path}/groups?timeout_s=0.2 HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n"
    writer.write(f"{head}Content-Type: application/json\r\n\r\n{{".encode())
    assert b"DEADLINE_EXCEEDED" in await asyncio.wait_for(reader.read(), 60)
    writer.close()
    async with (
        httpx.AsyncClient(base_url=f"http://{server.http_address}", timeout=60) as http,
        grpc.aio.insecure_channel(server.grpc_address) as channel,
    ):
        stub: Any = ReplayServiceStub(cast(Any, channel))
        assert (await http.post(f"{path}/batches/next", json={"size": 1})).status_code == 422
        with pytest.raises(grpc.aio.AioRpcError, match="Restore did not end within the caller's deadline"):
            await stub.Restore(never(), timeout=2.0)
        async with asyncio.timeout(60):
            while 'method="Restore"' not in (page := (await http.get("/metrics")).text):
                pass
    assert 'groupreplay_call_seconds_count{method="Insert",reason="DEADLINE_EXCEEDED"} 1.0' in page
    assert 'groupreplay_call_seconds_count{method="NextBatch",reason="INVALID_REQUEST"} 1.0' in page
    assert 'groupreplay_call_seconds_count{method="Restore",reason="STORE_UNAVAILABLE"} 1.0' in page
    assert 'reason="INTERNAL"' not in page
