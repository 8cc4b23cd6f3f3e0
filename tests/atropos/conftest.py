"""A user of the Atropos API of one table, over plain HTTP."""

from collections.abc import AsyncIterator

import httpx
import pytest
import redis
from atropos_client import AtroposUser
from table_user import TableUser

from groupreplay import AsyncClient
from groupreplay_server.app import RunningServer


@pytest.fixture
async def atropos(server: RunningServer) -> AsyncIterator[AtroposUser]:
    """Clients whose server URL is that of table run/train."""
    async with httpx.AsyncClient(base_url=f"http://{server.http_address}/atropos/run/train", timeout=20.0) as http:
        yield AtroposUser(http)


@pytest.fixture
def table(client: AsyncClient, clean_redis: redis.Redis) -> TableUser:
    """The same table over gRPC."""
    return TableUser(client, clean_redis, "run", "train")
