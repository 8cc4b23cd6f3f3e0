"""Names of calls over HTTP: X-Request-ID is taken from the caller, or made, and sent back; traceparent is taken."""

from typing import TYPE_CHECKING

from groupreplay.request_ids import HEADER, enter_request
from groupreplay.tracing import TRACEPARENT, enter_caller

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADER, _PARENT = HEADER.encode(), TRACEPARENT.encode()


class RequestIds:
    """Middleware that names each call."""

    def __init__(self, app: "ASGIApp") -> None:
        self._app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        taken = enter_request(_given(scope, _HEADER))
        enter_caller(_given(scope, _PARENT))

        async def sending(message: "Message") -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (_HEADER, taken.encode())]
            await send(message)

        await self._app(scope, receive, sending)


def _given(scope: "Scope", header: bytes) -> str | None:
    found = next((value for name, value in scope["headers"] if name == header), None)
    return None if found is None else found.decode("latin-1")
