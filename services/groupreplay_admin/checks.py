"""What `groupreplay doctor` checks, as pure functions: what was found, how bad it is, what to do."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from groupreplay import Durability, RedisServer, ServerInfo, Table, Token, __version__

CLOCK_WARNING_MS, CLOCK_PROBLEM_MS = 500, 5_000
PING_WARNING_MS = 10
MEMORY_WARNING_SHARE = 0.9
DISK_WARNING_SHARE, DISK_PROBLEM_SHARE = 0.1, 0.02
TOKEN_WARNING_DAYS = 7
CERTIFICATE_WARNING_DAYS, CERTIFICATE_PROBLEM_DAYS = 30, 3
_DAY_MS = 86_400_000


class Verdict(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    """It works, and may not do so for ever."""
    PROBLEM = "problem"
    """Something does not work, or loses data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    name: str
    """A word for programs, such as redis_memory."""
    verdict: Verdict
    found: str
    advice: str = ""
    """What to do about it."""


def ok(name: str, found: str) -> Check:
    """Return a check that found all well."""
    return Check(name=name, verdict=Verdict.OK, found=found)


def warning(name: str, found: str, advice: str) -> Check:
    """Return a check that found something to look at."""
    return Check(name=name, verdict=Verdict.WARNING, found=found, advice=advice)


def problem(name: str, found: str, advice: str) -> Check:
    """Return a check that found something to mend."""
    return Check(name=name, verdict=Verdict.PROBLEM, found=found, advice=advice)


def check_service(info: ServerInfo, *, ahead_ms: float) -> Iterator[Check]:
    """Judge what a service says of itself; ahead_ms is its clock minus ours."""
    if info.version == __version__:
        yield ok("versions", f"client and service are both {__version__}")
    else:
        yield warning(
            "versions",
            f"the client is {__version__}, the service {info.version}",
            "run the same version on both sides; what the older one does not know fails with INTERNAL",
        )
    yield check_clock("service_clock", "the service", "this machine", ahead_ms)
    if info.disk_total_bytes:
        yield check_disk("the data folder of the service", info.disk_free_bytes, info.disk_total_bytes)


def check_clock(name: str, whose: str, reference: str, ahead_ms: float) -> Check:
    """Judge the distance of two clocks."""
    found = f"the clock of {whose} is {abs(ahead_ms):.0f} ms {'ahead of' if ahead_ms >= 0 else 'behind'} {reference}"
    advice = "run NTP or chrony on both: leases end early or late, and inserts of slow servers are refused"
    if abs(ahead_ms) > CLOCK_PROBLEM_MS:
        return problem(name, found, advice)
    return warning(name, found, advice) if abs(ahead_ms) > CLOCK_WARNING_MS else ok(name, found)


def check_disk(whose: str, free_bytes: int, total_bytes: int) -> Check:
    """Judge how much room a disk has."""
    share = free_bytes / total_bytes
    found = f"{free_bytes / 1e9:.1f} of {total_bytes / 1e9:.1f} GB are free ({share:.0%}) on the disk of {whose}"
    advice = "make room: Redis refuses writes once its append-only file cannot grow"
    if share < DISK_PROBLEM_SHARE:
        return problem("disk", found, advice)
    return warning("disk", found, advice) if share < DISK_WARNING_SHARE else ok("disk", found)


def check_redis(server: RedisServer, tables: Sequence[Table], *, min_replicas: int, now_ms: int) -> Iterator[Check]:
    """Judge a Redis by what it says of itself, and by what tables ask of it."""
    yield _version(server)
    yield _persistence(server, [table for table in tables if table.config.durability is Durability.AOF])
    if server.says_all:
        yield _memory(server)
        yield _replicas(server, [it for it in tables if it.config.durability is Durability.REPLICAS], min_replicas)
    else:
        yield warning(
            "redis_access",
            f"{server.address} does not let its user read INFO: memory, replicas and failed writes are not known",
            "give the user +info and +time; both only read",
        )
    if server.clock_ahead_ms is not None:
        yield check_clock("redis_clock", f"Redis {server.address}", "who asked it", server.clock_ahead_ms)
    yield _latency(server)
    if server.certificate_ends_ms:
        yield check_certificate(f"Redis {server.address}", server.certificate_ends_ms, now_ms=now_ms)


def _version(server: RedisServer) -> Check:
    found = f"{server.address} runs {server.software} {server.version}"
    if server.software == "redis" and int(server.version.partition(".")[0] or 0) < 7:
        return problem("redis_version", found, "run Redis 7.0 or newer, or Valkey")
    return ok("redis_version", found)


