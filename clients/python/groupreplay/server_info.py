"""What a service runs on: its version, its clock, its Redis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisServer:
    """What a Redis server says of itself. Empty = it keeps that to itself, as managed ones do."""

    address: str
    """host:port, or the path of a socket."""
    software: str
    """redis or valkey."""
    version: str
    clock_ahead_ms: float | None
    """Its wall clock minus that of who asked it, give or take half a round trip; None = unknown."""
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
    says_all: bool = True
    """Whether it lets us read INFO; where not, writes_ok, memory and replicas are unknown."""

    @property
    def waits_for_disk(self) -> bool:
        """Whether an append-only file that is synced every second is enough for durability `aof`."""
        return waits_truly(self.software, self.version)


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
    clock_ahead_ms: float | None,
    ping_ms: Sequence[float],
    certificate_ends_ms: int = 0,
) -> RedisServer:
    """Return what Redis says of itself.

    Args:
        info: fields of INFO; where it is refused, server_name and redis_version of HELLO.
        config: fields of CONFIG GET, or none where it is refused.
        ping_ms: round trips, at least one.
    """
    known = info.get("aof_enabled")
    appendonly = config.get("appendonly") or ("" if known is None else "yes" if known else "no")
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
        writes_ok=writes_succeed(info),
        maxmemory_policy=str(info.get("maxmemory_policy", "")),
        maxmemory_bytes=int(info.get("maxmemory", 0)),
        used_memory_bytes=int(info.get("used_memory", 0)),
        replicas=int(info.get("connected_slaves", 0)),
        certificate_ends_ms=certificate_ends_ms,
        says_all="used_memory" in info,
    )


def writes_succeed(info: Mapping[str, Any]) -> bool:
    """Return whether the last writes of the append-only file and of the snapshot, by INFO, succeeded."""
    statuses = ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status")
    return all(info.get(name, "ok") == "ok" for name in statuses)


def waits_truly(software: str, version: str) -> bool:
    """Return whether WAITAOF of this server waits for the disk under appendfsync everysec too.

    Redis 7.4 and Valkey answer at once for what was written less than a second after the last sync
    (github.com/redis/redis/pull/13793); Valkey 9.1 acknowledges thousands of writes with none of them on disk.
    """
    major, minor = (int(number) for number in version.split(".")[:2])
    return software == "redis" and ((7, 2) <= (major, minor) < (7, 4) or major >= 8)
