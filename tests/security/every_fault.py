"""Each way a call can be wrong, at each door: what is asked, and what must come back."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import httpx
import orjson
import pytest
from security.conftest import ADMIN_TOKEN
from security.every_call import REASON_METADATA, over_grpc

from groupreplay.v1 import replay_service_pb2 as pb
from groupreplay_server.api.atropos.bodies import MAX_BODY_BYTES
from groupreplay_server.api.grpc_api import MAX_MESSAGE_BYTES
from groupreplay_server.api.rest.bodies import MAX_REQUEST_BYTES

Code = grpc.StatusCode
NAMES: dict[str, Any] = {"run": "math", "table": "train"}
DESCRIBE = pb.DescribeTableRequest(**NAMES).SerializeToString()
TABLE = "/v1/runs/math/tables/train"
ATROPOS = "/atropos/math/train"


@dataclass(frozen=True, slots=True)
class Doors:
    """All doors of a service with a table math/train, and tokens."""

    channel: grpc.aio.Channel
    http: httpx.AsyncClient
    tokens: dict[str, str]

    async def grpc(self, rpc: str, request: bytes, token: str | None = ADMIN_TOKEN) -> tuple[Code, str]:
        """Send bytes over gRPC; return code and reason."""
        return await over_grpc(self.channel, rpc, request, token)

    async def no_such_rpc(self) -> tuple[Code, str]:
        """Call what is not there; return code and reason."""
        call = self.channel.unary_unary("/groupreplay.v1.ReplayService/NoSuchCall")  # type: ignore[var-annotated]
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(b"", metadata=(("authorization", f"Bearer {ADMIN_TOKEN}"),))
        return raised.value.code(), str(dict(raised.value.trailing_metadata() or ()).get(REASON_METADATA, ""))

    async def announcing(self, path: str, size: int) -> tuple[int, str]:
        """Begin a POST whose body has so many bytes, and send none; return status and reason."""
        reader, writer = await asyncio.open_connection(self.http.base_url.host, self.http.base_url.port)
        writer.write(
            f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN_TOKEN}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {size}\r\n\r\n".encode()
        )
        async with asyncio.timeout(20):
            head, _, problem = (await reader.readuntil(b"}")).partition(b"\r\n\r\n")
        writer.close()
        assert b"connection: close" in head.lower()
        return int(head.split()[1]), orjson.loads(problem)["reason"]

    async def rest(
        self, verb: str, path: str, content: bytes = b"", token: str | None = ADMIN_TOKEN, **headers: str
    ) -> tuple[int, str]:
        """Send a request over HTTP; return status and reason."""
        answer = await self._http(verb, path, content, token, headers)
        assert answer.headers["content-type"] == "application/problem+json", answer.text
        problem = answer.json()
        assert problem["status"] == answer.status_code
        return answer.status_code, problem["reason"]

    async def atropos(
        self, verb: str, path: str, content: bytes = b"", token: str | None = ADMIN_TOKEN
    ) -> tuple[int, str]:
        """Send a request to the Atropos API, which has errors of FastAPI's form; return status and reason."""
        answer = await self._http(verb, f"{ATROPOS}{path}", content, token, {})
        problem = answer.json()
        assert problem["detail"]
        return answer.status_code, problem["reason"]

    async def _http(
        self, verb: str, path: str, content: bytes, token: str | None, headers: dict[str, str]
    ) -> httpx.Response:
        shown = {} if token is None else {"authorization": f"Bearer {token}"}
        if content:
            shown["content-type"] = "application/json"
        return await self.http.request(verb, path, content=content, headers=shown | headers)

    async def expired(self) -> str:
        """Return a token that was let in before, and has ended."""
        while (await self.grpc("DescribeTable", DESCRIBE, self.tokens["expired"]))[0] is Code.OK:
            pass
        return self.tokens["expired"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One fault at one door."""

    ask: Callable[[Doors], Awaitable[tuple[Any, str]]]
    outcome: tuple[Any, str]
    """Status of the door and ErrorReason."""


async def _with_expired_token(ask: Callable[[str], Awaitable[tuple[Any, str]]], doors: Doors) -> tuple[Any, str]:
    return await ask(await doors.expired())


FAULTS: dict[str, dict[str, Cell]] = {
    "malformed": {
        "grpc": Cell(
            lambda it: it.grpc("NextBatch", pb.NextBatchRequest(lease_id="/", **NAMES).SerializeToString()),
            (Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
        ),
        "rest": Cell(lambda it: it.rest("POST", f"{TABLE}/batches/next", b"{"), (422, "INVALID_REQUEST")),
        "atropos": Cell(lambda it: it.atropos("POST", "/register", b"{"), (422, "INVALID_REQUEST")),
    },
    "of another type": {
        "grpc": Cell(lambda it: it.grpc("NextBatch", b"\xff\xff\xff"), (Code.INVALID_ARGUMENT, "INVALID_REQUEST")),
        "rest": Cell(
            lambda it: it.rest("POST", f"{TABLE}/batches/next", b"{}", **{"content-type": "text/plain"}),
            (415, "INVALID_REQUEST"),
        ),
        "atropos": Cell(lambda it: it.atropos("POST", "/scored_data", b"[7]"), (422, "INVALID_REQUEST")),
    },
    "oversized message": {
        "grpc": Cell(
            lambda it: it.grpc("Insert", bytes(MAX_MESSAGE_BYTES + 1)), (Code.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE")
        ),
        "rest": Cell(
            lambda it: it.announcing(f"{TABLE}/groups/locate", MAX_REQUEST_BYTES + 1), (413, "MESSAGE_TOO_LARGE")
        ),
        "atropos": Cell(
            lambda it: it.announcing(f"{ATROPOS}/scored_data_list", MAX_BODY_BYTES + 1), (413, "MESSAGE_TOO_LARGE")
        ),
    },
    "oversized message of a stream": {
        "grpc": Cell(
            lambda it: it.grpc("InsertStream", bytes(MAX_MESSAGE_BYTES + 1)),
            (Code.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE"),
        ),
    },
    "oversized headers": {
        "grpc": Cell(
            lambda it: it.grpc("DescribeTable", DESCRIBE, "x" * 20_000), (Code.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE")
        ),
        "rest": Cell(lambda it: it.rest("GET", TABLE, token="x" * 40_000), (431, "MESSAGE_TOO_LARGE")),
        "atropos": Cell(lambda it: it.atropos("GET", "/info", token="x" * 40_000), (431, "MESSAGE_TOO_LARGE")),
    },
    "unauthenticated": {
        "grpc": Cell(lambda it: it.grpc("DescribeTable", DESCRIBE, None), (Code.UNAUTHENTICATED, "UNAUTHENTICATED")),
        "rest": Cell(lambda it: it.rest("GET", TABLE, token=None), (401, "UNAUTHENTICATED")),
        "atropos": Cell(lambda it: it.atropos("GET", "/info", token=None), (401, "UNAUTHENTICATED")),
    },
    "revoked token": {
        "grpc": Cell(
            lambda it: it.grpc("DescribeTable", DESCRIBE, it.tokens["revoked"]),
            (Code.UNAUTHENTICATED, "UNAUTHENTICATED"),
        ),
        "rest": Cell(lambda it: it.rest("GET", TABLE, token=it.tokens["revoked"]), (401, "UNAUTHENTICATED")),
        "atropos": Cell(lambda it: it.atropos("GET", "/info", token=it.tokens["revoked"]), (401, "UNAUTHENTICATED")),
    },
    "wrong scope": {
        "grpc": Cell(
            lambda it: it.grpc("ResetTable", pb.ResetTableRequest(**NAMES).SerializeToString(), it.tokens["producer"]),
            (Code.PERMISSION_DENIED, "PERMISSION_DENIED"),
        ),
        "rest": Cell(
            lambda it: it.rest("POST", f"{TABLE}/reset", b"{}", it.tokens["producer"]), (403, "PERMISSION_DENIED")
        ),
        "atropos": Cell(
            lambda it: it.atropos("GET", "/reset_data", token=it.tokens["producer"]), (403, "PERMISSION_DENIED")
        ),
    },
    "wrong run": {
        "grpc": Cell(
            lambda it: it.grpc("DescribeTable", DESCRIBE, it.tokens["other run"]),
            (Code.PERMISSION_DENIED, "PERMISSION_DENIED"),
        ),
        "rest": Cell(lambda it: it.rest("GET", TABLE, token=it.tokens["other run"]), (403, "PERMISSION_DENIED")),
        "atropos": Cell(
            lambda it: it.atropos("GET", "/info", token=it.tokens["other run"]), (403, "PERMISSION_DENIED")
        ),
    },
    "expired token": {
        "grpc": Cell(
            lambda it: _with_expired_token(lambda token: it.grpc("DescribeTable", DESCRIBE, token), it),
            (Code.UNAUTHENTICATED, "UNAUTHENTICATED"),
        ),
        "rest": Cell(
            lambda it: _with_expired_token(lambda token: it.rest("GET", TABLE, token=token), it),
            (401, "UNAUTHENTICATED"),
        ),
        "atropos": Cell(
            lambda it: _with_expired_token(lambda token: it.atropos("GET", "/info", token=token), it),
            (401, "UNAUTHENTICATED"),
        ),
    },
    "expired lease": {
        "grpc": Cell(
            lambda it: it.grpc("Commit", pb.CommitRequest(lease_id="given-back", step=1, **NAMES).SerializeToString()),
            (Code.FAILED_PRECONDITION, "LEASE_EXPIRED"),
        ),
        "rest": Cell(
            lambda it: it.rest("POST", f"{TABLE}/leases/given-back/commit", b'{"step":1}'), (409, "LEASE_EXPIRED")
        ),
    },
    "expired wait": {
        "grpc": Cell(
            lambda it: it.grpc(
                "NextBatch", pb.NextBatchRequest(lease_id="l", batch_size=9, **NAMES).SerializeToString()
            ),
            (Code.DEADLINE_EXCEEDED, "BATCH_NOT_READY"),
        ),
        "rest": Cell(
            lambda it: it.rest("POST", f"{TABLE}/batches/next?timeout_s=0", b'{"lease_id":"l","batch_size":9}'),
            (504, "BATCH_NOT_READY"),
        ),
    },
    "unknown run": {
        "grpc": Cell(
            lambda it: it.grpc("DescribeTable", pb.DescribeTableRequest(run="no", table="train").SerializeToString()),
            (Code.NOT_FOUND, "UNKNOWN_RUN"),
        ),
        "rest": Cell(lambda it: it.rest("GET", "/v1/runs/no/tables/train"), (404, "UNKNOWN_RUN")),
    },
    "unknown table": {
        "grpc": Cell(
            lambda it: it.grpc("DescribeTable", pb.DescribeTableRequest(run="math", table="no").SerializeToString()),
            (Code.NOT_FOUND, "UNKNOWN_TABLE"),
        ),
        "rest": Cell(lambda it: it.rest("GET", "/v1/runs/math/tables/no"), (404, "UNKNOWN_TABLE")),
    },
    "unknown lease": {
        "grpc": Cell(
            lambda it: it.grpc("Release", pb.ReleaseRequest(lease_id="no", **NAMES).SerializeToString()),
            (Code.NOT_FOUND, "UNKNOWN_LEASE"),
        ),
        "rest": Cell(lambda it: it.rest("POST", f"{TABLE}/leases/no/release", b"{}"), (404, "UNKNOWN_LEASE")),
    },
    "unknown token": {
        "grpc": Cell(
            lambda it: it.grpc("RevokeToken", pb.RevokeTokenRequest(name="no").SerializeToString()),
            (Code.NOT_FOUND, "UNKNOWN_TOKEN"),
        ),
        "rest": Cell(lambda it: it.rest("DELETE", "/v1/tokens/no"), (404, "UNKNOWN_TOKEN")),
    },
    "unknown call": {
        "grpc": Cell(lambda it: it.no_such_rpc(), (Code.UNIMPLEMENTED, "INVALID_REQUEST")),
        "rest": Cell(lambda it: it.rest("GET", "/v1/nothing"), (404, "INVALID_REQUEST")),
        "atropos": Cell(lambda it: it.atropos("GET", "/nothing"), (404, "INVALID_REQUEST")),
    },
}
"""Fault -> door -> what comes of it. Every kind of fault has a case at every door; the Atropos API makes what is not
there, and has neither leases nor calls that wait."""
KINDS = ("malformed", "oversized", "unauthenticated", "wrong", "expired", "unknown")
DOORS = ("grpc", "rest", "atropos")
CELLS = [(fault, door) for fault, doors in FAULTS.items() for door in doors]
