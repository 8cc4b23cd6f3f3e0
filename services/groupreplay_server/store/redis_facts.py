"""What each Redis server says of itself: version, persistence, memory, replicas, clock, certificate; and its load."""

import asyncio
import ssl
import time
from typing import Any

from redis.asyncio import Redis, SSLConnection
from redis.exceptions import ResponseError

from groupreplay.server_info import RedisServer, redis_server_from_info, writes_succeed
from groupreplay_server.store.backend import Backend
from groupreplay_server.store.connection import CONNECT_TIMEOUT_S, translated_errors
from groupreplay_server.store.node import Node
from groupreplay_server.store.records import RedisLoad

PINGS = 50


async def read_redis_servers(redis: Backend) -> tuple[RedisServer, ...]:
    """Return what every server that we write to says of itself."""
    with translated_errors():
        return tuple(await asyncio.gather(*(_read_server(node) for node in await redis.nodes())))


async def read_redis_loads(redis: Backend) -> tuple[RedisLoad, ...]:
    """Return how every server that we write to fares: two round trips each."""
    with translated_errors():
        return tuple(await asyncio.gather(*(_read_load(node) for node in await redis.nodes())))


async def _read_load(node: Node) -> RedisLoad:
    running = node.running
    ping_s = await _ping_ms(node) / 1000
    info = await _info(node)
    says_all = "used_memory" in info
    return RedisLoad(
        address=_address(node.client),
        ping_s=ping_s,
        commands_running=running,
        used_memory_bytes=int(info["used_memory"]) if says_all else None,
        max_memory_bytes=int(info.get("maxmemory", 0)) if says_all else None,
        persistence_ok=writes_succeed(info) if says_all else None,
        appends=bool(int(info.get("aof_enabled", 0))) if says_all else None,
        replicas=int(info.get("connected_slaves", 0)) if says_all else None,
        evicted_keys=int(info.get("evicted_keys", 0)) if says_all else None,
    )


async def _read_server(node: Node) -> RedisServer:
    return redis_server_from_info(
        await _info(node),
        await _append_settings(node),
        address=_address(node.client),
        ping_ms=[await _ping_ms(node) for _ in range(PINGS)],
        clock_ahead_ms=await _clock_ahead_ms(node),
        certificate_ends_ms=await _certificate_ends_ms(node.client),
    )


async def _info(node: Node) -> dict[str, Any]:
    try:
        found: dict[str, Any] = await node.execute("INFO")
    except ResponseError:  # a dangerous command to ACLs, though it only reads
        hello = await node.execute("HELLO")
        about = dict(zip(hello[::2], hello[1::2], strict=True))
        return {"server_name": about[b"server"].decode(), "redis_version": about[b"version"].decode()}
    return found


async def _clock_ahead_ms(node: Node) -> float | None:
    asked_ms = time.time() * 1000
    try:
        seconds, microseconds = await node.execute("TIME")
    except ResponseError:
        return None
    half_way_ms = (asked_ms + time.time() * 1000) / 2
    return int(seconds) * 1000 + int(microseconds) / 1000 - half_way_ms


async def _ping_ms(node: Node) -> float:
    started = time.perf_counter()
    await node.execute("PING")
    return (time.perf_counter() - started) * 1000


async def _append_settings(node: Node) -> dict[str, str]:
    """Return appendonly and appendfsync; nothing where Redis keeps its settings to itself, as managed ones do."""
    try:
        flat = await node.execute("CONFIG", "GET", "append*")
    except ResponseError:
        return {}
    return {name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)}


def _host_port(client: Redis) -> tuple[str, int]:
    pool: Any = client.connection_pool
    options = pool.connection_kwargs
    return getattr(pool, "master_address", None) or (options.get("host", "localhost"), options.get("port", 6379))


def _address(client: Redis) -> str:
    path = client.connection_pool.connection_kwargs.get("path")
    return str(path) if path else "{}:{}".format(*_host_port(client))


async def _certificate_ends_ms(client: Redis) -> int:
    pool = client.connection_pool
    if not issubclass(pool.connection_class, SSLConnection):
        return 0
    options = pool.connection_kwargs
    context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
    if options.get("ssl_certfile"):
        context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        _, writer = await asyncio.open_connection(*_host_port(client), ssl=context)
    try:
        return int(ssl.cert_time_to_seconds(writer.get_extra_info("peercert")["notAfter"]) * 1000)
    finally:
        writer.close()
