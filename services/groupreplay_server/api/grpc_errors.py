"""How a failed call ends over gRPC: code, message, and the reason in the trailing metadata."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import grpc

from groupreplay.errors import GroupReplayError
from groupreplay.request_ids import METADATA as REQUEST_ID_METADATA
from groupreplay.request_ids import current_request_id
from groupreplay_server.api.metrics import Metrics
from groupreplay_server.api.operations import typed_error

REASON_METADATA = "groupreplay-reason"
RETRY_AFTER_METADATA = "groupreplay-retry-after-ms"

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]


async def abort(context: "Context", name: str, failure: Exception) -> NoReturn:
    """End a call with an error; what is none of ours is logged, and hidden from the caller."""
    error = typed_error(name, failure)
    metadata = [(REASON_METADATA, error.reason), (REQUEST_ID_METADATA, current_request_id())]
    if error.retry_after_s is not None:
        metadata.append((RETRY_AFTER_METADATA, str(math.ceil(error.retry_after_s * 1000))))
    await context.abort(error.grpc_code, str(error), tuple(metadata))
    raise AssertionError("abort always raises") from failure


def refusal(
    error: GroupReplayError, method: str, metrics: Metrics, note: Callable[["Context"], None] | None = None
) -> "grpc.RpcMethodHandler[Any, Any]":
    """Return a handler that reads nothing, counts the call under a method's name, and ends it with an error.

    Args:
        note: called with the context before the end.
    """

    async def refuse(_: Any, context: "Context") -> None:
        metrics.refused(method, error.reason)
        if note is not None:
            note(context)
        await abort(context, method, error)

    return grpc.stream_stream_rpc_method_handler(refuse)
