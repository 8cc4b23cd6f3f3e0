"""SIGTERM over REST: as over gRPC, calls that wait are sent elsewhere, running ones end, new ones are refused."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import redis
from processes import ServerProcess
from rest_client import LINES
from rest_json import write_group
from samples import make_group
from service_user import settings
from table_user import TableUser, connect

from groupreplay.convert import group_to_wire
from groupreplay_server.app import running_server

TABLE = "/v1/runs/run/tables/train"
NAMES: dict[str, Any] = {"run": "run", "table": "train"}


@pytest.fixture
async def table(process: ServerProcess, clean_redis: redis.Redis) -> AsyncIterator[TableUser]:
    """A table of that service."""
    async with connect("rest", process.http_address) as client:
        await client.create_table(**NAMES)
        yield TableUser(client, clean_redis, "run", "train")


@pytest.fixture
async def http(process: ServerProcess) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of that service."""
    async with httpx.AsyncClient(base_url=f"http://{process.http_address}", timeout=30) as opened:
        yield opened


def group_line(group_id: str) -> bytes:
    """Return a line of NDJSON with one group."""
    return json.dumps(write_group(*group_to_wire(make_group(group_id)))).encode() + b"\n"


async def test_calls_that_wait_are_told_to_go_elsewhere_and_the_service_ends_well(
    process: ServerProcess, table: TableUser, http: httpx.AsyncClient
) -> None:
    """At once, with a reason that clients repeat, and exit status 0."""
    request = {"batch_size": 1, "lease_id": "l"}
    batch = asyncio.create_task(http.post(f"{TABLE}/batches/next?timeout_s=3600", json=request))
    watch = asyncio.create_task(http.get("/v1/runs/run/policy/watch?after_version=0&timeout_s=3600"))
    await table.until(missing=1)
    ended = asyncio.create_task(asyncio.to_thread(process.terminate))
    for answer in (await batch, await watch):
        assert (answer.status_code, answer.json()["reason"]) == (503, "SHUTTING_DOWN")
        assert answer.headers["retry-after"] == "1"
    assert await ended == 0
    assert table.redis.hlen(table.key("waiting")) == 0


async def test_running_calls_end_and_new_ones_are_refused(
    process: ServerProcess, table: TableUser, http: httpx.AsyncClient
) -> None:
    """A producer in the middle of a body finishes it; nobody else is let in, but to ask for health."""
    draining = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield group_line("a")
        await draining.wait()
        yield group_line("b")

    stream = asyncio.create_task(http.post(f"{TABLE}/groups/stream", content=body(), headers=LINES))
    await table.until(fresh=1)
    ended = asyncio.create_task(asyncio.to_thread(process.terminate))
    async with asyncio.timeout(60):
        while (await http.get("/readyz")).json()["obstacle"] != "draining":
            pass
    for path in (TABLE, "/atropos/run/train/batch"):
        late = await http.get(path)
        assert (late.status_code, late.json()["reason"]) == (503, "SHUTTING_DOWN")
    metrics = (await http.get("/metrics")).text
    for method in ("DescribeTable", "Atropos.batch"):
        assert f'groupreplay_call_seconds_count{{method="{method}",reason="SHUTTING_DOWN"}} 1.0' in metrics
    draining.set()
    *results, end = [json.loads(line) for line in (await stream).text.splitlines()]
    assert [line["result"]["outcome"] for line in results] == ["inserted", "inserted"]
    assert end == {"end": {"lines": 2}}
    assert await ended == 0


async def test_a_call_that_does_not_end_is_cut_after_drain_s(clean_redis: redis.Redis, redis_url: str) -> None:
    """A body that says nothing more cannot keep the service from ending."""
    async with running_server(settings(redis_url, drain_s=0.2)) as server:
        async with connect("rest", server.http_address) as client:
            table = TableUser(client, clean_redis, "run", "train")
            await client.create_table(**NAMES)
            host, _, port = server.http_address.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            head = f"POST {TABLE}/groups/stream HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n"
            writer.write(f"{head}Content-Type: application/x-ndjson\r\n\r\n".encode() + group_line("a"))
            await table.until(fresh=1)
        started = time.monotonic()
    assert time.monotonic() - started < 20
    assert b'"end"' not in await reader.read()
    writer.close()
