"""What is noted of every call, at every front door: metrics, a span, the audit log, and a log line if it fails."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import ClientDisconnect

from groupreplay import tracing
from groupreplay.errors import GroupReplayError
from groupreplay.request_ids import current_request_id
from groupreplay_server.access import Access, current_caller
from groupreplay_server.api.metrics import Metrics, outcome_of
from groupreplay_server.api.operations import typed_error

_log = logging.getLogger(__name__)

_PACE = frozenset(
    {
        "BATCH_NOT_READY", "TABLE_FULL", "RATE_LIMITED", "QUOTA_EXCEEDED", "SHUTTING_DOWN",
        "UNKNOWN_RUN", "UNKNOWN_TABLE",
    }
)  # fmt: skip
"""Part of normal work: who waits calls again, for a batch, for room, or for a trainer that makes run and table."""
_OURS = frozenset({"INTERNAL", "STORE_UNAVAILABLE", "DURABILITY_NOT_REACHED", "PAYLOAD_LOST"})
"""Not the caller's fault."""


@contextmanager
def observed(metrics: Metrics, access: Access, rpc: str, target: dict[str, str], *, method: str = "") -> Iterator[None]:
    """Observe one call from its start to its end.

    Args:
        rpc: what the audit log calls it.
        target: what it is about; may be filled in meanwhile.
        method: what metrics and log call it, where several calls of a door do what one RPC does.
    """
    method = method or rpc
    with metrics.call(method), _traced(method, target), _audited(access, rpc, target), _logged(method, target):
        try:
            yield
        except GroupReplayError:
            raise
        except TimeoutError as error:  # typed here: it is noted by the reason that its caller is told
            raise typed_error(method, error) from error


@contextmanager
def refusal_observed(metrics: Metrics, access: Access, rpc: str, target: dict[str, str]) -> Iterator[None]:
    """Observe a call that ends in this block by an error; one that goes on is observed from there."""
    try:
        yield
    except (GroupReplayError, TimeoutError, ClientDisconnect):
        with observed(metrics, access, rpc, target):
            raise


@contextmanager
def _traced(method: str, target: dict[str, str]) -> Iterator[None]:
    with tracing.call_span(method) as span:
        span.note(request_id=current_request_id())
        try:
            yield
        except BaseException as error:
            reason = outcome_of(error)
            span.failed(reason, fault=reason in _OURS)
            raise
        finally:
            span.note(**target)


@contextmanager
def _audited(access: Access, rpc: str, target: dict[str, str]) -> Iterator[None]:
    outcome = "OK"
    try:
        yield
    except BaseException as error:
        outcome = outcome_of(error)
        raise
    finally:
        access.record(current_caller(), rpc, outcome, target)


@contextmanager
def _logged(method: str, target: dict[str, str]) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    except GroupReplayError as error:
        _log.log(
            _level(error.reason),
            "%s ended with %s: %s",
            method,
            error.reason,
            error,
            extra=_fields(method, error.reason, started, target),
        )
        raise
    else:
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("%s ended well", method, extra=_fields(method, "OK", started, target))


def _level(reason: str) -> int:
    if reason in _PACE:
        return logging.DEBUG
    return logging.WARNING if reason in _OURS else logging.INFO


def _fields(method: str, reason: str, started: float, target: dict[str, str]) -> dict[str, object]:
    """Return what a line of JSON says beside its message."""
    caller = current_caller()
    about = {key: value for key, value in target.items() if key != "name"}  # logging has a name of its own
    return {
        "method": method,
        "reason": reason,
        "seconds": round(time.perf_counter() - started, 6),
        "token": caller.name,
        "peer": caller.peer,
        **about,
    }
