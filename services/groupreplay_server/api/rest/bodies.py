"""Reads what a request carries: never more than a limit, whatever its sender says or keeps to himself."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

import orjson
from fastapi import Request
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from starlette.requests import ClientDisconnect

from groupreplay.errors import InvalidRequestError, MessageTooLargeError
from groupreplay_server.api.rest.transcode import INTEGERS, Json, mismatch, scalar, set_field

MAX_REQUEST_BYTES = 16 * 2**20
"""Of a body without groups: 65536 items of feedback fit."""
MAX_GROUPS_BYTES = 96 * 2**20
"""Of a body with groups, or of one line of NDJSON: a payload of 64 MiB fits as base64."""
JSON_TYPE, LINES_TYPE = "application/json", "application/x-ndjson"
_Result = TypeVar("_Result")


class MediaTypeError(InvalidRequestError):
    """The body is of another type than the route takes.

    Browsers send what other pages ask them to, but not under these types without asking us first.
    """

    http_status = 415


def check_type(request: Request, expected: str) -> None:
    """Raise MediaTypeError unless the request says that its body, even an empty one, is of the expected type."""
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    encoding = request.headers.get("content-encoding", "identity").lower()
    if given != expected or encoding != "identity":
        raise MediaTypeError(
            f"the body is {given[:100] or 'of no type'!r}, encoded as {encoding[:100]!r}; send Content-Type: "
            f"{expected}, without an encoding"
        )


async def read_json(request: Request, most_bytes: int) -> Json:
    """Return the body; an empty one is an empty object.

    Raises:
        MessageTooLargeError: it is, or would become, longer than most_bytes.
        InvalidRequestError: it is no JSON.
        ClientDisconnect: its sender went away.
    """
    check_type(request, JSON_TYPE)
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > most_bytes:
        raise _too_large("the body", int(length), most_bytes)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most_bytes:
            raise _too_large("the body", len(body), most_bytes)
    request.state.body_was_read = True
    return parse(body, "the body") if body.strip() else {}


async def read_lines(request: Request) -> AsyncIterator[list[tuple[int, bytes]]]:
    """Yield the lines of an NDJSON body with their numbers from 1, as many as have come.

    Raises:
        MessageTooLargeError: a line is longer than MAX_GROUPS_BYTES.
    """
    check_type(request, LINES_TYPE)
    pending, number = bytearray(), 0
    async for chunk in request.stream():
        pending += chunk
        if len(pending) > MAX_GROUPS_BYTES and b"\n" not in pending[:MAX_GROUPS_BYTES]:
            raise _too_large(f"line {number + 1}", len(pending), MAX_GROUPS_BYTES)
        if b"\n" in chunk:
            *lines, pending = pending.split(b"\n")
            yield [(number + index, bytes(line)) for index, line in enumerate(lines, 1) if line.strip()]
            number += len(lines)
    request.state.body_was_read = True
    if pending.strip():
        yield [(number + 1, bytes(pending))]


def closing(request: Request) -> dict[str, str]:
    """Return the headers of an answer to a body that was not read to its end: or its sender would go on sending."""
    unread = request.method != "GET" and not getattr(request.state, "body_was_read", False)
    return {"Connection": "close"} if unread else {}


def parse(text: bytes | bytearray, where: str) -> Json:
    """Return the JSON of a text.

    Raises:
        InvalidRequestError: it is none.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError(f"{where} is no JSON: {error}; {len(text)} bytes came") from None


def _too_large(what: str, size: int, limit: int) -> MessageTooLargeError:
    return MessageTooLargeError(
        f"{what} has {size} bytes or more, at most {limit} are read; send fewer groups in a call, columns as base64, "
        "or use gRPC"
    )


def set_from_text(message: Message, field: FieldDescriptor, texts: list[str]) -> None:
    """Set a field from a path or a query, where everything is text."""
    values = [_from_text(field, text) for text in texts]
    if not field.is_repeated and len(values) > 1:
        raise InvalidRequestError(f"{field.name} comes {len(values)} times in the query; give it once")
    set_field(message, field, values if field.is_repeated else values[0], field.name)


def _from_text(field: FieldDescriptor, text: str) -> Json:
    if field.type in INTEGERS:
        if not text.removeprefix("-").isdecimal() or len(text) > 20:
            raise mismatch(field.name, text, "an integer")
        return int(text)
    if field.type == FieldDescriptor.TYPE_BOOL:
        return scalar(field, {"true": True, "false": False}.get(text, text), field.name)
    if field.type == FieldDescriptor.TYPE_DOUBLE:
        return real_from_text(text, field.name)
    return text


def real_from_text(text: str, name: str) -> float:
    """Return the number that a text says."""
    try:
        return float(text)
    except ValueError:
        raise mismatch(name, text, "a number") from None


async def while_caller_listens(request: Request, work: Coroutine[Any, Any, _Result]) -> _Result:
    """Return the result of work; cancel it when the caller goes away, so that nobody waits for nobody.

    The body has been read.

    Raises:
        ClientDisconnect: the caller went away.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_until_gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.wait({working, leaving})
        if not working.cancelled():
            working.exception()  # nobody is left to be told; asyncio would complain that nobody asked


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