def _persistence(server: RedisServer, asking: Sequence[Table]) -> Check:
    name = "redis_persistence"
    found = (
        f"{server.address}: appendonly {server.appendonly or 'unknown'}, appendfsync {server.appendfsync or 'unknown'}"
    )
    if not server.writes_ok:
        return problem(
            name, f"{found}; its last write to disk failed", "see the log of Redis: disk full, or read-only?"
        )
    if asking:
        found += f"; {len(asking)} tables ask for durability aof, such as {asking[0].run}/{asking[0].table}"
        if server.appendonly == "no":
            return problem(name, found, "set appendonly yes: inserts into these tables are refused")
        if server.appendfsync not in {"", "always"} and not server.waits_for_disk:
            return problem(name, found, "set appendfsync always: this version cannot say when a write is on disk")
    if server.appendonly == "no":
        return warning(name, found, "set appendonly yes, or a restart of Redis loses every group and policy clock")
    if server.appendfsync == "no":
        return warning(
            name, found, "set appendfsync everysec, or a power cut loses what the system had not written yet"
        )
    return ok(name, found)


def _memory(server: RedisServer) -> Check:
    name, policy = "redis_memory", server.maxmemory_policy or "unknown"
    limit = f"{server.maxmemory_bytes / 1e9:.2f} GB" if server.maxmemory_bytes else "no limit"
    found = f"{server.address} uses {server.used_memory_bytes / 1e9:.2f} GB, maxmemory {limit}, policy {policy}"
    if policy not in {"noeviction", "unknown"}:
        advice = "set maxmemory-policy noeviction: Redis throws groups away by itself otherwise"
        return (problem if server.maxmemory_bytes else warning)(name, found, advice)
    if server.maxmemory_bytes and server.used_memory_bytes > MEMORY_WARNING_SHARE * server.maxmemory_bytes:
        advice = "raise maxmemory, or lower capacity_bytes of tables or the quota of runs: inserts will fail"
        return warning(name, found, advice)
    return ok(name, found)


def _replicas(server: RedisServer, asking: Sequence[Table], min_replicas: int) -> Check:
    found = f"{server.address} has {server.replicas} connected replicas"
    if not asking:
        return ok("redis_replicas", f"{found}; no table asks for durability replicas")
    found += f"; table {asking[0].run}/{asking[0].table} waits for {min_replicas}"
    if server.replicas < min_replicas:
        return problem("redis_replicas", found, "start replicas, or lower --durability-min-replicas of the service")
    return ok("redis_replicas", found)


def _latency(server: RedisServer) -> Check:
    found = f"{server.address} answers in {server.ping_p50_ms:.2f} ms, 99 of 100 in {server.ping_p99_ms:.2f} ms"
    if server.ping_p99_ms > PING_WARNING_MS:
        return warning("redis_latency", found, "bring service and Redis nearer, or see what else keeps Redis busy")
    return ok("redis_latency", found)


def check_open(server: str) -> Check:
    """Judge a service that answers without a token."""
    found = f"{server} asks for no tokens"
    host = server.rpartition(":")[0]
    if server.startswith("unix:") or host in {"localhost", "[::1]"} or host.startswith("127."):
        return ok("tokens", found)
    return warning("tokens", found, "whoever reaches it can read and change everything: serve with --admin-token-file")


def check_tokens(tokens: Sequence[Token], *, now_ms: int) -> Check:
    """Judge when tokens end."""
    ended = [it.name for it in tokens if 0 < it.expires_at_ms <= now_ms]
    soon = [it.name for it in tokens if now_ms < it.expires_at_ms < now_ms + TOKEN_WARNING_DAYS * _DAY_MS]
    found = f"{len(tokens)} tokens; {len(ended)} have expired, {len(soon)} end within {TOKEN_WARNING_DAYS} days"
    if not ended and not soon:
        return ok("tokens", found)
    named = ", ".join([*soon, *ended][:5])
    return warning("tokens", f"{found}: {named}", "make new ones for who still needs them, and revoke the expired")


def check_certificate(whose: str, ends_ms: int, *, now_ms: int) -> Check:
    """Judge when a certificate ends."""
    days = (ends_ms - now_ms) / _DAY_MS
    found = (
        f"the certificate of {whose} ends in {days:.0f} days" if days > 0 else f"the certificate of {whose} has ended"
    )
    if days < CERTIFICATE_PROBLEM_DAYS:
        return problem("certificate", found, "renew it now; connections fail once it has ended")
    if days < CERTIFICATE_WARNING_DAYS:
        return warning("certificate", found, "renew it")
    return ok("certificate", found)
