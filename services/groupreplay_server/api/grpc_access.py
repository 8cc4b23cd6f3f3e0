"""Tokens over gRPC: who calls, and whether the scope will do, is settled before a message is read."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health

from groupreplay.errors import GroupReplayError, MessageTooLargeError
from groupreplay.request_ids import METADATA, enter_request
from groupreplay.tracing import TRACEPARENT, enter_caller
from groupreplay_server.access import RULES, Access, Caller
from groupreplay_server.api.grpc_errors import refusal
from groupreplay_server.api.metrics import UNKNOWN, Metrics
from groupreplay_server.api.operations import SERVICE

MAX_METADATA_BYTES = 8 * 2**10
"""Of a call's headers, the token included."""
_HEADER_OVERHEAD_BYTES = 32

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]


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
        known = call if service == SERVICE.full_name and call in RULES else ""
        caller = Caller()
        try:
            sent = handler_call_details.invocation_metadata or ()
            metadata = dict(sent)
            enter_request(metadata.get(METADATA))
            enter_caller(metadata.get(TRACEPARENT))
            _check_size(sent)
            caller = await self._access.enter(metadata.get("authorization"), peer="", door="grpc")
            if known:
                self._access.check_scope(caller, known)
        except GroupReplayError as error:
            return self._refusal(error, known, caller)
        return await continuation(handler_call_details)

    def _refusal(self, error: GroupReplayError, call: str, caller: Caller) -> "Handler":
        def note(context: "Context") -> None:
            if call:
                self._access.record(caller.at(context.peer()), call, error.reason, {})

        return refusal(error, call or UNKNOWN, self._metrics, note)


def _check_size(metadata: Sequence[tuple[str, str | bytes]]) -> None:
    """Raise MessageTooLargeError where headers are longer than MAX_METADATA_BYTES, counted as HTTP/2 counts them."""
    size = sum(len(key) + len(value) + _HEADER_OVERHEAD_BYTES for key, value in metadata)
    if size > MAX_METADATA_BYTES:
        raise MessageTooLargeError(
            f"the headers of the call have {size} bytes, at most {MAX_METADATA_BYTES} are taken; the token and a "
            "request id are all that is asked for"
        )
