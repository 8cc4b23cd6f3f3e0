"""Tokens over gRPC: who calls is known before a message is read, which run it is about once the first one was."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health

from groupreplay.errors import GroupReplayError
from groupreplay.v1 import replay_service_pb2 as pb
from groupreplay_server.access import RULES, Access, Caller, Reach, current_caller
from groupreplay_server.api.grpc_errors import abort
from groupreplay_server.api.metrics import Metrics

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["ReplayService"].full_name


class AccessInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls without a good token, or of the wrong scope. Health is open; reflection takes any token."""

    def __init__(self, access: Access, metrics: Metrics) -> None:
        self._access = access
        self._metrics = metrics

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable["Handler | None"]], handler_call_details: Any
    ) -> "Handler | None":
        service, _, call = handler_call_details.method.lstrip("/").partition("/")
        if service == health.SERVICE_NAME:
            return await continuation(handler_call_details)
        known = call if service == SERVICE_NAME and call in RULES else ""
        caller = Caller()
        try:
            metadata = dict(handler_call_details.invocation_metadata or ())
            caller = await self._access.enter(metadata.get("authorization"), peer="", door="grpc")
            if known:
                self._access.check_scope(caller, known)
        except GroupReplayError as error:
            return self._refusal(error, known, caller)
        return await continuation(handler_call_details)

    def _refusal(self, error: GroupReplayError, call: str, caller: Caller) -> "Handler":
        """Return a handler that reads nothing and ends the call."""

        async def refuse(_: Any, context: "Context") -> None:
            try:
                with self._metrics.call(call or "unknown"):
                    raise error
            except GroupReplayError:
                if call and RULES[call].audited:
                    self._access.record(caller.at(context.peer()), call, error.reason, {})
            await abort(context, call, error)

        return grpc.stream_stream_rpc_method_handler(refuse)


class CheckedRequest:
    """What a call says it is about, compared with what its token allows."""

    def __init__(self, access: Access, call: str) -> None:
        self._access = access
        self._call = call
        self.target: dict[str, str] = {}
        """What it is about, for the audit log; filled in once the first message was read."""

    def message(self, request: Message) -> float:
        """Check the only or first message of a call; return how many seconds to wait before the next.

        Raises:
            PermissionDeniedError: it is about a run that the token is not for.
        """
        subject = run_of(self._call, request)
        for name in ("run", "table", "name"):
            if isinstance(value := getattr(subject, name, None), str) and value:
                self.target[name] = value[:128]
        run = self._access.check_run(current_caller(), self._call, getattr(subject, "run", ""))
        if RULES[self._call].reach is Reach.RUN_OR_ALL:
            subject.run = run
        return self._charge(request)

    async def stream(self, requests: AsyncIterator[Message]) -> AsyncIterator[Message]:
        """Pass the messages of a stream on: the first is checked, and a caller that owes bytes is made to wait."""
        first = True
        async for request in requests:
            await self._access.confirm(current_caller())
            wait_s = self.message(request) if first else self._charge(request)
            first = False
            yield request
            if wait_s:
                await asyncio.sleep(wait_s)

    async def sending(self, message: Message | bytes) -> None:
        """Make sure that the caller may still have an answer, count it, and wait where the caller owes bytes.

        Raises:
            UnauthenticatedError: the token was revoked, or has expired, since the call began.
        """
        await self._access.confirm(current_caller())
        if self._access.counts_bytes and (wait_s := self._access.charge(_size(message))):
            await asyncio.sleep(wait_s)

    def _charge(self, request: Message) -> float:
        return self._access.charge(_size(request)) if self._access.counts_bytes else 0.0


def run_of(call: str, request: Any) -> Any:
    """Return the request, or the message in it, that names the run the call is about."""
    if call in {"AdvancePolicy", "RewindPolicy"}:
        return request.policy
    if call == "Restore":
        return request.header.table
    return request.token if call == "CreateToken" else request


def _size(message: Message | bytes) -> int:
    return len(message) if isinstance(message, bytes) else message.ByteSize()
