"""Names in paths: one that no path can hold is refused in words, as everywhere, and not as a path that is not there."""

import re
from urllib.parse import unquote

from starlette.convertors import Convertor, register_url_convertor
from starlette.types import ASGIApp, Receive, Scope, Send

NAME = "name"
"""What routes call the convertor."""
_SLASH = re.compile(b"%2f", re.IGNORECASE)


class Name(Convertor[str]):
    """A part of a path; an empty one too, so that who forgot a name is told which."""

    regex = "[^/]*"

    def convert(self, value: str) -> str:
        return value.replace("%2F", "/")

    def to_string(self, value: str) -> str:
        return value


register_url_convertor(NAME, Name())


class WholeNames:
    """Middleware that keeps an encoded slash, %2F, within the name that it is part of."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = scope.get("raw_path") or b""
        if scope["type"] == "http" and _SLASH.search(raw):
            scope["path"] = unquote(_SLASH.sub(b"%252F", raw).decode("latin-1"))
        await self._app(scope, receive, send)
