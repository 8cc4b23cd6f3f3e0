"""Names of calls, by which the lines that caller and service log of one call find each other."""

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

METADATA = "groupreplay-request-id"
"""Over gRPC: sent with every call, and back with every error."""
HEADER = "x-request-id"
"""Over HTTP: the same, and back with every answer."""

_ALLOWED = re.compile(r"[!-~]{1,128}")
_current: ContextVar[str] = ContextVar("groupreplay_request_id", default="")


def current_request_id() -> str:
    """Return the name of the call that runs now, or that calls from here will have; empty = none was given."""
    return _current.get()


@contextmanager
def request_id(name: str) -> Iterator[None]:
    """Name the calls that are made within, 1 to 128 visible ASCII characters: in the logs of the service too.

    Without it every attempt of a call gets a name of its own.

        with request_id("step-12"):
            client.next_batch(run="math", table="train", batch_size=64)

    Raises:
        ValueError: the name cannot travel in a header.
    """
    if not is_request_id(name):
        raise ValueError(f"request id {name!r} is not 1 to 128 visible ASCII characters")
    token = _current.set(name)
    try:
        yield
    finally:
        _current.reset(token)


def enter_request(name: str | None) -> str:
    """Take a caller's name for the call that runs now, or make one where there is none that can be used; return it."""
    taken = name if name is not None and is_request_id(name) else new_request_id()
    _current.set(taken)
    return taken


def new_request_id() -> str:
    """Return a name that nobody else has."""
    return uuid.uuid4().hex


def is_request_id(name: str) -> bool:
    """Return whether a name can travel in a header, and in a line of a log."""
    return _ALLOWED.fullmatch(name) is not None
