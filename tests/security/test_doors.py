"""Each way a call can be wrong has a status of its own at each door, and one reason for both."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import httpx
import orjson
import pytest
from samples import make_group
from security.conftest import ADMIN_TOKEN, make_token
from security.every_call import over_grpc

from groupreplay import AsyncClient, Scope, TableConfig
from groupreplay.convert import group_to_wire
from groupreplay.groups import now_ms
from groupreplay.v1 import error_pb2, group_pb2
from groupreplay.v1 import replay_service_pb2 as pb
from groupreplay_server.api.grpc_server import MAX_MESSAGE_BYTES
from groupreplay_server.api.rest.bodies import MAX_REQUEST_BYTES
from groupreplay_server.api.rest.groups import group_to_json
from groupreplay_server.app import RunningServer

Code = grpc.StatusCode
NO_LEASE_ID = pb.NextBatchRequest(run="math", table="train", lease_id="/").SerializeToString()
DESCRIBE = pb.DescribeTableRequest(run="math", table="train").SerializeToString()


@dataclass(frozen=True, slots=True)
class Doors:
    """Both doors of a service with a table math/train, and tokens."""

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
        return raised.value.code(), ""

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
        return int(head.split()[1]), orjson.loads(problem)["reason"]

    async def rest(
        self, verb: str, path: str, content: bytes = b"", token: str | None = ADMIN_TOKEN, **headers: str
    ) -> tuple[int, str]:
        """Send a request over HTTP; return status and reason."""
        shown = {} if token is None else {"authorization": f"Bearer {token}"}
        if content:
            shown["content-type"] = "application/json"
        answer = await self.http.request(verb, path, content=content, headers=shown | headers)
        assert answer.headers["content-type"] == "application/problem+json", answer.text
        problem = answer.json()
        assert problem["status"] == answer.status_code
        return answer.status_code, problem["reason"]


@pytest.fixture
async def doors(secured: RunningServer, admin: AsyncClient) -> AsyncIterator[Doors]:
    """Open both."""
    await admin.create_table(run="math", table="train", config=TableConfig(max_group_bytes=2048))
    tokens = {
        "producer": await make_token(admin, Scope.PRODUCER),
        "other run": await make_token(admin, Scope.ADMIN, run="other"),
        "expired": await make_token(admin, Scope.ADMIN, name="brief", ends_ms=now_ms() + 250),
        "revoked": await make_token(admin, Scope.ADMIN, name="revoked"),
    }
    await admin.revoke_token("revoked")
    async with (
        grpc.aio.insecure_channel(secured.grpc_address) as channel,
        httpx.AsyncClient(base_url=f"http://{secured.http_address}", timeout=30) as http,
    ):
        yield Doors(channel, http, tokens)


Answers = Awaitable[tuple[Any, str]]
TABLE = "/v1/runs/math/tables/train"
CASES: dict[str, tuple[Callable[[Doors], Answers], tuple[Any, str], Callable[[Doors], Answers], tuple[int, str]]] = {
    "malformed": (
        lambda it: it.grpc(
            "NextBatch", pb.NextBatchRequest(run="math", table="train", lease_id="/").SerializeToString()
        ),
        (Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
        lambda it: it.rest("POST", f"{TABLE}/batches/next", b"{"),
        (422, "INVALID_REQUEST"),
    ),
    "of another type": (
        lambda it: it.grpc("NextBatch", b"\xff\xff\xff"),
        (Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
        lambda it: it.rest("POST", f"{TABLE}/batches/next", b"{}", **{"content-type": "text/plain"}),
        (415, "INVALID_REQUEST"),
    ),
    "oversized message": (
        lambda it: it.grpc("Insert", bytes(MAX_MESSAGE_BYTES + 1)),
        (Code.RESOURCE_EXHAUSTED, ""),  # grpc's own answer: it has read the length only
        lambda it: it.announcing(f"{TABLE}/groups/locate", MAX_REQUEST_BYTES + 1),
        (413, "GROUP_TOO_LARGE"),
    ),
    "oversized headers": (
        lambda it: it.grpc("DescribeTable", DESCRIBE, "x" * 20_000),
        (Code.RESOURCE_EXHAUSTED, ""),
        lambda it: it.rest("GET", TABLE, token="x" * 20_000),
        (401, "UNAUTHENTICATED"),  # h11 reads 64 KiB of headers; a token of that size is just not ours
    ),
    "unauthenticated": (
        lambda it: it.grpc("DescribeTable", DESCRIBE, None),
        (Code.UNAUTHENTICATED, "UNAUTHENTICATED"),
        lambda it: it.rest("GET", TABLE, token=None),
        (401, "UNAUTHENTICATED"),
    ),
    "revoked token": (
        lambda it: it.grpc("DescribeTable", DESCRIBE, it.tokens["revoked"]),
        (Code.UNAUTHENTICATED, "UNAUTHENTICATED"),
        lambda it: it.rest("GET", TABLE, token=it.tokens["revoked"]),
        (401, "UNAUTHENTICATED"),
    ),
    "wrong scope": (
        lambda it: it.grpc(
            "ResetTable", pb.ResetTableRequest(run="math", table="train").SerializeToString(), it.tokens["producer"]
        ),
        (Code.PERMISSION_DENIED, "PERMISSION_DENIED"),
        lambda it: it.rest("POST", f"{TABLE}/reset", b"{}", it.tokens["producer"]),
        (403, "PERMISSION_DENIED"),
    ),
    "wrong run": (
        lambda it: it.grpc("DescribeTable", DESCRIBE, it.tokens["other run"]),
        (Code.PERMISSION_DENIED, "PERMISSION_DENIED"),
        lambda it: it.rest("GET", TABLE, token=it.tokens["other run"]),
        (403, "PERMISSION_DENIED"),
    ),
    "unknown run": (
        lambda it: it.grpc("DescribeTable", pb.DescribeTableRequest(run="no", table="train").SerializeToString()),
        (Code.NOT_FOUND, "UNKNOWN_RUN"),
        lambda it: it.rest("GET", "/v1/runs/no/tables/train"),
        (404, "UNKNOWN_RUN"),
    ),
    "unknown table": (
        lambda it: it.grpc("DescribeTable", pb.DescribeTableRequest(run="math", table="no").SerializeToString()),
        (Code.NOT_FOUND, "UNKNOWN_TABLE"),
        lambda it: it.rest("GET", "/v1/runs/math/tables/no"),
        (404, "UNKNOWN_TABLE"),
    ),
    "unknown lease": (
        lambda it: it.grpc("Release", pb.ReleaseRequest(run="math", table="train", lease_id="no").SerializeToString()),
        (Code.NOT_FOUND, "UNKNOWN_LEASE"),
        lambda it: it.rest("POST", f"{TABLE}/leases/no/release", b"{}"),
        (404, "UNKNOWN_LEASE"),
    ),
    "unknown token": (
        lambda it: it.grpc("RevokeToken", pb.RevokeTokenRequest(name="no").SerializeToString()),
        (Code.NOT_FOUND, "UNKNOWN_TOKEN"),
        lambda it: it.rest("DELETE", "/v1/tokens/no"),
        (404, "UNKNOWN_TOKEN"),
    ),
    "unknown call": (
        lambda it: it.no_such_rpc(),
        (Code.UNIMPLEMENTED, ""),
        lambda it: it.rest("GET", "/v1/nothing"),
        (404, "INVALID_REQUEST"),
    ),
}


@pytest.mark.parametrize("case", CASES)
async def test_each_fault_has_its_status_and_reason_at_both_doors(doors: Doors, case: str) -> None:
    """A caller can tell what to mend, whichever door it came to."""
    ask_grpc, of_grpc, ask_rest, of_rest = CASES[case]
    assert await ask_grpc(doors) == of_grpc
    assert await ask_rest(doors) == of_rest


async def test_a_token_that_ends_is_refused_at_both_doors(doors: Doors) -> None:
    """It was let in before; from the moment on it is as if there were none."""
    while (answer := await doors.grpc("DescribeTable", DESCRIBE, doors.tokens["expired"]))[0] is Code.OK:
        pass
    assert answer == (Code.UNAUTHENTICATED, "UNAUTHENTICATED")
    assert await doors.rest("GET", TABLE, token=doors.tokens["expired"]) == (401, "UNAUTHENTICATED")


async def test_an_oversized_group_is_refused_by_its_result_at_both_doors(doors: Doors) -> None:
    """It does not hold up its neighbours, so the call itself succeeds."""
    header, payload = group_to_wire(make_group("big", prompt_text="x" * 4000))
    group = group_pb2.RolloutGroup(header=header, payload=payload)
    request = pb.InsertRequest(run="math", table="train", groups=[group]).SerializeToString()
    call = doors.channel.unary_unary("/groupreplay.v1.ReplayService/Insert")  # type: ignore[var-annotated]
    answer = await call(request, metadata=(("authorization", f"Bearer {ADMIN_TOKEN}"),))
    [result] = pb.InsertResponse.FromString(answer).results
    assert error_pb2.ErrorReason.Name(result.reason) == "GROUP_TOO_LARGE"
    content = orjson.dumps({"groups": [group_to_json(header, payload, as_base64=True)]})
    headers = {"authorization": f"Bearer {ADMIN_TOKEN}", "content-type": "application/json"}
    [told] = (await doors.http.post(f"{TABLE}/groups", content=content, headers=headers)).json()["results"]
    assert (told["outcome"], told["reason"]) == ("refused", "GROUP_TOO_LARGE")
