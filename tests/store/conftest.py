"""The store on every Redis and Valkey that this machine has, and on a Redis Cluster."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis
from invariants import check_invariants
from processes import redis_binaries, start_redis
from redis_groups import plain_client, redis_cluster
from store_user import StoreUser

from groupreplay.table_config import TableConfig
from groupreplay_server.store.connection import open_redis
from groupreplay_server.store.redis_store import RedisStore

CLUSTER = "cluster"


@pytest.fixture(scope="session", params=[*redis_binaries(), CLUSTER], ids=lambda path: Path(path).name)
def redis_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a private Redis made from one of the binaries, or of a cluster of three masters."""
    folder = tmp_path_factory.mktemp("redis")
    if request.param == CLUSTER:
        with redis_cluster(folder) as nodes:
            yield f"redis+cluster://127.0.0.1:{nodes[0].port}"
        return
    process = start_redis(folder, binary=request.param)
    yield f"unix://{folder / 'redis.sock'}"
    process.terminate()
    process.wait()


@pytest.fixture
def clean_redis(redis_url: str) -> Iterator[redis.Redis]:
    """That Redis, empty; afterwards it must hold what the layout allows, and nothing else."""
    with plain_client(redis_url) as connection:
        connection.flushall()
        yield connection
        check_invariants(connection)


@pytest.fixture
async def store(redis_url: str, clean_redis: redis.Redis) -> AsyncIterator[StoreUser]:
    """The store with one table of the default configuration."""
    async with open_redis(redis_url) as connection:
        user = StoreUser(RedisStore(connection), connection, clean_redis)
        await user.make_table(TableConfig())
        yield user
