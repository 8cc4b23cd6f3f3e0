"""`groupreplay doctor`."""

import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from certificates import Authority
from cli.in_process import IN_PROCESS, Run
from processes import ServerProcess, free_port, start_redis

from groupreplay import Client, Durability, RedisServer, ServerInfo, Table, TableConfig, __version__
from groupreplay_admin.checks import Check, Verdict, check_certificate, check_disk, check_redis, check_service

pytestmark = IN_PROCESS
DAY_MS = 86_400_000
WELL = RedisServer(
    address="redis:6379",
    software="redis",
    version="8.2.1",
    clock_ahead_ms=1.0,
    ping_p50_ms=0.1,
    ping_p99_ms=0.5,
    appendonly="yes",
    appendfsync="everysec",
    writes_ok=True,
    maxmemory_policy="noeviction",
    maxmemory_bytes=10**9,
    used_memory_bytes=10**8,
    replicas=1,
    certificate_ends_ms=0,
)
SERVICE = ServerInfo(
    version=__version__,
    time_ms=0,
    started_at_ms=0,
    redis_url="redis://redis:6379",
    embedded_redis=True,
    disk_free_bytes=5 * 10**9,
    disk_total_bytes=10**10,
    redis=(WELL,),
    durability_min_replicas=1,
)


def a_table(durability: Durability) -> Table:
    """Return a table that asks for a durability."""
    return Table(
        run="math", table="train", config=TableConfig(durability=durability), fresh=0, fresh_effective=0, replay=0,
        leased=0, leases=0, payload_bytes=0, policy_version=0, last_insert_ms=0, missing=0, counters={},
    )  # fmt: skip


def judged(server: RedisServer, *durabilities: Durability, min_replicas: int = 1, now_ms: int = 0) -> dict[str, Check]:
    """Return the checks of a Redis by name."""
    tables = [a_table(durability) for durability in durabilities]
    return {check.name: check for check in check_redis(server, tables, min_replicas=min_replicas, now_ms=now_ms)}


def test_a_redis_that_is_well_is_said_to_be() -> None:
    """Each check is ok, with what it found."""
    checks = judged(WELL, *Durability)
    assert {check.verdict for check in checks.values()} == {Verdict.OK}
    assert "redis 8.2.1" in checks["redis_version"].found
    assert not any(check.advice for check in checks.values())


@pytest.mark.parametrize(
    ("change", "name", "verdict", "advice"),
    [
        ({"version": "6.2.14", "appendfsync": "always"}, "redis_version", Verdict.PROBLEM, "run Redis 7.0"),
        ({"appendonly": "no"}, "redis_persistence", Verdict.PROBLEM, "inserts into these tables are refused"),
        ({"appendfsync": "no"}, "redis_persistence", Verdict.WARNING, "set appendfsync everysec"),
        ({"version": "7.4.0"}, "redis_persistence", Verdict.PROBLEM, "set appendfsync always"),
        ({"software": "valkey"}, "redis_persistence", Verdict.PROBLEM, "set appendfsync always"),
        ({"writes_ok": False}, "redis_persistence", Verdict.PROBLEM, "disk full"),
        ({"maxmemory_policy": "allkeys-lru"}, "redis_memory", Verdict.PROBLEM, "noeviction"),
        ({"maxmemory_policy": "allkeys-lru", "maxmemory_bytes": 0}, "redis_memory", Verdict.WARNING, "noeviction"),
        ({"used_memory_bytes": 95 * 10**7}, "redis_memory", Verdict.WARNING, "raise maxmemory"),
        ({"replicas": 0}, "redis_replicas", Verdict.PROBLEM, "start replicas"),
        ({"ping_p99_ms": 30.0}, "redis_latency", Verdict.WARNING, "nearer"),
        ({"clock_ahead_ms": -900.0}, "redis_clock", Verdict.WARNING, "NTP"),
        ({"clock_ahead_ms": 6000.0}, "redis_clock", Verdict.PROBLEM, "NTP"),
        ({"certificate_ends_ms": 10 * DAY_MS}, "certificate", Verdict.WARNING, "renew"),
        ({"says_all": False}, "redis_access", Verdict.WARNING, "+info"),
    ],
)
def test_what_is_wrong_with_a_redis_is_said_with_what_to_do(
    change: dict[str, Any], name: str, verdict: Verdict, advice: str
) -> None:
    """By version, persistence, memory, replicas, latency, clock and certificate."""
    check = judged(replace(WELL, **change), *Durability)[name]
    assert check.verdict is verdict
    assert advice in check.advice
    others = judged(replace(WELL, **change), *Durability).values()
    assert all(it.verdict is Verdict.OK for it in others if it.name != name)


