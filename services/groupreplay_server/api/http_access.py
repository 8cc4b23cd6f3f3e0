"""Tokens over HTTP: everything but the probes and the files of the page is behind them, before a body is read."""

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

from groupreplay.errors import GroupReplayError, MessageTooLargeError
from groupreplay_server.access import Access
from groupreplay_server.api.atropos.access import authorization_of
from groupreplay_server.api.http_calls import METRICS, call_name
from groupreplay_server.api.metrics import Metrics
from groupreplay_server.api.rest.problems import problem_response

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

PROBES = frozenset({"/healthz", "/readyz"})
"""Open to all: load balancers have no token, and these tell nothing of what is kept."""
MAX_HEADER_BYTES = 32 * 2**10
"""Of a request's headers. Browsers send along what other services of the same host left with them."""
_FORGOTTEN_BYTES = 2**20
"""A refused body up to this size is read and forgotten, so that its connection can go on."""


class HeadersTooLargeError(MessageTooLargeError):
    """The headers are larger than the service reads."""

    http_status = 431


class AccessMiddleware:
    """Refuses requests without a good token, and counts what it refuses."""

    def __init__(
        self,
        app: "ASGIApp",
        access: Access,
        metrics: Metrics,
        *,
        open_metrics: bool,
        files: Iterable[str] = (),
        atropos_at_root: bool = False,
    ) -> None:
        """Guard an application.

        Args:
            open_metrics: /metrics is for all; it names runs and tables.
            files: paths of what is in the package for all to read.
            atropos_at_root: the Atropos API is served at the root too.
        """
        self._app = app
        self._access = access
        self._metrics = metrics
        self._atropos_at_root = atropos_at_root
        self._open = PROBES | ({METRICS} if open_metrics else frozenset()) | frozenset(files)

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] != "http" or scope["path"] in self._open:
            await self._app(scope, receive, send)
            return
        authorization = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        host, port = scope.get("client") or ("", 0)
        try:
            _check_size(scope)
            shown = authorization_of(scope["path"], authorization.decode("latin-1"))
            caller = await self._access.enter(shown, peer=f"{host}:{port}", door="http")
            if scope["path"] == METRICS:
                self._access.check_run(caller, "GetServerInfo", "")  # all tables of all runs are on it
        except GroupReplayError as error:
            name = call_name(scope["method"], scope["path"], atropos_at_root=self._atropos_at_root)
            self._metrics.refused(name, error.reason)
            more = {"Connection": "close"} if _is_large(scope) else None  # or all of it would be read, to be forgotten
            await problem_response(error, headers=more)(scope, receive, send)
            return

        async def received() -> "Message":
            message = await receive()
            if body := message.get("body"):
                await self._access.confirm(caller)
                await self._pay(len(body))
            return message

        async def sending(message: "Message") -> None:
            if body := message.get("body"):
                await self._pay(len(body))
            await send(message)

        await self._app(scope, received, sending)

    async def _pay(self, size: int) -> None:
        if wait_s := self._access.charge(size):
            await asyncio.sleep(wait_s)


def _check_size(scope: "Scope") -> None:
    size = sum(len(name) + len(value) for name, value in scope["headers"])
    if size > MAX_HEADER_BYTES:
        raise HeadersTooLargeError(
            f"the headers have {size} bytes, at most {MAX_HEADER_BYTES} are taken; the token and a request id are all "
            "that is asked for"
        )


def _is_large(scope: "Scope") -> bool:
    """Whether a body is above _FORGOTTEN_BYTES, or does not say how long it is."""
    headers = dict(scope["headers"])
    length = headers.get(b"content-length", b"0")
    return b"transfer-encoding" in headers or not length.isdigit() or int(length[:20]) > _FORGOTTEN_BYTES
