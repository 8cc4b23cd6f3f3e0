"""How a failed call ends over gRPC: code, message, and the reason in the trailing metadata."""

import logging
import math
from typing import TYPE_CHECKING, Any, NoReturn

import grpc

from groupreplay.errors import GroupReplayError, InternalError, StoreUnavailableError

REASON_METADATA = "groupreplay-reason"
RETRY_AFTER_METADATA = "groupreplay-retry-after-ms"

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]


async def abort(context: "Context", name: str, error: Exception) -> NoReturn:
    """End a call with an error; what is none of ours is logged, and hidden from the caller."""
    if isinstance(error, TimeoutError) and not isinstance(error, GroupReplayError):
        error = StoreUnavailableError(f"{name} did not end within the caller's deadline; Redis is slow or away")
    if not isinstance(error, GroupReplayError):
        _log.exception("%s failed", name, exc_info=error)
        error = InternalError(f"{name} failed with {type(error).__name__}; the service's log has the details")
    metadata = [(REASON_METADATA, error.reason)]
    if error.retry_after_s is not None:
        metadata.append((RETRY_AFTER_METADATA, str(math.ceil(error.retry_after_s * 1000))))
    await context.abort(error.grpc_code, str(error), tuple(metadata))
    raise AssertionError("abort always raises") from error
