"""A Redis Cluster of a benchmark's own."""

import socket
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from service.private_redis import OPTIONS, PrivateRedis, wait_for

_SLOTS: Final = 16384


class Cluster:
    """Shards without replicas, empty at the start, each in a process of its own."""

    def __init__(self, folder: Path, shards: int) -> None:
        """Prepare it in an empty folder."""
        self._folder = folder
        self._shards = shards
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        free = _free_ports(2 * self._shards)
        ports, buses = free[: self._shards], free[self._shards :]
        self.nodes = [
            self._stack.enter_context(PrivateRedis(self._folder / str(port), _options(port, bus)))
            for port, bus in zip(ports, buses, strict=True)
        ]
        share = -(-_SLOTS // self._shards)
        for number, node in enumerate(self.nodes):
            _ask(node, "SET-CONFIG-EPOCH", number + 1)
            _ask(node, "ADDSLOTSRANGE", number * share, min(_SLOTS, (number + 1) * share) - 1)
        for node in self.nodes[1:]:
            _ask(node, "MEET", "127.0.0.1", ports[0], buses[0])
        for node in self.nodes:
            wait_for(partial(self._is_known_to, node), "the cluster")
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in ports)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def cpu_seconds(self) -> float:
        """Return the CPU time that its shards have taken."""
        return sum(node.cpu_seconds() for node in self.nodes)

    def used_bytes(self) -> int:
        """Return the memory that its shards have in use."""
        return sum(node.used_bytes() for node in self.nodes)

    def flush(self) -> None:
        """Remove all there is."""
        for node in self.nodes:
            node.flush()

    def _is_known_to(self, node: PrivateRedis) -> bool:
        state: bytes = _ask(node, "INFO")
        return {b"cluster_state:ok", b"cluster_known_nodes:%d" % self._shards} <= set(state.split())


def _options(port: int, bus: int) -> tuple[str, ...]:
    address = ("--port", str(port), "--bind", "127.0.0.1", "--cluster-port", str(bus))
    return (*OPTIONS["memory"], *address, "--cluster-enabled", "yes")


def _ask(node: PrivateRedis, *command: str | int) -> Any:
    return node.client.execute_command("CLUSTER", *command)  # type: ignore[no-untyped-call]


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody has, no two alike."""
    with ExitStack() as stack:
        listening = [stack.enter_context(closing(socket.create_server(("127.0.0.1", 0)))) for _ in range(count)]
        return [int(listener.getsockname()[1]) for listener in listening]
