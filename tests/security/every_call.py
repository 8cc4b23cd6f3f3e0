"""Every RPC over every door, with the least request that names a run: what a caller without rights would try."""

from collections.abc import Callable
from typing import Any

import grpc
import httpx
import orjson

from groupreplay.v1 import replay_service_pb2 as pb
from groupreplay_server.api.checked_call import subject_of
from groupreplay_server.api.operations import SERVICE
from groupreplay_server.api.rest.routes import ROUTES, Body, Route

RPCS = sorted(method.name for method in SERVICE.methods)
Outcome = tuple[int, str]
"""Status of the door and ErrorReason; 0 and OK when the call was let in and nothing was wrong."""
REASON_METADATA = "groupreplay-reason"
BRIEF_S = 0.2


def request_about(rpc: str, run: str) -> Any:
    """Return the least request that is about a run."""
    request: Any = getattr(pb, SERVICE.methods_by_name[rpc].input_type.name)()
    subject = subject_of(rpc, request)
    for field, value in (("run", run), ("table", "train")):
        if field in subject.DESCRIPTOR.fields_by_name:
            setattr(subject, field, value)
    if rpc == "WatchPolicy":
        request.after_version = -1  # it answers at once
    if "timeout_s" in request.DESCRIPTOR.fields_by_name:
        request.timeout_s = 0.0
    return request


async def over_grpc(
    channel: grpc.aio.Channel, rpc: str, request: bytes, token: str | None, timeout_s: float = 20.0
) -> tuple[grpc.StatusCode, str]:
    """Send bytes as the only message of a call; return the code and the ErrorReason, once the first answer came."""
    method = SERVICE.methods_by_name[rpc]
    kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    make: Callable[..., Any] = getattr(channel, kind)
    call = make(f"/{SERVICE.full_name}/{rpc}")
    sent = iter([request]) if method.client_streaming else request
    metadata = None if token is None else (("authorization", f"Bearer {token}"),)
    running = call(sent, timeout=timeout_s, metadata=metadata)
    try:
        if method.server_streaming:
            async for _ in running:
                break
            running.cancel()
        else:
            await running
    except grpc.aio.AioRpcError as error:
        return error.code(), str(dict(error.trailing_metadata() or ()).get(REASON_METADATA, ""))
    return grpc.StatusCode.OK, "OK"


def route_of(rpc: str) -> Route:
    """Return the REST route of an RPC."""
    return next(route for route in ROUTES if route.rpc == rpc)


async def over_rest(http: httpx.AsyncClient, rpc: str, run: str, token: str | None) -> tuple[int, str]:
    """Ask for the route of an RPC; return status and ErrorReason, of the last line where it answers with lines."""
    route = route_of(rpc)
    names = {"run": run, "table": "train", "step": "1"}
    path = "/".join(names.get(part[1:-1], "x") if part.startswith("{") else part for part in route.path.split("/"))
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    content = b""
    if route.body is not Body.QUERY:
        lines = route.body in {Body.GROUP_LINES, Body.PIECE_LINES, Body.MESSAGE_LINES}
        headers["content-type"] = "application/x-ndjson" if lines else "application/json"
        content = b'{"header":{}}\n' if route.body is Body.MESSAGE_LINES else b"" if lines else b"{}"
    answer = await http.request(
        route.verb, path, headers=headers, content=content, params={"timeout_s": BRIEF_S}, timeout=30
    )
    last = orjson.loads(answer.content.splitlines()[-1])
    problem = last.get("error", last) if isinstance(last, dict) else {}
    return answer.status_code, str(problem.get("reason") or "OK")
