"""What Redis says of itself, also to a user who may not ask much."""

import pytest
import redis
from processes import redis_binaries
from store_user import StoreUser

from groupreplay_server.store.address import RedisAccess
from groupreplay_server.store.connection import open_redis
from groupreplay_server.store.redis_facts import read_redis_servers


@pytest.mark.parametrize("redis_url", redis_binaries(), indirect=True)  # a cluster is closed to such a user
async def test_a_user_who_may_not_read_info_is_told_less(redis_url: str, clean_redis: redis.Redis) -> None:
    """Version and latency; the rest is said to be unknown, not made up."""
    rights = ["+connection", "+read", "-dangerous"]
    clean_redis.acl_setuser("little", enabled=True, passwords=["+secret"], keys=["gr1:*"], categories=rights)
    try:
        async with open_redis(redis_url, access=RedisAccess(username="little", password="secret")) as connection:
            [server] = await read_redis_servers(connection)
    finally:
        clean_redis.acl_deluser("little")
    assert server.version.count(".") == 2
    assert 0 < server.ping_p50_ms <= server.ping_p99_ms
    assert (server.says_all, server.clock_ahead_ms, server.appendonly, server.appendfsync) == (False, None, "", "")
    assert (server.maxmemory_policy, server.used_memory_bytes, server.replicas) == ("", 0, 0)


async def test_every_server_that_is_written_to_is_asked(store: StoreUser) -> None:
    """One, or each master of a cluster, by its own address."""
    servers = await store.store.redis_servers()
    assert len({server.address for server in servers}) == len(servers) >= 1
    assert all(server.says_all and server.software in {"redis", "valkey"} for server in servers)
