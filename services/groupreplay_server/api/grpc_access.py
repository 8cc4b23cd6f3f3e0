"""Tokens over gRPC: who calls, and whether the scope will do, is settled before a message is read."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health

from groupreplay.errors import GroupReplayError
from groupreplay.request_ids import METADATA, enter_request
from groupreplay_server.access import RULES, Access, Caller
from groupreplay_server.api.grpc_errors import abort
from groupreplay_server.api.metrics import Metrics
from groupreplay_server.api.operations import SERVICE

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
            metadata = dict(handler_call_details.invocation_metadata or ())
            enter_request(metadata.get(METADATA))
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
                if call:
                    self._access.record(caller.at(context.peer()), call, error.reason, {})
            await abort(context, call, error)

        return grpc.stream_stream_rpc_method_handler(refuse)
