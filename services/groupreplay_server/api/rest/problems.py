"""Errors as application/problem+json (RFC 9457), by the one table in groupreplay.errors."""

import http
import math

import orjson
from fastapi import Request, Response
from starlette.exceptions import HTTPException

from groupreplay.errors import GroupReplayError, InvalidRequestError
from groupreplay_server.api.rest.transcode import Json

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:groupreplay:error:"
RETRY_AFTER_S = 1


def problem(error: GroupReplayError, status: int | None = None) -> dict[str, Json]:
    """Return the problem object of an error; status where HTTP has a better one than the error's own."""
    return {
        "type": TYPE_PREFIX + error.reason,
        "title": (type(error).__doc__ or error.reason).splitlines()[0],
        "status": status or error.http_status,
        "detail": str(error),
        "reason": error.reason,
        "retryable": error.retryable,
    }


def problem_response(
    error: GroupReplayError, status: int | None = None, headers: dict[str, str] | None = None
) -> Response:
    """Return the answer of a failed call."""
    content = problem(error, status)
    more = {"Retry-After": str(math.ceil(error.retry_after_s or RETRY_AFTER_S))} if error.retryable else {}
    if content["status"] == http.HTTPStatus.UNAUTHORIZED:
        more["WWW-Authenticate"] = "Bearer"
    return Response(orjson.dumps(content), content["status"], {**more, **(headers or {})}, MEDIA_TYPE)


class NoRouteError(InvalidRequestError):
    """There is nothing under this path, or it takes other methods."""


async def error_problem(_: Request, error: Exception) -> Response:
    """Return the answer of an error that a dependency of a route raised: an exception handler of FastAPI's."""
    assert isinstance(error, GroupReplayError)
    return problem_response(error)


async def http_problem(request: Request, error: Exception) -> Response:
    """Return the answer where no route, or no method of a route, is asked for: an exception handler of FastAPI's."""
    assert isinstance(error, HTTPException)
    asked, headers = f"{request.method} {request.url.path[:200]}", dict(error.headers or {})
    detail = f"{asked}: {error.detail}"
    if error.status_code == http.HTTPStatus.NOT_FOUND:
        detail = f"{asked}: there is nothing here; /openapi.json lists what there is"
    elif error.status_code == http.HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(sorted(headers.pop("Allow", "").split(", ")))
        detail = f"{asked}: this path takes {headers['Allow']}"
    return problem_response(NoRouteError(detail), error.status_code, headers)
