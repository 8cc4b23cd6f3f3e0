"""AsyncClient over REST: its own code, with HTTP in place of gRPC below it, so that one test holds for both doors."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any, Self, cast
from urllib.parse import quote

import grpc
import httpx
from rest_json import read_group, read_log_ratios, read_message, write_group, write_message

from groupreplay import AsyncClient, convert
from groupreplay.errors import ERRORS
from groupreplay.group_messages import GroupStub
from groupreplay.parts import Part, PartAssembler, split_group
from groupreplay.v1 import group_pb2
from groupreplay.v1 import replay_service_pb2 as pb

TABLE = "/v1/runs/{run}/tables/{table}"
POLICY = "/v1/runs/{policy.run}/policy"
CALLS = {
    "Insert": f"POST {TABLE}/groups",
    "InsertStream": f"POST {TABLE}/groups/stream",
    "NextBatch": f"POST {TABLE}/batches/next",
    "ReadLease": f"POST {TABLE}/leases/{{lease_id}}/read",
    "Sample": f"POST {TABLE}/batches/sample",
    "Commit": f"POST {TABLE}/leases/{{lease_id}}/commit",
    "Release": f"POST {TABLE}/leases/{{lease_id}}/release",
    "ExtendLease": f"POST {TABLE}/leases/{{lease_id}}/extend",
    "RequestAdmission": f"POST {TABLE}/producers/{{producer_id}}/admission",
    "GetLineage": f"GET {TABLE}/steps/{{step}}",
    "GetTableHistory": f"GET {TABLE}/history",
    "ReplayStep": f"GET {TABLE}/steps/{{step}}/batch",
    "Beat": f"POST {TABLE}/producers/{{producer_id}}/beat",
    "Diagnose": f"GET {TABLE}/diagnosis",
    "UpdatePriorities": f"POST {TABLE}/groups/feedback",
    "LocateGroups": f"POST {TABLE}/groups/locate",
    "GetGroups": f"POST {TABLE}/groups/read",
    "ListGroups": f"GET {TABLE}/groups",
    "DeleteGroups": f"POST {TABLE}/groups/delete",
    "PushRollouts": f"POST {TABLE}/rollouts",
    "PushRolloutsStream": f"POST {TABLE}/rollouts/stream",
    "CreateTable": f"PUT {TABLE}",
    "UpdateTable": f"PUT {TABLE}/config",
    "ResetTable": f"POST {TABLE}/reset",
    "DescribeTable": f"GET {TABLE}",
    "ListTables": "GET /v1/tables",
    "AdvancePolicy": f"POST {POLICY}/advance",
    "RewindPolicy": f"POST {POLICY}/rewind",
    "ResolvePolicy": "GET /v1/runs/{run}/policy/resolve",
    "SetQuota": "PUT /v1/runs/{run}/quota",
    "GetQuota": "GET /v1/runs/{run}/quota",
    "GetPolicy": "GET /v1/runs/{run}/policy",
    "WatchPolicy": "GET /v1/runs/{run}/policy/watch",
    "GetServerInfo": "GET /v1/info",
    "Snapshot": f"GET {TABLE}/snapshot",
    "Restore": "POST /v1/runs/{header.table.run}/tables/{header.table.table}/restore",
    "CreateToken": "PUT /v1/tokens/{token.name}",
    "ListTokens": "GET /v1/tokens",
    "RevokeToken": "DELETE /v1/tokens/{name}",
}
LINES = {"Content-Type": "application/x-ndjson"}
GROUP_ANSWERS = {"NextBatch", "ReadLease", "Sample", "ReplayStep", "GetGroups"}
LARGE_BYTES = 2**20
"""From a payload as large as this on, columns travel as base64: numbers would take the test's time."""


GRACE_S = 1.0
"""The service keeps to timeout_s by itself; on a busy machine its answer may come a little later."""


class RestFailure(grpc.RpcError):
    """A problem of the REST door, as AsyncClient's code takes failures."""

    def __init__(self, code: grpc.StatusCode, details: str, reason: str = "") -> None:
        super().__init__(details)
        self._code, self._details, self._reason = code, details, reason

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> Any:
        return [("groupreplay-reason", self._reason)] if self._reason else []


@cache
def documented_reasons(rpc: str) -> dict[int, set[str]]:
    """Return status -> reasons that the OpenAPI document has for an operation."""
    document = json.loads((Path(__file__).parent.parent / "docs/reference/openapi.json").read_text())
    operations = (it for path in document["paths"].values() for it in path.values())
    responses = next(it["responses"] for it in operations if it["operationId"] == rpc)
    names = {int(status): it["$ref"].rpartition("/")[2] for status, it in responses.items() if "$ref" in it}
    problems = document["components"]["responses"]
    return {status: set(problems[name]["description"].split(", ")) for status, name in names.items()}


