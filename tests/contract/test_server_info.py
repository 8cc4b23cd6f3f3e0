"""What the service says that it runs on."""

import time

import redis
from processes import ServerProcess

from groupreplay import AsyncClient, __version__


async def test_the_service_says_what_it_runs_on(
    client: AsyncClient, service: ServerProcess, clean_redis: redis.Redis
) -> None:
    """Its version and clock; of its Redis the version, persistence, memory, clock and how fast it answers."""
    before_ms = time.time() * 1000
    info = await client.server_info()
    assert info.version == __version__
    assert before_ms - 1 <= info.time_ms <= time.time() * 1000
    assert info.started_at_ms <= info.time_ms
    assert (info.redis_url, info.embedded_redis, info.disk_total_bytes) == (service.redis_url, False, 0)
    assert info.durability_min_replicas == 1
    [server] = info.redis
    said = clean_redis.info()
    assert server.software == said.get("server_name", "redis")
    assert server.version == said.get("valkey_version", said["redis_version"])
    assert (server.appendonly, server.maxmemory_policy, server.maxmemory_bytes) == ("no", "noeviction", 0)
    assert server.appendfsync in {"always", "everysec", "no"}
    assert server.used_memory_bytes > 0
    assert 0 < server.ping_p50_ms <= server.ping_p99_ms
    assert server.clock_ahead_ms is not None
    assert abs(server.clock_ahead_ms) < 100
    assert (server.replicas, server.writes_ok, server.certificate_ends_ms) == (0, True, 0)
