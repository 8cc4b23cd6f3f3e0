"""What a service runs on: its version, its clock, its Redis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisServer:
    """What a Redis server says of itself. Managed ones keep some of it to themselves: empty = unknown."""

    address: str
    """host:port, or the path of a socket."""
    software: str
    """redis or valkey."""
    version: str
    clock_ahead_ms: float
    """Its wall clock minus that of who asked it, give or take half a round trip."""
    ping_p50_ms: float
    ping_p99_ms: float
    appendonly: str
    """yes or no."""
    appendfsync: str
    """always, everysec or no."""
    writes_ok: bool
    """Whether the last writes of the append-only file and of the snapshot, where there are any, succeeded."""
    maxmemory_policy: str
    maxmemory_bytes: int
    """0 = no limit."""
    used_memory_bytes: int
    replicas: int
    """Connected ones."""
    certificate_ends_ms: int
    """Unix milliseconds; 0 = no TLS."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """What a service runs on."""

    version: str
    time_ms: int
    """Its wall clock, in Unix milliseconds."""
    started_at_ms: int
    redis_url: str
    """Without passwords."""
    embedded_redis: bool
    """Whether the service runs its Redis itself, in a data folder beside it."""
    disk_free_bytes: int
    """On the disk of that folder; 0 = there is none."""
    disk_total_bytes: int
    redis: tuple[RedisServer, ...]
    """One server, or every master of a cluster."""
    durability_min_replicas: int
    """Replicas that durability `replicas` waits for."""


def redis_server_from_info(
    info: Mapping[str, Any],
    config: Mapping[str, str],
    *,
    address: str,
    clock_ahead_ms: float,
    ping_ms: Sequence[float],
    certificate_ends_ms: int = 0,
) -> RedisServer:
    """Return what Redis says of itself.

    Args:
        info: fields of INFO; Redis and Valkey leave out what they do not know.
        config: fields of CONFIG GET, or none where it is refused.
        ping_ms: round trips, at least one.
    """
    known = info.get("aof_enabled")
    appendonly = config.get("appendonly") or ("" if known is None else "yes" if known else "no")
    statuses = ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status")
    ordered = sorted(ping_ms)
    return RedisServer(
        address=address,
        software=str(info.get("server_name", "redis")),
        version=str(info.get("valkey_version") or info.get("redis_version", "")),
        clock_ahead_ms=clock_ahead_ms,
        ping_p50_ms=ordered[len(ordered) // 2],
        ping_p99_ms=ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)],
        appendonly=appendonly,
        appendfsync=config.get("appendfsync", ""),
        writes_ok=all(info.get(name, "ok") == "ok" for name in statuses),
        maxmemory_policy=str(info.get("maxmemory_policy", "")),
        maxmemory_bytes=int(info.get("maxmemory", 0)),
        used_memory_bytes=int(info.get("used_memory", 0)),
        replicas=int(info.get("connected_slaves", 0)),
        certificate_ends_ms=certificate_ends_ms,
    )
