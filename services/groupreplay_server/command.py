"""`groupreplay serve`."""

import asyncio
import logging
import sys
from collections.abc import Coroutine
from typing import Any

from groupreplay.allocator import expect_large_blocks
from groupreplay.logs import configure_logging
from groupreplay_server.app import serve
from groupreplay_server.embedded import EmbeddedRedisError
from groupreplay_server.settings import ServerSettings

_DEFAULTS = ServerSettings()


def run_server(settings: ServerSettings = _DEFAULTS) -> int:
    """Run the replay service: gRPC for producers and trainers, HTTP for health and metrics, Redis for everything kept.

    Without --redis-url it starts a private Redis in --data-dir, and stops it when it goes. SIGTERM drains: calls that
    wait are told to go elsewhere, running ones get --drain-s seconds.
    """
    expect_large_blocks()
    configure_logging(settings.log_format, settings.log_level)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:
        _run(serve(settings))
    except (OSError, EmbeddedRedisError) as error:
        print(f"groupreplay serve: {error}", file=sys.stderr)
        return 1
    return 0


def _run(service: Coroutine[Any, Any, None]) -> None:
    """Run the service on uvloop where there is one: asyncio before 3.12 moves all that waits behind each partial write.

    Megabytes to Redis cost a tenth of the CPU time so.
    """
    try:
        import uvloop  # noqa: PLC0415  not on every platform
    except ImportError:
        asyncio.run(service)
    else:
        uvloop.run(service)
