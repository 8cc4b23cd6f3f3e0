"""One vocabulary of errors."""

import pickle

import grpc
import pytest

import groupreplay
from groupreplay.errors import ERRORS, GroupReplayError, InternalError, error_from_reason
from groupreplay.v1 import error_pb2

REASONS = [name for name in error_pb2.ErrorReason.keys() if name != "ERROR_REASON_UNSPECIFIED"]  # noqa: SIM118


def test_every_reason_has_one_class_and_every_class_one_reason() -> None:
    """The protocol's enum and the exceptions grow together."""
    assert sorted(ERRORS) == sorted(REASONS)
    assert len(GroupReplayError.__subclasses__()) == len(REASONS)
    assert all(reason == cls.reason for reason, cls in ERRORS.items())


@pytest.mark.parametrize("reason", REASONS)
def test_an_error_says_what_it_is(reason: str) -> None:
    """Exported, named after its reason or not, with a code of gRPC and one of HTTP, and a sentence for people."""
    cls = ERRORS[reason]
    assert getattr(groupreplay, cls.__name__) is cls
    assert cls.__name__ in groupreplay.__all__
    assert cls.__doc__ is not GroupReplayError.__doc__
    assert isinstance(cls.grpc_code, grpc.StatusCode)
    assert cls.grpc_code is not grpc.StatusCode.OK
    assert 400 <= cls.http_status < 600
    assert "reason" in vars(cls) or cls is InternalError


@pytest.mark.parametrize("reason", REASONS)
def test_an_error_survives_pickling(reason: str) -> None:
    """It crosses process boundaries with its class and its message."""
    error = error_from_reason(reason, "what, value, limit, fix")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.args) == (
        ERRORS[reason],
        "what, value, limit, fix",
        ("what, value, limit, fix",),
    )


def test_what_may_pass_is_what_the_service_could_not_finish() -> None:
    """Only these are repeated by the clients; all of them are 429 or 503 to HTTP."""
    retryable = {reason for reason, cls in ERRORS.items() if cls.retryable}
    assert retryable == {
        "TABLE_FULL", "QUOTA_EXCEEDED", "RATE_LIMITED", "STORE_UNAVAILABLE", "DURABILITY_NOT_REACHED", "SHUTTING_DOWN",
        "SERVICE_UNAVAILABLE",
    }  # fmt: skip
    assert {cls.http_status for cls in ERRORS.values() if cls.retryable} == {429, 503}


def test_a_reason_of_a_newer_service_is_an_internal_error_that_names_it() -> None:
    """Old clients stay readable."""
    error = error_from_reason("OUT_OF_CHEESE", "no cheese")
    assert (type(error), str(error)) == (InternalError, "OUT_OF_CHEESE: no cheese")
