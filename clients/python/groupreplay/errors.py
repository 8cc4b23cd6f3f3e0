"""Every way a groupreplay call can fail: one class per ErrorReason.

The classes are the one table of gRPC code, HTTP status and retryability; Lua scripts, the server, the front doors
and the clients all go by the reason's name.
"""

from typing import ClassVar

import grpc


class GroupReplayError(Exception):
    """Base of all errors of this package. The message says what was tried, the value, the limit and the fix."""

    reason: ClassVar[str] = "INTERNAL"
    grpc_code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    """Whether the same call may succeed later without anything being changed by the caller."""
    retry_after_s: float | None = None
    """When to call again, where the service knows."""
    request_id: str = ""
    """Name of the call in the logs of the service, where it answered."""


class InternalError(GroupReplayError):
    """A fault of the service; its log has the details."""


class InvalidRequestError(GroupReplayError, ValueError):
    """A field of the request is missing or out of range."""

    reason = "INVALID_REQUEST"
    grpc_code = grpc.StatusCode.INVALID_ARGUMENT
    http_status = 422


class InvalidGroupError(GroupReplayError, ValueError):
    """A group contradicts itself: lengths, values, or a truncated or foreign payload."""

    reason = "INVALID_GROUP"
    grpc_code = grpc.StatusCode.INVALID_ARGUMENT
    http_status = 422


class GroupTooLargeError(GroupReplayError, ValueError):
    """The payload is larger than the table's max_group_bytes."""

    reason = "GROUP_TOO_LARGE"
    grpc_code = grpc.StatusCode.INVALID_ARGUMENT
    http_status = 413


class MessageTooLargeError(GroupReplayError, ValueError):
    """A message, a body or the headers of a call are larger than the service reads at once."""

    reason = "MESSAGE_TOO_LARGE"
    grpc_code = grpc.StatusCode.RESOURCE_EXHAUSTED
    http_status = 413


class UnknownRunError(GroupReplayError, LookupError):
    """No such run; create_table makes it."""

    reason = "UNKNOWN_RUN"
    grpc_code = grpc.StatusCode.NOT_FOUND
    http_status = 404


class UnknownTableError(GroupReplayError, LookupError):
    """The run has no such table."""

    reason = "UNKNOWN_TABLE"
    grpc_code = grpc.StatusCode.NOT_FOUND
    http_status = 404


class TableExistsError(GroupReplayError):
    """The table exists with another configuration."""

    reason = "TABLE_EXISTS"
    grpc_code = grpc.StatusCode.ALREADY_EXISTS
    http_status = 409


class TableFullError(GroupReplayError):
    """The table holds fresh_capacity groups that nobody has taken."""

    reason = "TABLE_FULL"
    grpc_code = grpc.StatusCode.RESOURCE_EXHAUSTED
    http_status = 429
    retryable = True


class QuotaExceededError(GroupReplayError):
    """The run's tables hold as much as its quota allows."""

    reason = "QUOTA_EXCEEDED"
    grpc_code = grpc.StatusCode.RESOURCE_EXHAUSTED
    http_status = 429
    retryable = True


class RateLimitedError(GroupReplayError):
    """The table's rate limit holds inserts back until more was sampled, or the caller is over the service's limit."""

    reason = "RATE_LIMITED"
    grpc_code = grpc.StatusCode.RESOURCE_EXHAUSTED
    http_status = 429
    retryable = True


class StalePolicyVersionError(GroupReplayError):
    """The group is older than the table's max_staleness."""

    reason = "STALE_POLICY_VERSION"
    grpc_code = grpc.StatusCode.FAILED_PRECONDITION
    http_status = 409


class FuturePolicyVersionError(GroupReplayError):
    """The group names a policy version that was never published."""

    reason = "FUTURE_POLICY_VERSION"
    grpc_code = grpc.StatusCode.FAILED_PRECONDITION
    http_status = 409


class PolicyVersionConflictError(GroupReplayError):
    """The policy clock already stands at or beyond the version, with other weights."""

    reason = "POLICY_VERSION_CONFLICT"
    grpc_code = grpc.StatusCode.FAILED_PRECONDITION
    http_status = 409