def test_what_no_table_asks_for_is_no_problem() -> None:
    """Redis without replicas or an append-only file serves tables of durability memory."""
    checks = judged(replace(WELL, appendonly="no", replicas=0), Durability.MEMORY)
    assert checks["redis_replicas"].verdict is Verdict.OK
    assert checks["redis_persistence"].verdict is Verdict.WARNING
    assert "loses every group" in checks["redis_persistence"].advice


@pytest.mark.parametrize(
    ("change", "ahead_ms", "name", "verdict"),
    [
        ({"version": "9.9"}, 0, "versions", Verdict.WARNING),
        ({}, -700, "service_clock", Verdict.WARNING),
        ({}, 9000, "service_clock", Verdict.PROBLEM),
        ({"disk_free_bytes": 5 * 10**8}, 0, "disk", Verdict.WARNING),
        ({"disk_free_bytes": 10**8}, 0, "disk", Verdict.PROBLEM),
    ],
)
def test_what_is_wrong_with_a_service_is_said(
    change: dict[str, Any], ahead_ms: float, name: str, verdict: Verdict
) -> None:
    """Versions, clocks, disk; the other checks stay ok."""
    checks = {check.name: check for check in check_service(replace(SERVICE, **change), ahead_ms=ahead_ms)}
    assert checks[name].verdict is verdict
    assert all(check.verdict is Verdict.OK for other, check in checks.items() if other != name)


def test_edges_of_certificates_and_disks() -> None:
    """Ended, nearly ended, and far from it."""
    assert "has ended" in check_certificate("x", 0, now_ms=DAY_MS).found
    assert check_certificate("x", 2 * DAY_MS, now_ms=0).verdict is Verdict.PROBLEM
    assert check_certificate("x", 400 * DAY_MS, now_ms=0).verdict is Verdict.OK
    assert check_disk("x", 11, 100).verdict is Verdict.OK


def test_a_deployment_that_is_well_is_status_0(command: Run, server_process: ServerProcess) -> None:
    """A line for each check, from a service with a Redis of its own."""
    flags = ["--server", server_process.grpc_address, "--http", server_process.http_address]
    ended = command("doctor", *flags)
    assert ended.status == 0, ended.output
    lines = ended.output.splitlines()
    assert f"ok      {server_process.grpc_address} answers in" in lines[0]
    assert f"ok      http://{server_process.http_address}/readyz says that the service is ready" in lines[1]
    for words in ("client and service are both", "GB are free", "appendonly yes", "noeviction", "99 of 100 in"):
        assert words in ended.output
    found = json.loads(command("doctor", *flags, "--json").output)
    names = {check["name"] for check in found}
    assert names >= {"grpc", "http", "versions", "service_clock", "disk", "redis_version", "redis_persistence"}
    assert names >= {"redis_memory", "redis_replicas", "redis_clock", "redis_latency"}


def test_a_redis_that_evicts_is_status_3_with_what_to_do(
    command: Run, server_process: ServerProcess, sync_client: Client
) -> None:
    """What only the service can see, and what tables ask for."""
    with redis.Redis.from_url(server_process.redis_url) as connection:
        connection.config_set("maxmemory-policy", "allkeys-lru")
        connection.config_set("maxmemory", "1gb")
        connection.config_set("appendonly", "no")
    sync_client.create_table(run="math", table="train", config=TableConfig(durability=Durability.AOF))
    ended = command("doctor", "--server", server_process.grpc_address, "--http", "none")
    assert ended.status == 3
    assert "policy allkeys-lru\n         -> set maxmemory-policy noeviction" in ended.output
    assert "1 tables ask for durability aof, such as math/train\n         -> set appendonly yes" in ended.output


