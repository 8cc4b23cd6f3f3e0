"""The HTTP front door: REST, the Atropos API, the page, health, readiness and metrics."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from groupreplay.errors import GroupReplayError
from groupreplay_server.access import Access
from groupreplay_server.api import rest
from groupreplay_server.api.atropos import include_atropos
from groupreplay_server.api.http_calls import DOCUMENT, METRICS
from groupreplay_server.api.metrics import UNKNOWN, Metrics
from groupreplay_server.api.operations import Operations
from groupreplay_server.api.rest.paths import WholeNames
from groupreplay_server.api.rest.problems import NoRouteError, error_problem, http_problem
from groupreplay_server.api.rest.router import make_router
from groupreplay_server.api.running import CountCalls, RunningCalls
from groupreplay_server.certificates import Certificates
from groupreplay_server.measuring import Measurer
from groupreplay_server.readiness import Readiness
from groupreplay_server.service import ReplayService
from groupreplay_server.ui import page

_LAST_SECOND = 1
"""Seconds for an answer that is on its way when the server stops."""


def make_app(
    *,
    service: ReplayService,
    operations: Operations,
    measurer: Measurer,
    readiness: Readiness,
    metrics: Metrics,
    access: Access,
    running: RunningCalls,
    atropos_table: str = "",
) -> FastAPI:
    """Return the ASGI application.

    Raises:
        OSError: atropos_table is not RUN/TABLE.
    """
    app = FastAPI(title="groupreplay", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)

    async def no_route(request: Request, error: Exception) -> Response:
        metrics.refused(UNKNOWN, NoRouteError.reason)
        return await http_problem(request, error)

    app.add_exception_handler(HTTPException, no_route)
    app.add_exception_handler(GroupReplayError, error_problem)
    app.add_middleware(WholeNames)
    app.add_middleware(CountCalls, running=running)
    app.include_router(make_router(operations, readiness, metrics, access))
    app.include_router(page.make_router(metrics, at_root=not atropos_table))

    document = resources.files(rest).joinpath("openapi.json").read_bytes()

    @app.get(DOCUMENT)
    async def openapi() -> Response:
        """What the REST door takes and answers."""
        return Response(document, media_type="application/json")

    @app.get("/healthz")
    async def healthz() -> PlainTextResponse:
        """The process runs."""
        return PlainTextResponse("ok\n")

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        """The service takes calls: Redis answers, and it is not draining."""
        obstacle = await readiness.obstacle()
        return JSONResponse({"ready": obstacle is None, "obstacle": obstacle}, 503 if obstacle else 200)

    @app.get(METRICS)
    async def metrics_page() -> Response:
        """What Prometheus scrapes; without the tables while Redis is away."""
        return Response(await metrics.page(await measurer.read()), media_type=CONTENT_TYPE_LATEST)

    include_atropos(app, service, readiness, metrics, access, at_root=atropos_table)
    return app


class HttpServer:
    """uvicorn on a socket that is bound before the service says it is ready; signals are left to the service."""

    def __init__(self, app: FastAPI, running: RunningCalls, certificates: Certificates | None = None) -> None:
        config = uvicorn.Config(
            app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=_LAST_SECOND
        )
        if certificates is not None:
            config.load()
            config.ssl = certificates.http_context()
        self._running = running
        self._server = _QuietServer(config)
        self._socket: socket.socket | None = None

    def bind(self, address: str) -> int:
        """Listen on host:port or [IPv6 address]:port (0 = any free port), on :port everywhere; return the port."""
        host, _, port = address.rpartition(":")
        if not port.isdecimal() or int(port) > 65535:
            raise OSError(f"HTTP cannot listen on {address}: it is not host:port; pass --http-listen 127.0.0.1:8080")
        try:
            both = not host and socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if both or host.startswith("[") else socket.AF_INET
            self._socket = socket.create_server((host.strip("[]"), int(port)), family=family, dualstack_ipv6=both)
        except OSError as error:
            raise OSError(
                f"HTTP cannot listen on {address}: {error.strerror}; stop what has the port or pass --http-listen"
            ) from error
        return int(self._socket.getsockname()[1])

    async def serve(self) -> None:
        """Serve until stop()."""
        assert self._socket is not None
        await self._server.serve(sockets=[self._socket])

    async def drain(self, grace_s: float) -> None:
        """Let running calls end within grace_s; health and readiness are still answered."""
        await self._running.none_left(grace_s)

    def stop(self) -> None:
        """End serve(), and cut the calls that still run."""
        self._server.should_exit = True


class _QuietServer(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
