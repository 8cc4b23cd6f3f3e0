"""Tokens over HTTP: everything but the probes and the files of the page is behind them, before a body is read."""

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

from groupreplay.errors import GroupReplayError
from groupreplay_server.access import Access
from groupreplay_server.api.atropos.access import authorization_of
from groupreplay_server.api.rest.problems import problem_response

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

PROBES = frozenset({"/healthz", "/readyz"})
"""Open to all: load balancers have no token, and these tell nothing of what is kept."""
METRICS = "/metrics"
_FORGOTTEN_BYTES = 2**20
"""A refused body up to this size is read and forgotten, so that its connection can go on."""


class AccessMiddleware:
    """Refuses requests without a good token."""

    def __init__(self, app: "ASGIApp", access: Access, *, open_metrics: bool, files: Iterable[str] = ()) -> None:
        """Guard an application.

        Args:
            open_metrics: /metrics is for all; it names runs and tables.
            files: paths of what is in the package for all to read.
        """
        self._app = app
        self._access = access
        self._open = PROBES | ({METRICS} if open_metrics else frozenset()) | frozenset(files)

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] != "http" or scope["path"] in self._open:
            await self._app(scope, receive, send)
            return
        authorization = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        host, port = scope.get("client") or ("", 0)
        try:
            shown = authorization_of(scope["path"], authorization.decode("latin-1"))
            caller = await self._access.enter(shown, peer=f"{host}:{port}", door="http")
            if scope["path"] == METRICS:
                self._access.check_run(caller, "GetServerInfo", "")  # all tables of all runs are on it
        except GroupReplayError as error:
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


def _is_large(scope: "Scope") -> bool:
    """Whether a body is above _FORGOTTEN_BYTES, or does not say how long it is."""
    headers = dict(scope["headers"])
    length = headers.get(b"content-length", b"0")
    return b"transfer-encoding" in headers or not length.isdigit() or int(length[:20]) > _FORGOTTEN_BYTES
