"""The HTTP front door: health, readiness, metrics, and the Atropos API."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from groupreplay.errors import GroupReplayError
from groupreplay_server.api.atropos import include_atropos
from groupreplay_server.api.metrics import Metrics
from groupreplay_server.readiness import Readiness
from groupreplay_server.service import ReplayService


def make_app(service: ReplayService, readiness: Readiness, metrics: Metrics, *, atropos_table: str = "") -> FastAPI:
    """Return the ASGI application.

    Raises:
        OSError: atropos_table is not RUN/TABLE.
    """
    app = FastAPI(title="groupreplay", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/healthz")
    async def healthz() -> PlainTextResponse:
        """The process runs."""
        return PlainTextResponse("ok\n")

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        """The service takes calls: Redis answers, and it is not draining."""
        obstacle = await readiness.obstacle()
        return JSONResponse({"ready": obstacle is None, "obstacle": obstacle}, 503 if obstacle else 200)

    @app.get("/metrics")
    async def metrics_page() -> Response:
        """What Prometheus scrapes; without the tables while Redis is away."""
        try:
            tables = await service.list_tables()
        except GroupReplayError:
            tables = []
        return Response(metrics.exposition(tables), media_type=CONTENT_TYPE_LATEST)

    include_atropos(app, service, metrics, at_root=atropos_table)
    return app


class HttpServer:
    """uvicorn on a socket that is bound before the service says it is ready; signals are left to the service."""

    def __init__(self, app: FastAPI) -> None:
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off")
        self._server = _QuietServer(config)
        self._socket: socket.socket | None = None

    def bind(self, address: str) -> int:
        """Listen on host:port (0 = any free port); return the port."""
        host, _, port = address.rpartition(":")
        if not port.isdecimal() or int(port) > 65535:
            raise OSError(f"HTTP cannot listen on {address}: it is not host:port; pass --http-listen 127.0.0.1:8080")
        try:
            self._socket = socket.create_server((host or "127.0.0.1", int(port)), reuse_port=False)
        except OSError as error:
            raise OSError(
                f"HTTP cannot listen on {address}: {error.strerror}; stop what has the port or pass --http-listen"
            ) from error
        return int(self._socket.getsockname()[1])

    async def serve(self) -> None:
        """Serve until stop()."""
        assert self._socket is not None
        await self._server.serve(sockets=[self._socket])

    def stop(self) -> None:
        """End serve()."""
        self._server.should_exit = True


class _QuietServer(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
