"""Services in this process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import redis
from table_user import TableUser

from groupreplay import AsyncClient, TableConfig
from groupreplay_server.app import running_server
from groupreplay_server.settings import ServerSettings


def settings(redis_url: str, drain_s: float = 1.0) -> ServerSettings:
    """Return settings of a service in this process."""
    return ServerSettings(grpc_listen="127.0.0.1:0", http_listen="127.0.0.1:0", redis_url=redis_url, drain_s=drain_s)


@asynccontextmanager
async def serve_table(redis_url: str, connection: redis.Redis) -> AsyncIterator[TableUser]:
    """Run a service, and yield a user of its table."""
    async with (
        running_server(settings(redis_url)) as server,
        AsyncClient(server.grpc_address, timeout_s=20.0) as client,
    ):
        await client.create_table(run="run", table="train", config=TableConfig())
        yield TableUser(client, connection, "run", "train")
