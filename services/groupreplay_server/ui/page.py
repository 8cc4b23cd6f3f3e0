"""Serves the page at /ui/ from the package. It is open to all, as the files are; what it shows is behind the token."""

import hashlib
from dataclasses import dataclass
from http import HTTPStatus
from importlib.resources import files
from typing import Self

from fastapi import APIRouter, Request, Response

from groupreplay_server.api.metrics import Metrics

PATH = "/ui"
PAGE = f"{PATH}/"
METHOD = "Page"
"""What metrics call a request for any of its files: there is no RPC behind them, and no caller to look at."""
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-cache",
}
"""Texts of groups come from models and data sets: the browser itself runs and loads nothing that is not ours."""
_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PageFile:
    """A file of the page."""

    content: bytes
    media_type: str
    etag: str

    @classmethod
    def of(cls, name: str, content: bytes) -> Self:
        """Return the file of this name."""
        etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        return cls(content=content, media_type=_TYPES[name.rpartition(".")[2]], etag=etag)


def page_files() -> dict[str, PageFile]:
    """Return the files of the page by name."""
    folder = files("groupreplay_server.ui").joinpath("static")
    return {entry.name: PageFile.of(entry.name, entry.read_bytes()) for entry in folder.iterdir()}


def page_paths(*, at_root: bool = True) -> list[str]:
    """Return the paths of make_router: nothing under them is secret, and who opens the page has no token yet."""
    names = ["" if name == "index.html" else name for name in page_files()]
    return [*_short_paths(at_root=at_root), *(f"{PAGE}{name}" for name in names)]


def _short_paths(*, at_root: bool) -> list[str]:
    return ["/", PATH] if at_root else [PATH]


def make_router(metrics: Metrics, *, at_root: bool = True) -> APIRouter:
    """Return the routes of the page, counted as one; at_root leads / to it as well."""
    router = APIRouter(include_in_schema=False)
    served = page_files()
    served[""] = served.pop("index.html")

    def answer(request: Request, file: PageFile) -> Response:
        headers = {**HEADERS, "ETag": file.etag}
        if request.headers.get("if-none-match") == file.etag:
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
        return Response(file.content, headers=headers, media_type=file.media_type)

    for name, file in served.items():

        async def read(request: Request, file: PageFile = file) -> Response:
            with metrics.call(METHOD):
                return answer(request, file)

        router.add_api_route(f"{PAGE}{name}", read, methods=["GET", "HEAD"])

    async def lead(_: Request) -> Response:
        with metrics.call(METHOD):
            return Response(status_code=HTTPStatus.TEMPORARY_REDIRECT, headers={"Location": "ui/"})

    for path in _short_paths(at_root=at_root):
        router.add_api_route(path, lead, methods=["GET", "HEAD"])
    return router
