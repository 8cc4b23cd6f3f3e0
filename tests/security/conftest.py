"""Services that ask for tokens."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import redis

from groupreplay import AsyncClient, NewToken, Scope, Token
from groupreplay_server.app import RunningServer, running_server
from groupreplay_server.settings import ServerSettings

ADMIN_TOKEN = "an-admin-token-of-more-than-32-characters"
LogIn = Callable[[str], Awaitable[AsyncClient]]
"""Opens a client with a token; it is closed when the test ends."""


@pytest.fixture
def settings(redis_url: str, tmp_path: Path) -> ServerSettings:
    """Settings of a service in this process that asks for tokens."""
    file = tmp_path / "admin.token"
    file.write_text(ADMIN_TOKEN + "\n")
    return ServerSettings(
        grpc_listen="127.0.0.1:0",
        http_listen="127.0.0.1:0",
        redis_url=redis_url,
        drain_s=1.0,
        admin_token_file=file,
        audit_log=tmp_path / "audit.jsonl",
    )


@pytest.fixture
async def secured(clean_redis: redis.Redis, settings: ServerSettings) -> AsyncIterator[RunningServer]:
    """A service in this process that asks for tokens."""
    async with running_server(settings) as running:
        yield running


@pytest.fixture
async def log_in(secured: RunningServer) -> AsyncIterator[LogIn]:
    """Open clients of the service."""
    async with AsyncExitStack() as stack:

        async def open_client(token: str) -> AsyncClient:
            return await stack.enter_async_context(AsyncClient(secured.grpc_address, timeout_s=10.0, token=token))

        yield open_client


@pytest.fixture
async def admin(log_in: LogIn) -> AsyncClient:
    """A client with the token of the admin's file."""
    return await log_in(ADMIN_TOKEN)


async def make_token(admin: AsyncClient, scope: Scope, *, run: str = "", name: str = "", ends_ms: int = 0) -> str:
    """Make a token known; return its secret."""
    token = Token(name=name or f"{scope}-{run or 'all'}", scope=scope, run=run, expires_at_ms=ends_ms)
    new = NewToken.generate(token)
    await admin.create_token(new)
    return new.secret
