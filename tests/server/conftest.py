"""Services whose Redis is reached through a proxy."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis
from lossy_proxy import LossyProxy, is_redis_answer_to, lossy_proxy
from processes import RedisProcess, ServerProcess
from service_user import serve_table
from table_user import TableUser


@pytest.fixture(params=[b"EVALSHA"])
async def redis_proxy(
    request: pytest.FixtureRequest, clean_redis: redis.Redis, redis_url: str
) -> AsyncIterator[LossyProxy]:
    """A proxy before the session's Redis, which can lose or hold the answers to one command."""
    async with lossy_proxy(redis_url, is_redis_answer_to(request.param)) as proxy:
        yield proxy


@pytest.fixture
async def table(redis_proxy: LossyProxy, clean_redis: redis.Redis) -> AsyncIterator[TableUser]:
    """A table of a service behind that proxy."""
    async with serve_table(f"redis://{redis_proxy.address}", clean_redis) as user:
        yield user


@pytest.fixture
async def direct_table(clean_redis: redis.Redis, redis_url: str) -> AsyncIterator[TableUser]:
    """The same table of a second service, which reaches Redis without the proxy."""
    async with serve_table(redis_url, clean_redis) as user:
        yield user


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisProcess]:
    """A Redis of the test's own, to be stopped and killed."""
    with RedisProcess(tmp_path) as process:
        yield process


@pytest.fixture
def process(clean_redis: redis.Redis, redis_url: str, tmp_path: Path) -> Iterator[ServerProcess]:
    """A service of the test's own, on the session's Redis."""
    running = ServerProcess(tmp_path, redis_url)
    running.start()
    yield running
    running.kill()
