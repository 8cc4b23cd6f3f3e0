"""Calls that are refused at a door are in the metrics, under a bounded set of names."""

import re
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
import redis
from security.conftest import ADMIN_TOKEN, make_token
from security.every_call import over_grpc, request_about

from groupreplay import AsyncClient, Scope
from groupreplay_server.api.atropos.access import ROOT_PATHS, RPC_OF
from groupreplay_server.api.http_calls import call_name
from groupreplay_server.api.metrics import UNKNOWN
from groupreplay_server.api.rest.routes import ROUTES
from groupreplay_server.app import RunningServer, running_server
from groupreplay_server.settings import ServerSettings

TABLE = "/v1/runs/math/tables/train"
ADMIN = {"authorization": f"Bearer {ADMIN_TOKEN}"}


@pytest.fixture
async def http(secured: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client without a token."""
    async with httpx.AsyncClient(base_url=f"http://{secured.http_address}") as opened:
        yield opened


async def counted(http: httpx.AsyncClient) -> dict[tuple[str, str], float]:
    """Return how many calls ended how, by method and reason, but for the reading of metrics."""
    lines = (await http.get("/metrics", headers=ADMIN)).text
    found = re.findall(r'^groupreplay_call_seconds_count\{method="(.*)",reason="(.*)"\} (.*)$', lines, re.MULTILINE)
    return {(method, reason): float(value) for method, reason, value in found}


async def test_http_requests_without_a_good_token_are_counted(http: httpx.AsyncClient) -> None:
    """By the call that they would have been; whatever else is asked for is one."""
    assert (await http.get(TABLE)).status_code == 401
    assert (await http.get(TABLE, headers={"authorization": "Bearer " + "x" * 40_000})).status_code == 431
    for number in range(3):
        assert (await http.get(f"/guess/{number}")).status_code == 401
    assert (await http.post(TABLE)).status_code == 401  # a verb that the path does not have
    assert (await http.get("/atropos/math/train/batch")).status_code == 401
    assert (await http.get("/metrics")).status_code == 401
    assert await counted(http) == {
        ("DescribeTable", "UNAUTHENTICATED"): 1,
        ("DescribeTable", "MESSAGE_TOO_LARGE"): 1,
        (UNKNOWN, "UNAUTHENTICATED"): 4,
        ("Atropos.batch", "UNAUTHENTICATED"): 1,
        ("Metrics", "UNAUTHENTICATED"): 1,
    }


async def test_http_requests_of_the_wrong_scope_or_for_nothing_are_counted(
    http: httpx.AsyncClient, admin: AsyncClient
) -> None:
    """What the door lets in and a route refuses, too."""
    producer = {"authorization": f"Bearer {await make_token(admin, Scope.PRODUCER, run='math')}"}
    assert (await http.post(f"{TABLE}/reset", headers=producer, json={})).status_code == 403
    assert (await http.get("/metrics", headers=producer)).status_code == 403
    assert (await http.get("/nothing", headers=producer)).status_code == 404
    assert (await http.delete(TABLE, headers=producer)).status_code == 405
    found = await counted(http)
    assert found["ResetTable", "PERMISSION_DENIED"] == 1
    assert found["Metrics", "PERMISSION_DENIED"] == 1
    assert found[UNKNOWN, "INVALID_REQUEST"] == 2


async def test_requests_over_the_rate_limit_are_counted(clean_redis: redis.Redis, settings: ServerSettings) -> None:
    """At both doors, by the same name."""
    slow = replace(settings, admin_token_file=None, max_calls_per_s=0.5, open_metrics=True)
    request = request_about("DescribeTable", "math").SerializeToString()
    async with (
        running_server(slow) as server,
        httpx.AsyncClient(base_url=f"http://{server.http_address}") as http,
        grpc.aio.insecure_channel(server.grpc_address) as channel,
    ):
        while (await http.get(TABLE)).status_code != 429:
            pass
        while (await over_grpc(channel, "DescribeTable", request, None))[1] != "RATE_LIMITED":
            pass
        assert (await counted(http))["DescribeTable", "RATE_LIMITED"] == 2


async def test_refused_grpc_calls_are_counted(http: httpx.AsyncClient, secured: RunningServer) -> None:
    """Those without a token, those that are not there, and those that are too large."""
    async with grpc.aio.insecure_channel(secured.grpc_address) as channel:
        no_such_call: Any = channel.unary_unary("/groupreplay.v1.ReplayService/NoSuchCall")
        for token in (None, "x" * 10_000):
            await over_grpc(channel, "DescribeTable", b"", token)
        for metadata in ((), (("authorization", f"Bearer {ADMIN_TOKEN}"),)):
            with pytest.raises(grpc.RpcError):
                await no_such_call(b"", metadata=metadata)
    assert await counted(http) == {
        ("DescribeTable", "UNAUTHENTICATED"): 1,
        ("DescribeTable", "MESSAGE_TOO_LARGE"): 1,
        (UNKNOWN, "UNAUTHENTICATED"): 1,
        (UNKNOWN, "INVALID_REQUEST"): 1,
    }


def test_every_route_has_its_name_and_nothing_else_has_one() -> None:
    """The names are those that the calls themselves are counted by."""
    for route in ROUTES:
        path = re.sub(r"\{\w+\}", "x", route.path)
        assert call_name(route.verb, path, atropos_at_root=False) == route.rpc
    for path in ROOT_PATHS:
        name = call_name("GET", f"/atropos/r/t{path}", atropos_at_root=False)
        assert name.removeprefix("Atropos.") in RPC_OF
        assert call_name("GET", path, atropos_at_root=True) == name
        assert call_name("GET", path, atropos_at_root=False) == UNKNOWN
    for path in (
        "",
        "/atropos",
        "/atropos/r/t",
        "/atropos/r/t/batch/x",
        "/atropos/r/t/no",
        "/v1/runs/a/b/tables/t",
        "//",
    ):
        assert call_name("GET", path, atropos_at_root=True) == UNKNOWN, path
