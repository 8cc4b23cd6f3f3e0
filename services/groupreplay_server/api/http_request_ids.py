"""Names of calls over HTTP: X-Request-ID is taken from the caller, or made, and sent back."""

from typing import TYPE_CHECKING

from groupreplay.request_ids import HEADER, enter_request

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADER = HEADER.encode()


class RequestIds:
    """Middleware that names each call."""

    def __init__(self, app: "ASGIApp") -> None:
        self._app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == _HEADER), None)
        taken = enter_request(None if given is None else given.decode("latin-1"))

        async def sending(message: "Message") -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (_HEADER, taken.encode())]
            await send(message)

        await self._app(scope, receive, sending)
