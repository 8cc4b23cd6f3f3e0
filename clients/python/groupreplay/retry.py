"""When a failed call is made again, and as which error it comes out otherwise."""

import random
import time
from typing import cast

import grpc

from groupreplay.errors import (
    CallDeadlineExceededError,
    GroupReplayError,
    InternalError,
    InvalidRequestError,
    MessageTooLargeError,
    ServiceUnavailableError,
    error_from_reason,
)
from groupreplay.request_ids import METADATA as REQUEST_ID_METADATA

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0
SHORTEST_ATTEMPT_S = 0.25
"""An attempt that had less would end in a timeout of its own, and hide why those before it failed: the service answers
0.1 s before the deadline that Redis was slow, whatever it was waiting for."""
REASON_METADATA = "groupreplay-reason"
RETRY_AFTER_METADATA = "groupreplay-retry-after-ms"

# A connection that breaks in the middle of a call ends it with one of these, depending on what was under way.
_BROKEN = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN})
_BROKEN_WHILE_SENDING = "Internal error from Core"
"""What grpc.aio makes of a stream that the other side ended while a message was on its way."""


class Attempts:
    """The attempts of one call: its deadline, and pauses that double, with jitter, up to LONGEST_PAUSE_S."""

    def __init__(self, timeout_s: float | None) -> None:
        """Give up after timeout_s; None = never."""
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._failures = 0

    def left_s(self) -> float | None:
        """Seconds until the deadline, for the next attempt."""
        return None if self._deadline is None else max(self._deadline - time.monotonic(), 0.001)

    def pause_after(self, error: GroupReplayError) -> float:
        """Return how many seconds to wait before the next attempt.

        Raises:
            GroupReplayError: the error itself, when it is not retryable or the deadline comes before the next attempt.
        """
        pause_s = self.pause_unless_late(error)
        if pause_s is None:
            raise error
        return pause_s

    def pause_unless_late(self, error: GroupReplayError) -> float | None:
        """Return the pause of pause_after, or None where that raises."""
        longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(self._failures, 16))
        self._failures += 1
        pause_s = longest * random.uniform(0.5, 1.0) + (error.retry_after_s or 0)
        late = self._deadline is not None and time.monotonic() + pause_s + SHORTEST_ATTEMPT_S >= self._deadline
        return None if late or not error.retryable else pause_s

    def succeeded(self) -> None:
        """Start again with short pauses: a long-lived stream delivered something."""
        self._failures = 0


def error_from_rpc(error: grpc.RpcError, address: str) -> GroupReplayError:
    """Return the typed error of a failed RPC; the service names its reason in the trailing metadata."""
    call = cast(grpc.Call, error)  # what both grpc and grpc.aio raise
    details = call.details() or ""
    metadata = {key: str(value) for key, value in call.trailing_metadata() or ()}
    if REASON_METADATA in metadata:
        known = error_from_reason(metadata[REASON_METADATA], details)
        known.request_id = metadata.get(REQUEST_ID_METADATA, "")
        if metadata.get(RETRY_AFTER_METADATA, "").isdecimal():
            known.retry_after_s = int(metadata[RETRY_AFTER_METADATA]) / 1000
        return known
    code = call.code()
    if code in _BROKEN or details == _BROKEN_WHILE_SENDING:
        return ServiceUnavailableError(f"no answer from {address} ({details}); see that the service runs there")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return CallDeadlineExceededError(f"no answer from {address} within the timeout; pass a longer timeout_s")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return MessageTooLargeError(f"{address} did not take the call: {details}; {_smaller(details)}")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return InvalidRequestError(
            f"{address} does not take this call: {details}; see that groupreplay runs there, in a version as new as "
            "this client's, and that nothing between them changes the messages"
        )
    return InternalError(f"{address} answered {code.name}: {details}")


def _smaller(details: str) -> str:
    """Return what to do about a call that gRPC itself, which knows no reason of ours, found too large."""
    if "metadata" in details:
        return "send fewer or shorter headers: the token and the request id are all that the service asks for"
    return "send fewer items in a call, and large groups in parts: insert_many() does"
