"""Tokens over HTTP: everything but the probes is behind them, before a body is read."""

import math
from typing import TYPE_CHECKING

from fastapi.responses import JSONResponse

from groupreplay.errors import GroupReplayError
from groupreplay_server.access import Access

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

PROBES = frozenset({"/healthz", "/readyz"})
"""Open to all: load balancers have no token, and these tell nothing of what is kept."""
METRICS = "/metrics"


class AccessMiddleware:
    """Refuses requests without a good token."""

    def __init__(self, app: "ASGIApp", access: Access, *, open_metrics: bool) -> None:
        """open_metrics: /metrics is for all; it names runs and tables."""
        self._app = app
        self._access = access
        self._open = PROBES | ({METRICS} if open_metrics else frozenset())

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] != "http" or scope["path"] in self._open:
            await self._app(scope, receive, send)
            return
        authorization = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        host, port = scope.get("client") or ("", 0)
        try:
            caller = await self._access.enter(authorization.decode("latin-1"), peer=f"{host}:{port}", door="http")
            if scope["path"] == METRICS:
                self._access.check_run(caller, "GetServerInfo", "")  # all tables of all runs are on it
        except GroupReplayError as error:
            await problem(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def problem(error: GroupReplayError) -> JSONResponse:
    """Return the answer to a request that failed (RFC 9457)."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if error.http_status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    content = {"title": error.reason, "status": error.http_status, "detail": str(error), "reason": error.reason}
    return JSONResponse(content, error.http_status, headers, media_type="application/problem+json")