class BatchNotReadyError(GroupReplayError):
    """No complete batch within the timeout; the message says what is missing. Call again when it suits."""

    reason = "BATCH_NOT_READY"
    grpc_code = grpc.StatusCode.DEADLINE_EXCEEDED
    http_status = 504


class UnknownLeaseError(GroupReplayError, LookupError):
    """No lease of this id was ever given, or it was forgotten after its retention time."""

    reason = "UNKNOWN_LEASE"
    grpc_code = grpc.StatusCode.NOT_FOUND
    http_status = 404


class LeaseExpiredError(GroupReplayError):
    """The lease ended before the call."""

    reason = "LEASE_EXPIRED"
    grpc_code = grpc.StatusCode.FAILED_PRECONDITION
    http_status = 409


class StepConflictError(GroupReplayError):
    """The training step was committed before, with another lease."""

    reason = "STEP_CONFLICT"
    grpc_code = grpc.StatusCode.FAILED_PRECONDITION
    http_status = 409


class UnknownStepError(GroupReplayError, LookupError):
    """The table's lineage has no such training step (any more)."""

    reason = "UNKNOWN_STEP"
    grpc_code = grpc.StatusCode.NOT_FOUND
    http_status = 404


class GroupClosedError(GroupReplayError):
    """The partial group closed without this piece: it was complete, or its time was over."""

    reason = "GROUP_CLOSED"
    grpc_code = grpc.StatusCode.FAILED_PRECONDITION
    http_status = 409


class UnauthenticatedError(GroupReplayError):
    """The call carries no token, or one that is unknown, revoked or expired."""

    reason = "UNAUTHENTICATED"
    grpc_code = grpc.StatusCode.UNAUTHENTICATED
    http_status = 401


class PermissionDeniedError(GroupReplayError):
    """The token is good, but its scope or its run does not allow the call."""

    reason = "PERMISSION_DENIED"
    grpc_code = grpc.StatusCode.PERMISSION_DENIED
    http_status = 403


class TokenExistsError(GroupReplayError):
    """There is another token of this name."""

    reason = "TOKEN_EXISTS"
    grpc_code = grpc.StatusCode.ALREADY_EXISTS
    http_status = 409


class UnknownTokenError(GroupReplayError, LookupError):
    """There is no token of this name."""

    reason = "UNKNOWN_TOKEN"
    grpc_code = grpc.StatusCode.NOT_FOUND
    http_status = 404


class PayloadLostError(GroupReplayError):
    """The index names a payload that the store no longer has."""

    reason = "PAYLOAD_LOST"
    grpc_code = grpc.StatusCode.DATA_LOSS
    http_status = 500


class StoreUnavailableError(GroupReplayError):
    """The service cannot reach Redis."""

    reason = "STORE_UNAVAILABLE"
    grpc_code = grpc.StatusCode.UNAVAILABLE
    http_status = 503
    retryable = True


class DurabilityNotReachedError(GroupReplayError):
    """The change is made, but not yet as durable as was asked; the same call again waits for that again."""

    reason = "DURABILITY_NOT_REACHED"
    grpc_code = grpc.StatusCode.UNAVAILABLE
    http_status = 503
    retryable = True


class ShuttingDownError(GroupReplayError):
    """The service is draining."""

    reason = "SHUTTING_DOWN"
    grpc_code = grpc.StatusCode.UNAVAILABLE
    http_status = 503
    retryable = True


class ServiceUnavailableError(GroupReplayError):
    """Nothing answers at the address, or the connection broke."""

    reason = "SERVICE_UNAVAILABLE"
    grpc_code = grpc.StatusCode.UNAVAILABLE
    http_status = 503
    retryable = True


class CallDeadlineExceededError(GroupReplayError, TimeoutError):
    """The call did not end within its timeout."""

    reason = "DEADLINE_EXCEEDED"
    grpc_code = grpc.StatusCode.DEADLINE_EXCEEDED
    http_status = 504


ERRORS: dict[str, type[GroupReplayError]] = {cls.reason: cls for cls in GroupReplayError.__subclasses__()}
"""ErrorReason name -> exception class."""


def error_from_reason(reason: str, message: str) -> GroupReplayError:
    """Return the exception for an ErrorReason's name; a reason this version does not know becomes InternalError."""
    cls = ERRORS.get(reason)
    return cls(message) if cls else InternalError(f"{reason}: {message}")
