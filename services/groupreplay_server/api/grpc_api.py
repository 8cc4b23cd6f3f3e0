"""The gRPC front door: groupreplay.v1.ReplayService, health and reflection."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from groupreplay.v1 import replay_service_pb2 as pb
from groupreplay_server.api.metrics import Metrics
from groupreplay_server.api.operations import SERVICE, Operations, typed_error

REASON_METADATA = "groupreplay-reason"
_REPLY_MARGIN_S = 0.1
"""An answer that says why is sent this long before the caller's deadline, or it would never be read."""

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]


class GrpcApi:
    """Puts the operations on the wire of gRPC: deadlines, metrics, and errors as statuses."""

    def __init__(self, operations: Operations, metrics: Metrics) -> None:
        self._operations = operations
        self._metrics = metrics

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return the handlers of every method in the service's descriptor."""
        return grpc.method_handlers_generic_handler(
            SERVICE.full_name,
            {method.name: self._handler(method, self._operations.method(method.name)) for method in SERVICE.methods},
        )

    def _handler(self, method: Any, call: Callable[..., Any]) -> "grpc.RpcMethodHandler[Any, Any]":
        request_class = getattr(pb, method.input_type.name)
        if not method.server_streaming:
            unary = (
                grpc.stream_unary_rpc_method_handler if method.client_streaming else grpc.unary_unary_rpc_method_handler
            )
            return unary(self._guard_unary(method.name, call), request_class.FromString, _serialize)
        guarded = self._guard_stream(method.name, call)
        make = (
            grpc.stream_stream_rpc_method_handler if method.client_streaming else grpc.unary_stream_rpc_method_handler
        )
        return make(guarded, request_class.FromString, _serialize)

    def _guard_unary(
        self, name: str, call: Callable[[Any], Awaitable[Message]]
    ) -> Callable[[Any, "Context"], Awaitable[Message]]:
        async def guarded(request: Any, context: "Context") -> Message:
            try:
                with self._metrics.call(name):
                    async with asyncio.timeout(_time_left(context)):
                        return await call(request)
            except Exception as error:
                await _abort(context, name, error)
                raise AssertionError("abort always raises") from error

        return guarded

    def _guard_stream(
        self, name: str, call: Callable[[Any], AsyncGenerator[Any]]
    ) -> Callable[[Any, "Context"], AsyncIterator[Any]]:
        async def guarded(request: Any, context: "Context") -> AsyncIterator[Any]:
            try:
                with self._metrics.call(name):
                    async with aclosing(call(request)) as messages:
                        async for message in messages:
                            yield message
            except Exception as error:  # noqa: BLE001  the boundary: every fault becomes an answer
                await _abort(context, name, error)

        return guarded


def _serialize(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


def _time_left(context: "Context") -> float | None:
    left_s = context.time_remaining()
    return None if left_s is None else max(left_s - _REPLY_MARGIN_S, 0)


async def _abort(context: "Context", name: str, failure: Exception) -> None:
    error = typed_error(name, failure)
    await context.abort(error.grpc_code, str(error), ((REASON_METADATA, error.reason),))


class GrpcServer:
    """The listening server. Health is per process: SERVING from start to drain."""

    def __init__(self, api: GrpcApi) -> None:
        self._server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
            ]
        )
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self._server.add_generic_rpc_handlers((api.handlers(),))

    def bind(self, address: str) -> int:
        """Listen on host:port (0 = any free port) or unix:path; return the port."""
        try:
            return self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(
                f"gRPC cannot listen on {address}: another process has the port, or the address is not ours; "
                "stop it or pass --grpc-listen"
            ) from error

    async def start(self) -> None:
        """Serve, and say so to health checks."""
        await self._server.start()
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)

    async def refuse(self) -> None:
        """Tell health checks to send no more calls."""
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)

    async def stop(self, grace_s: float) -> None:
        """Take no new calls; let running ones end within grace_s."""
        await self._server.stop(grace_s)

    async def _set_health(self, status: int) -> None:
        for name in ("", SERVICE.full_name):
            await self._health.set(name, status)
