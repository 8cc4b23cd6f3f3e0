"""The gRPC front door: groupreplay.v1.ReplayService."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError, Message

from groupreplay.errors import InvalidRequestError, MessageTooLargeError
from groupreplay.group_messages import read_insert_request, read_insert_stream_request
from groupreplay.v1 import replay_service_pb2 as pb
from groupreplay_server.access import Access, note_peer
from groupreplay_server.api.checked_call import CheckedCall, Request
from groupreplay_server.api.grpc_errors import abort, refusal
from groupreplay_server.api.metrics import UNKNOWN, Metrics
from groupreplay_server.api.observed_call import observed
from groupreplay_server.api.operations import SERVICE, Operations

MAX_MESSAGE_BYTES = 4 * 2**20
"""Of a request. Larger groups come in parts, on a stream."""
_REPLY_MARGIN_S = 0.1
"""An answer that says why is sent this long before the caller's deadline, or it would never be read."""
_READ_BY_HAND: dict[type[Message], Callable[[bytes], Request]] = {
    pb.InsertRequest: read_insert_request,
    pb.InsertStreamRequest: read_insert_stream_request,
}

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]


class GrpcApi:
    """Puts the operations on the wire of gRPC: deadlines, metrics, and errors as statuses."""

    def __init__(self, operations: Operations, metrics: Metrics, access: Access) -> None:
        self._operations = operations
        self._access = access
        self._metrics = metrics

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return the handlers of every method in the service's descriptor."""
        return grpc.method_handlers_generic_handler(
            SERVICE.full_name,
            {method.name: self._handler(method, self._operations.method(method.name)) for method in SERVICE.methods},
        )

    def unknown_calls(self) -> grpc.GenericRpcHandler:
        """Return what answers every method; to be asked last."""
        return _UnknownCalls(self._metrics)

    def _handler(self, method: Any, call: Callable[..., Any]) -> "grpc.RpcMethodHandler[Any, Any]":
        request_class = getattr(pb, method.input_type.name)
        streamed = method.client_streaming
        if not method.server_streaming:
            unary = grpc.stream_unary_rpc_method_handler if streamed else grpc.unary_unary_rpc_method_handler
            return unary(self._guard_unary(method.name, call, request_class, streamed), None, _serialize)
        make = grpc.stream_stream_rpc_method_handler if streamed else grpc.unary_stream_rpc_method_handler
        return make(self._guard_stream(method.name, call, request_class, streamed), None, _serialize)

    def _guard_unary(
        self, name: str, call: Callable[[Any], Awaitable[Message]], request_class: type[Message], streamed: bool
    ) -> Callable[[Any, "Context"], Awaitable[Message]]:
        async def guarded(request: Any, context: "Context") -> Message:
            try:
                with self._checked(name, context) as checked:
                    async with asyncio.timeout(_time_left(context)):
                        answer = await call(_admitted(request, checked, request_class, streamed))
                    checked.charge(answer)
                    return answer
            except Exception as error:  # noqa: BLE001  the boundary: every fault becomes an answer
                await abort(context, name, error)

        return guarded

    def _guard_stream(
        self, name: str, call: Callable[[Any], AsyncGenerator[Any]], request_class: type[Message], streamed: bool
    ) -> Callable[[Any, "Context"], AsyncIterator[Any]]:
        async def guarded(request: Any, context: "Context") -> AsyncIterator[Any]:
            try:
                with self._checked(name, context) as checked:
                    async with aclosing(call(_admitted(request, checked, request_class, streamed))) as messages:
                        async for message in messages:
                            await checked.before_answer(message)
                            yield message
            except Exception as error:  # noqa: BLE001  the boundary: every fault becomes an answer
                await abort(context, name, error)

        return guarded

    @contextmanager
    def _checked(self, name: str, context: "Context") -> Iterator[CheckedCall]:
        note_peer(context.peer())
        checked = CheckedCall(self._access, name)
        with observed(self._metrics, self._access, name, checked.target):
            yield checked


class UnknownCallError(InvalidRequestError):
    """There is no such method."""

    grpc_code = grpc.StatusCode.UNIMPLEMENTED


class _UnknownCalls(grpc.GenericRpcHandler):
    """Ends calls of methods that are not there; gRPC would do so by itself, but without a reason."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def service(self, handler_call_details: Any) -> "grpc.RpcMethodHandler[Any, Any]":
        asked = str(handler_call_details.method)[:200]
        error = UnknownCallError(
            f"{asked}: there is no such call here; {SERVICE.full_name} has {len(SERVICE.methods)}, which reflection "
            "lists. A client that is newer than the service knows more: upgrade the service"
        )
        return refusal(error, UNKNOWN, self._metrics)


def _admitted(request: Any, checked: CheckedCall, request_class: type[Message], streamed: bool) -> Any:
    """Return a request, or the stream of requests, that the caller's token allows, from the bytes that came."""
    if streamed:
        return checked.stream(_parse(request_class, data) async for data in request)
    message = _parse(request_class, request)
    checked.check(message)
    checked.charge(message)
    return message


def _parse(request_class: type[Message], data: bytes) -> Request:
    if len(data) > MAX_MESSAGE_BYTES:
        raise MessageTooLargeError(
            f"{request_class.__name__} of {len(data)} bytes: a message has at most {MAX_MESSAGE_BYTES}; send fewer "
            "items in a call, and large groups in parts, with InsertStream"
        )
    read = _READ_BY_HAND.get(request_class, request_class.FromString)
    try:
        return read(data)
    except DecodeError as error:
        raise InvalidRequestError(
            f"{len(data)} bytes came that are no {request_class.__name__}: {error}; make them with the protos of "
            "groupreplay.v1"
        ) from None


def _serialize(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


def _time_left(context: "Context") -> float | None:
    left_s = context.time_remaining()
    return None if left_s is None else max(left_s - _REPLY_MARGIN_S, 0)
