"""Bodies as Atropos' clients send them, gzipped above 1 KiB, and every failure as an answer that they understand.

They give up on any 4xx and drop what they sent, so whatever may pass is a 503, which they repeat.
"""

import asyncio
import zlib
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from groupreplay.errors import (
    FuturePolicyVersionError,
    GroupReplayError,
    InvalidRequestError,
    MessageTooLargeError,
)
from groupreplay_server.access import Access
from groupreplay_server.api.atropos.access import RPC_OF
from groupreplay_server.api.atropos.tables import ServedTables
from groupreplay_server.api.checked_call import CheckedCall
from groupreplay_server.api.metrics import Metrics
from groupreplay_server.api.observed_call import observed
from groupreplay_server.api.operations import typed_error
from groupreplay_server.readiness import Readiness

MAX_BODY_BYTES = 512 * 2**20
"""Of a request, unpacked."""
_GZIP = 31  # zlib's window bits for a gzip header


class MalformedGzipError(InvalidRequestError):
    """The body says that it is gzip, and is not."""

    http_status = 400


class UnpackedRequest(Request):
    """A request whose body is what the client had before it compressed it."""

    async def body(self) -> bytes:
        """Return the whole body.

        Raises:
            MessageTooLargeError: it is above MAX_BODY_BYTES.
            MalformedGzipError: it cannot be unpacked.
        """
        if not hasattr(self, "_unpacked"):
            announced = self.headers.get("content-length", "")
            _check_size(int(announced) if announced.isdecimal() else 0)
            pieces, size = [], 0
            async for piece in self.stream():
                size += len(piece)
                _check_size(size)
                pieces.append(piece)
            packed = "gzip" in self.headers.get("content-encoding", "").lower()
            body = b"".join(pieces)
            self._unpacked = await asyncio.to_thread(unpack, body) if packed and body else body
        return self._unpacked


def unpack(packed: bytes, limit: int = MAX_BODY_BYTES) -> bytes:
    """Return gzip members unpacked.

    Raises:
        MessageTooLargeError: they hold more than `limit` bytes.
        MalformedGzipError: they are not gzip, or end too soon.
    """
    pieces, size = [], 0
    while packed:
        unpacking = zlib.decompressobj(_GZIP)
        try:
            piece = unpacking.decompress(packed, limit + 1 - size)
        except zlib.error as error:
            raise MalformedGzipError(f"Invalid gzip payload: {error}") from error
        size += len(piece)
        _check_size(size, limit)
        if not unpacking.eof:
            raise MalformedGzipError("Invalid gzip payload: it ends too soon; send it whole")
        pieces.append(piece)
        packed = unpacking.unused_data
    return b"".join(pieces)


def _check_size(size: int, limit: int = MAX_BODY_BYTES) -> None:
    if size > limit:
        raise MessageTooLargeError(f"the body has more than {limit} bytes, unpacked; push fewer groups at once")


def route_class(tables: ServedTables, readiness: Readiness, metrics: Metrics, access: Access) -> type[APIRoute]:
    """Return the class of routes whose callers are looked at, and whose calls are observed."""

    class AtroposRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle, rpc, method = super().get_route_handler(), RPC_OF[self.name], f"Atropos.{self.name}"

            async def answer(request: Request) -> Response:
                checked = CheckedCall(access, rpc)
                try:
                    with observed(metrics, access, rpc, checked.target, method=method):
                        readiness.check_taking_calls()
                        served = tables.of(request)
                        checked.check_path({"run": served.run, "table": served.table})
                        unpacked = UnpackedRequest(request.scope, request.receive)
                        await unpacked.body()  # here: FastAPI takes any error of it for malformed JSON
                        return await _handle(handle, unpacked)
                except ClientDisconnect:
                    return Response(status_code=HTTPStatus.NO_CONTENT)  # nobody reads it
                except Exception as error:  # noqa: BLE001  the boundary: every fault becomes an answer
                    return _refusal(typed_error(method, error))

            return answer

    return AtroposRoute


async def _handle(handle: Callable[[Request], Coroutine[Any, Any, Response]], request: Request) -> Response:
    try:
        return await handle(request)
    except RequestValidationError as error:
        raise InvalidRequestError(f"the body is not what {request.url.path} takes") from error


def _refusal(error: GroupReplayError) -> JSONResponse:
    detail: Any = str(error)
    if isinstance(error.__cause__, RequestValidationError):  # in FastAPI's words, without the input
        detail = [{name: problem[name] for name in ("type", "loc", "msg")} for problem in error.__cause__.errors()]
    headers = {"Connection": "close"} if isinstance(error, MessageTooLargeError) else {}  # or the rest would be read
    return JSONResponse(
        {"detail": detail, "reason": error.reason}, 503 if may_pass(error) else error.http_status, headers
    )


def may_pass(error: GroupReplayError) -> bool:
    """Whether the same push may be taken later; the policy clock may have gone back while it was read."""
    return error.retryable or isinstance(error, FuturePolicyVersionError)