def failure_of(rpc: str, problem: dict[str, Any]) -> RestFailure:
    """Return the failure that a problem object tells of; the table of errors and the document must have it so."""
    error = ERRORS[problem["reason"]]
    assert problem["reason"] in documented_reasons(rpc)[problem["status"]], f"{rpc}: {problem}"
    assert problem["status"] == error.http_status
    assert problem["retryable"] == error.retryable
    return RestFailure(error.grpc_code, problem["detail"], problem["reason"])


class RestClient(AsyncClient):
    """AsyncClient with a stub that speaks REST."""

    async def __aenter__(self) -> Self:
        self._http = httpx.AsyncClient(base_url=f"http://{self._address}", timeout=None)
        stub = RestStub(self._http)
        self._stub = cast(Any, stub)
        self._groups = GroupStub(RestChannel(stub))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()


class RestChannel:
    """What GroupStub takes for a channel: the bytes that it sends and reads, as messages of the generated stub."""

    def __init__(self, stub: "RestStub") -> None:
        self._stub = stub

    def unary_unary(self, path: str, **_: Any) -> Callable[..., Any]:
        rpc, read = _request_of(path)
        return lambda request, timeout: getattr(self._stub, rpc)(read(request), timeout=timeout)

    def stream_stream(self, path: str, **_: Any) -> Callable[..., Any]:
        rpc, read = _request_of(path)
        return lambda requests, timeout: getattr(self._stub, rpc)(map(read, requests), timeout=timeout)

    def unary_stream(self, path: str, *, response_deserializer: Any, **_: Any) -> Callable[..., Any]:
        rpc, _read = _request_of(path)

        async def call(request: Any, timeout: float | None) -> AsyncIterator[Any]:  # noqa: ASYNC109
            async for message in getattr(self._stub, rpc)(request, timeout=timeout):
                yield response_deserializer(message.SerializeToString())

        return call


def _request_of(path: str) -> tuple[str, Any]:
    rpc = path.rpartition("/")[2]
    method = pb.DESCRIPTOR.services_by_name["ReplayService"].methods_by_name[rpc]
    return rpc, getattr(pb, method.input_type.name).FromString


