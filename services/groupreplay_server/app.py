"""Composes the service and runs it until it is told to stop."""

import asyncio
import json
import logging
import os
import signal
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import gethostname

from groupreplay.tracing import traced
from groupreplay_server.about import About
from groupreplay_server.access import Access
from groupreplay_server.admin_token import AdminTokenFile
from groupreplay_server.api.grpc_access import AccessInterceptor
from groupreplay_server.api.grpc_api import GrpcApi
from groupreplay_server.api.grpc_server import GrpcServer
from groupreplay_server.api.http_access import AccessMiddleware
from groupreplay_server.api.http_api import HttpServer, make_app
from groupreplay_server.api.http_request_ids import RequestIds
from groupreplay_server.api.metrics import Metrics
from groupreplay_server.api.operations import Operations
from groupreplay_server.api.running import RunningCalls
from groupreplay_server.audit import AuditLog
from groupreplay_server.certificates import Certificates
from groupreplay_server.closer import Closer
from groupreplay_server.embedded import embedded_redis
from groupreplay_server.exposure import check_exposure
from groupreplay_server.janitor import Janitor
from groupreplay_server.measuring import Measurer
from groupreplay_server.rate_limiter import RateLimiter
from groupreplay_server.readiness import Readiness
from groupreplay_server.service import ReplayService
from groupreplay_server.settings import ServerSettings
from groupreplay_server.store.address import RedisAccess, read_address
from groupreplay_server.store.connection import listen, open_redis
from groupreplay_server.store.durability import WaitLimits
from groupreplay_server.store.keys import WAKE_CHANNEL
from groupreplay_server.store.orphans import OrphanStore
from groupreplay_server.store.payload_cache import PayloadCache
from groupreplay_server.store.redis_store import RedisStore
from groupreplay_server.store.token_store import TokenStore
from groupreplay_server.sweeper import Sweeper
from groupreplay_server.tokens import Tokens
from groupreplay_server.ui.page import PAGE, page_paths
from groupreplay_server.wakeups import WakeUps

_log = logging.getLogger(__name__)
_CANCEL_AGAIN_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningServer:
    """Where a started service answers."""

    grpc_address: str
    http_address: str
    redis_url: str
    """Without the password."""


async def serve(settings: ServerSettings) -> None:
    """Run until SIGTERM or SIGINT, then drain."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running_server(settings) as server:
        _log.info("gRPC on %s, HTTP on %s, Redis at %s", server.grpc_address, server.http_address, server.redis_url)
        _log.info("the page: http://%s%s", server.http_address, PAGE)
        await stop.wait()
        _log.info("draining for at most %g s", settings.drain_s)
    _log.info("stopped")


@asynccontextmanager
async def running_server(settings: ServerSettings) -> AsyncIterator[RunningServer]:
    """Start the service; on exit refuse new calls, wake parked ones, let running ones end, close."""
    redis_access, limits = _redis_settings(settings)
    check_exposure(settings)
    tls_files = settings.tls_files()
    certificates = Certificates(tls_files) if tls_files else None
    admin = AdminTokenFile(settings.admin_token_file) if settings.admin_token_file else None
    limiter = RateLimiter(settings.rate_limits())
    async with AsyncExitStack() as stack:
        stack.enter_context(
            traced(settings.trace, service="groupreplay-server", instance=f"{gethostname()}-{os.getpid()}")
        )
        redis_url = settings.redis_url or await stack.enter_async_context(
            embedded_redis(settings.data_dir, appendfsync=settings.redis_appendfsync)
        )
        redis = await stack.enter_async_context(open_redis(redis_url, access=redis_access, limits=limits))
        listener = await stack.enter_async_context(open_redis(redis_url, access=redis_access, reply_timeout_s=None))
        cache = PayloadCache(settings.payload_cache_bytes)
        store = RedisStore(redis, cache=cache)
        wakeups, janitor, readiness, metrics = WakeUps(), Janitor(store), Readiness(store), Metrics(cache)
        about = About(
            store,
            redis_url=read_address(redis_url).shown,
            data_dir=None if settings.redis_url else settings.data_dir,
            min_replicas=settings.durability_min_replicas,
        )
        tokens = Tokens(TokenStore(redis), admin)
        service = ReplayService(store, wakeups, janitor, about, tokens)
        audit = stack.enter_context(AuditLog(settings.audit_log))
        access = Access(tokens if settings.asks_for_tokens else None, limiter, audit)
        closer = Closer(store, service.partial_groups, wakeups)
        operations = Operations(service, metrics)
        grpc_server = GrpcServer(
            GrpcApi(operations, metrics, access),
            AccessInterceptor(access, metrics),
            max_connection_age_s=settings.max_connection_age_s,
        )
        calls = RunningCalls()
        app = make_app(
            service=service,
            operations=operations,
            measurer=Measurer(store),
            readiness=readiness,
            metrics=metrics,
            access=access,
            running=calls,
            atropos_table=settings.atropos_table,
        )
        files = page_paths(at_root=not settings.atropos_table)
        app.add_middleware(
            AccessMiddleware,
            access=access,
            metrics=metrics,
            open_metrics=settings.open_metrics,
            files=files,
            atropos_at_root=bool(settings.atropos_table),
        )
        app.add_middleware(RequestIds)
        http_server = HttpServer(app, calls, certificates)
        if certificates is not None:
            metrics.serves(certificates)
        grpc_port = grpc_server.bind(settings.grpc_listen, certificates)
        http_port = http_server.bind(settings.http_listen)
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        background = [
            tasks.create_task(wakeups.dispatch(listen(listener, WAKE_CHANNEL))),
            tasks.create_task(janitor.run()),
            tasks.create_task(service.keeping.run()),
            tasks.create_task(closer.run()),
            tasks.create_task(Sweeper(OrphanStore(redis)).run()),
        ]
        tasks.create_task(http_server.serve())
        await grpc_server.start()
        addresses = RunningServer(
            grpc_address=_with_port(settings.grpc_listen, grpc_port),
            http_address=_with_port(settings.http_listen, http_port),
            redis_url=read_address(redis_url).shown,
        )
        if settings.ready_file:
            _write_ready_file(settings.ready_file, addresses)
        try:
            yield addresses
        finally:
            readiness.start_draining()
            await grpc_server.refuse()
            wakeups.close()
            await asyncio.gather(grpc_server.stop(settings.drain_s), http_server.drain(settings.drain_s))
            http_server.stop()
            await _end(background)


def _redis_settings(settings: ServerSettings) -> tuple[RedisAccess, WaitLimits]:
    try:
        return settings.redis_access(), settings.wait_limits()
    except ValueError as error:
        raise OSError(f"the settings of Redis cannot be used: {error}") from error


async def _end(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancel tasks until they have ended: redis-py swallows a cancellation that comes while a connection breaks."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_CANCEL_AGAIN_S)


def _with_port(address: str, port: int) -> str:
    return address if address.startswith("unix:") else f"{address.rpartition(':')[0] or '127.0.0.1'}:{port}"


def _write_ready_file(path: Path, running: RunningServer) -> None:
    content = {
        "pid": os.getpid(),
        "grpc_address": running.grpc_address,
        "http_address": running.http_address,
        "redis_url": running.redis_url,
    }
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content))
    temporary.replace(path)