def test_a_service_that_is_not_there_is_status_3(command: Run) -> None:
    """And how to start one."""
    ended = command("doctor", "--server", "127.0.0.1:1", "--timeout-s", "0.5")
    assert ended.status == 3
    assert ended.output.startswith("problem no answer from 127.0.0.1:1")
    assert "-> start groupreplay serve --grpc-listen 127.0.0.1:1" in ended.output


def test_http_elsewhere_is_a_warning_unless_it_was_named(command: Run, server_process: ServerProcess) -> None:
    """The default is a guess. --strict makes warnings count."""
    nowhere = f"127.0.0.1:{free_port()}"
    flags = ["--server", server_process.grpc_address]
    assert command("doctor", *flags, "--http", nowhere).status == 3
    guessed = {check["name"]: check for check in json.loads(command("doctor", *flags, "--json").output)}["http"]
    if guessed["verdict"] == "warning":  # somebody may listen on 8080
        assert command("doctor", *flags, "--strict").status == 3


def test_a_name_of_several_servers_is_looked_at_as_one(command: Run, server_process: ServerProcess) -> None:
    """The address that clients have in Kubernetes is good for doctor too."""
    port = server_process.grpc_address.rpartition(":")[2]
    ended = command("doctor", "--server", f"dns:///127.0.0.1:{port}", "--json")
    checks = {check["name"]: check for check in json.loads(ended.output)}
    assert checks["grpc"]["verdict"] == checks["tokens"]["verdict"] == "ok"
    assert "http://127.0.0.1:8080/readyz" in checks["http"]["found"]


def test_a_place_is_looked_at_before_a_service_runs_there(command: Run, tmp_path: Path) -> None:
    """Ports and disk."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        flags = ["--server", "none", "--grpc-listen", f"127.0.0.1:{taken.getsockname()[1]}"]
        ended = command("doctor", *flags, "--data-dir", tmp_path / "not" / "yet", "--json")
    assert ended.status == 3
    port, disk = json.loads(ended.output)
    assert (port["name"], port["verdict"], disk["name"]) == ("grpc_port", "problem", "disk")
    assert "Address already in use" in port["found"]
    free = command("doctor", "--server", "none", "--http-listen", f"127.0.0.1:{free_port()}")
    assert (free.status, "is free" in free.output) == (0, True)
    assert command("doctor", "--server", "none", "--grpc-listen", "50051:x").status == 2


@pytest.fixture
def plain_redis(tmp_path: Path) -> Iterator[str]:
    """URL of a Redis without an append-only file."""
    process = start_redis(tmp_path)
    yield f"unix://{tmp_path / 'redis.sock'}"
    process.terminate()
    process.wait()


def test_a_redis_of_ones_own_is_looked_at_without_a_service(command: Run, plain_redis: str) -> None:
    """--redis-url; one that is not there, or that the flag cannot be for, is said."""
    ended = command("doctor", "--server", "none", "--redis-url", plain_redis)
    assert ended.status == 0, ended.errors
    assert "warning" in ended.output
    assert "appendonly no, appendfsync everysec\n         -> set appendonly yes" in ended.output
    away = command("doctor", "--server", "none", "--redis-url", "redis://127.0.0.1:1")
    assert (away.status, away.output.startswith("problem Redis does not answer as it should")) == (3, True)
    assert command("doctor", "--server", "none", "--redis-url", "redis+cluster://h:1").status == 2


def test_the_certificate_of_a_redis_is_looked_at(command: Run, tmp_path: Path) -> None:
    """Over TLS."""
    authority = Authority(tmp_path)
    made, port = authority.sign("redis"), free_port()
    options = ["--tls-port", str(port), "--tls-cert-file", str(made.cert_file), "--tls-key-file", str(made.key_file)]
    options += ["--tls-ca-cert-file", str(authority.ca_file), "--tls-auth-clients", "no", "--appendonly", "no"]
    process = start_redis(tmp_path, *options)
    try:
        url, ca = f"rediss://127.0.0.1:{port}", ["--redis-ca-file", str(authority.ca_file)]
        ended = command("doctor", "--server", "none", "--redis-url", url, *ca, "--json")
    finally:
        process.terminate()
        process.wait()
    checks = {check["name"]: check for check in json.loads(ended.output)}
    assert f"the certificate of Redis 127.0.0.1:{port} ends in" in checks["certificate"]["found"]