class RestStub:
    """A method for each RPC, with the messages of the generated stub."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self._large = False

    def __getattr__(self, rpc: str) -> Callable[..., Any]:
        method = pb.DESCRIPTOR.services_by_name["ReplayService"].methods_by_name[rpc]
        answer = getattr(pb, method.output_type.name)
        return partial(RestStream if method.server_streaming else _first, self, rpc, answer)

    async def lines(
        self, rpc: str, answer: Any, request: Any, timeout_s: float | None
    ) -> AsyncGenerator[tuple[dict[str, Any], bool]]:
        """Yield the JSON objects of an answer, and whether they are lines of many."""
        del answer
        try:
            async with asyncio.timeout(None if timeout_s is None else timeout_s + GRACE_S):
                sent = self._send(rpc, request, timeout_s)
                async with self._http.stream(sent.method, sent.url, **sent.rest) as response:
                    if response.headers["content-type"] == "application/problem+json":
                        problem = json.loads(await response.aread())
                        assert response.status_code == problem["status"]
                        assert ("retry-after" in response.headers) == problem["retryable"]
                        raise failure_of(rpc, problem)
                    assert response.status_code in {200, 201}
                    if response.headers["content-type"] == "application/json":
                        yield json.loads(await response.aread()), False
                        return
                    closed = False
                    async for line in response.aiter_lines():
                        value = json.loads(line)
                        closed = value.get("end") is not None
                        if "error" in value:
                            raise failure_of(rpc, value["error"])
                        yield value, True
                    assert closed, "the stream was cut"
        except TimeoutError:
            raise RestFailure(grpc.StatusCode.DEADLINE_EXCEEDED, "the client's own timeout") from None
        except httpx.TransportError as error:
            raise RestFailure(grpc.StatusCode.UNAVAILABLE, repr(error)) from error

    def _send(self, rpc: str, request: Any, timeout_s: float | None) -> "Sent":
        verb, _, template = CALLS[rpc].partition(" ")
        query: dict[str, Any] = {}
        rest: dict[str, Any] = {"params": query}
        if rpc == "Restore":
            parts = iter(request)
            first = next(parts)
            rest |= {"content": _encode(map(write_message, _chain(first, parts))), "headers": LINES}
            request = first
        elif rpc in {"InsertStream", "PushRolloutsStream"}:
            requests = list(request)
            request = requests[0]
            items = self._groups(requests) if rpc == "InsertStream" else self._pieces(requests)
            rest |= {"content": _encode(items), "headers": LINES}
        values = write_message(request)
        url = _fill(template, request, values)
        if "timeout_s" in request.DESCRIPTOR.fields_by_name:
            query["timeout_s"] = values.pop("timeout_s", 0)
        elif rpc != "WatchPolicy" and timeout_s is not None:
            query["timeout_s"] = timeout_s
        if rpc in GROUP_ANSWERS and self._large:
            query["columns"] = "base64"
        if rpc == "Insert":
            rest["json"] = {"groups": [self._group(group.header, group.payload) for group in request.groups]}
        elif rpc == "PushRollouts":
            rest["json"] = {
                "pieces": [self._piece(it, it.rollouts.header, it.rollouts.payload) for it in request.pieces]
            }
        elif verb == "GET":
            query |= {name: str(it).lower() if isinstance(it, bool) else it for name, it in values.items()}
        elif "content" not in rest:
            rest["json"] = values
        return Sent(verb, url, rest)

    def _group(self, header: group_pb2.GroupHeader, payload: bytes) -> dict[str, Any]:
        self._large = self._large or len(payload) >= LARGE_BYTES
        return write_group(header, payload, as_base64=self._large)

    def _piece(self, piece: pb.RolloutPiece, header: group_pb2.GroupHeader, payload: bytes) -> dict[str, Any]:
        terms = write_message(piece)
        return terms | {"rollouts": self._group(header, payload)}

    def _groups(self, requests: Iterable[pb.InsertStreamRequest]) -> Iterable[dict[str, Any]]:
        assembler = PartAssembler()
        for request in requests:
            for part in request.parts:
                if (whole := assembler.add(Part.from_proto(part))) is not None:
                    yield self._group(whole.header, bytes(whole.payload or b""))

    def _pieces(self, requests: Iterable[pb.PushRolloutsStreamRequest]) -> Iterable[dict[str, Any]]:
        assembler, piece = PartAssembler(), pb.RolloutPiece()
        for request in requests:
            for part in request.parts:
                piece = part.piece if part.HasField("piece") else piece
                if (whole := assembler.add(Part.from_proto(part.part))) is not None:
                    yield self._piece(piece, whole.header, bytes(whole.payload or b""))


class Sent:
    """What httpx is asked to send."""

    def __init__(self, method: str, url: str, rest: dict[str, Any]) -> None:
        self.method, self.url, self.rest = method, url, rest


class RestStream:
    """The answer of a call that streams, as the generated stub returns it."""

    def __init__(self, stub: RestStub, rpc: str, answer: Any, request: Any, timeout: float | None = None) -> None:
        self._messages = self._read(stub, rpc, answer, request, timeout)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._messages

    def cancel(self) -> None:
        self._closing = asyncio.ensure_future(self._messages.aclose())

    async def _read(
        self, stub: RestStub, rpc: str, answer: Any, request: Any, timeout_s: float | None
    ) -> AsyncGenerator[Any]:
        async for line, _ in stub.lines(rpc, answer, request, timeout_s):
            if "end" in line and rpc != "Snapshot":
                return
            for message in _messages(answer, line):
                yield message


def _messages(answer: Any, line: dict[str, Any]) -> Iterable[Any]:
    """Yield the messages that gRPC would have sent for a line."""
    if "result" in line:
        yield read_message(answer(), {"results": [line["result"]], "durability": line["durability"]})
    elif "group" in line:
        delivery = read_message(group_pb2.Delivery(), line["delivery"])
        if "prompt_token_ids" not in line["group"]:
            header = read_message(group_pb2.GroupHeader(), line["group"])
            yield answer(parts=[group_pb2.GroupPart(header=header, delivery=delivery, header_only=True)])
            return
        for part in split_group(*convert.group_to_wire(read_group(line["group"]))):
            if part.HasField("header"):
                part.delivery.CopyFrom(delivery)
                if "log_ratios" in line:
                    part.log_ratios.CopyFrom(read_log_ratios(line["log_ratios"]))
            yield answer(parts=[part])
    else:
        yield read_message(answer(), line)


async def _first(stub: RestStub, rpc: str, answer: Any, request: Any, timeout: float | None = None) -> Any:  # noqa: ASYNC109
    async for value, _ in stub.lines(rpc, answer, request, timeout):
        return read_message(answer(), value)
    raise AssertionError("an empty answer")


def _fill(template: str, request: Any, values: dict[str, Any]) -> str:
    """Return a path with the request's fields in it; they leave the JSON."""
    url = template
    for part in template.split("/"):
        if part.startswith("{"):
            *above, last = part[1:-1].split(".")
            owner, inner = request, values
            for step in above:
                owner, inner = getattr(owner, step), inner.get(step, {})
            inner.pop(last, None)
            url = url.replace(part, quote(str(getattr(owner, last)), safe=""))
    return url


async def _encode(items: Iterable[dict[str, Any]]) -> AsyncIterator[bytes]:
    for item in items:
        yield json.dumps(item).encode() + b"\n"


def _chain(first: Any, others: Iterable[Any]) -> Iterable[Any]:
    yield first
    yield from others
