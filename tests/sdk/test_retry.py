"""When a failed call is made again."""

import re
import socket
import time
from typing import Any

import grpc
import pytest
from processes import free_port
from table_user import connect

from groupreplay import (
    CallDeadlineExceededError,
    GroupReplayError,
    InternalError,
    InvalidRequestError,
    MessageTooLargeError,
    ServiceUnavailableError,
    TableFullError,
    UnknownTableError,
)
from groupreplay.retry import FIRST_PAUSE_S, LONGEST_PAUSE_S, Attempts, error_from_rpc


def test_pauses_double_with_jitter_up_to_the_longest() -> None:
    """Many clients that fail together do not come again together."""
    attempts = Attempts(None)
    longest = [min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**failure) for failure in range(40)]
    pauses = [attempts.pause_after(TableFullError("full")) for _ in longest]
    assert all(limit / 2 <= pause <= limit for pause, limit in zip(pauses, longest, strict=True))
    attempts.succeeded()
    assert attempts.pause_after(TableFullError("full")) <= FIRST_PAUSE_S


@pytest.mark.parametrize("error", [UnknownTableError("t"), InvalidRequestError("i"), CallDeadlineExceededError("d")])
def test_an_error_that_will_not_pass_comes_out_at_once(error: GroupReplayError) -> None:
    """The same exception, not one about retries."""
    with pytest.raises(type(error)) as raised:
        Attempts(60.0).pause_after(error)
    assert raised.value is error


def test_the_last_error_comes_out_when_the_time_is_over() -> None:
    """Not a timeout that hides the cause."""
    with pytest.raises(TableFullError, match="full"):
        Attempts(0.01).pause_after(TableFullError("full"))


def test_the_time_left_is_never_zero() -> None:
    """gRPC takes 0 for no time at all, and fails without a try."""
    assert Attempts(None).left_s() is None
    left_s = Attempts(0.0).left_s()
    assert left_s is not None
    assert 0 < left_s < 0.1


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_service_that_is_not_there_is_named(kind: str) -> None:
    """The error has the address and comes within the timeout."""
    address = f"127.0.0.1:{free_port()}"
    async with connect(kind, address, timeout_s=0.4) as client:
        started = time.monotonic()
        with pytest.raises(
            ServiceUnavailableError, match=rf"no answer from {address} .*see that the service runs there"
        ):
            await client.list_tables()
        assert time.monotonic() - started < 20


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_service_that_does_not_answer_is_a_deadline_error(kind: str) -> None:
    """Something listens and stays silent: the error says that the timeout ended the call, and how long to make it."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host, port = silent.getsockname()
        async with connect(kind, f"{host}:{port}", timeout_s=0.3) as client:
            with pytest.raises(
                (CallDeadlineExceededError, ServiceUnavailableError), match=f"no answer from {host}:{port}"
            ):
                await client.list_tables()


def test_no_exception_of_grpc_is_one_of_ours() -> None:
    """Callers catch GroupReplayError; grpc.RpcError stays inside."""
    assert not issubclass(GroupReplayError, grpc.RpcError)


class Refused(grpc.RpcError):
    """What gRPC itself, or a proxy, ends a call with: no reason of ours is in its metadata."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self._code = code
        self._details = details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> Any:
        return ()


@pytest.mark.parametrize(
    ("code", "details", "error", "fix"),
    [
        (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "SERVER: Received message larger than max (17000000 vs. 16777216)",
            MessageTooLargeError,
            r"larger than max \(17000000 vs. 16777216\); send fewer items in a call, and large groups in parts",
        ),
        (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "received metadata size exceeds hard limit (70000 vs. 65536)",
            MessageTooLargeError,
            r"exceeds hard limit .*; send fewer or shorter headers",
        ),
        (
            grpc.StatusCode.UNIMPLEMENTED,
            "Method not found!",
            InvalidRequestError,
            "see that groupreplay runs there, in a version as new as this client's",
        ),
        (grpc.StatusCode.UNAVAILABLE, "Connection refused", ServiceUnavailableError, "see that the service runs there"),
        (grpc.StatusCode.DATA_LOSS, "bytes are gone", InternalError, "here:1 answered DATA_LOSS: bytes are gone"),
    ],
)
def test_what_grpc_itself_refuses_is_typed_and_says_what_to_do(
    code: grpc.StatusCode, details: str, error: type[GroupReplayError], fix: str
) -> None:
    """Its statuses have no reason of ours; the client gives them one."""
    typed = error_from_rpc(Refused(code, details), "here:1")
    assert type(typed) is error
    assert re.search(fix, str(typed)), typed
