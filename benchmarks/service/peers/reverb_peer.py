"""Reverb: insert groups and draw them. Its server is a process of its own, or its client would go past the network."""

import multiprocessing
import os
import time
from multiprocessing.queues import Queue
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import reverb

from groupreplay_admin.load.shapes import SHAPES, make_arrays
from service.peers.answering import Tallied, answer_requests, until

_POOL_GROUPS = 16
_KEPT = 2000


def serve(ports: "Queue[int]") -> None:
    """Run a table that draws by priority, as a table of ours with the prioritized sampler."""
    table = reverb.Table(
        "groups",
        sampler=reverb.selectors.Prioritized(1.0),
        remover=reverb.selectors.Fifo(),
        max_size=_KEPT,
        rate_limiter=reverb.rate_limiters.MinSize(1),
    )
    server = reverb.Server(tables=[table], port=None)
    ports.put(server.port)
    server.wait()


class ReverbPeer:
    """A client and its server."""

    def __init__(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        ports: Queue[int] = spawn.Queue()
        spawn.Process(target=serve, args=(ports,), daemon=True).start()
        self._client = reverb.Client(f"localhost:{ports.get()}")
        self._pools: dict[str, list[tuple[list[Any], int]]] = {}

    def insert(self, *, shape: str, seconds: float) -> Tallied:
        """Insert one group after the other; each call returns when the server has it."""
        pool = self._pool(shape)
        latencies: list[float] = []
        moved = 0
        started = time.perf_counter()
        for sent in until(seconds):
            arrays, size = pool[len(latencies) % len(pool)]
            self._client.insert(arrays, {"groups": 1.0 + len(latencies) % 7})
            latencies.append(time.perf_counter() - sent)
            moved += size
        return _tallied(len(latencies), moved, started, latencies)

    def fill(self, *, shape: str, groups: int) -> Tallied:
        """Put so many groups into an empty table."""
        self._client.reset("groups")
        pool = self._pool(shape)
        started = time.perf_counter()
        for number in range(groups):
            self._client.insert(pool[number % len(pool)][0], {"groups": 1.0 + number % 7})
        return _tallied(groups, 0, started, [])

    def draw(self, *, batch_size: int, seconds: float) -> Tallied:
        """Draw batches by priority."""
        latencies: list[float] = []
        moved = groups = 0
        started = time.perf_counter()
        for asked in until(seconds):
            drawn = list(self._client.sample("groups", num_samples=batch_size))
            latencies.append(time.perf_counter() - asked)
            groups += len(drawn)
            moved += sum(sum(array.nbytes for array in sample[0].data[:2]) for sample in drawn)
        return _tallied(groups, moved, started, latencies)

    def _pool(self, shape: str) -> list[tuple[list[Any], int]]:
        if shape not in self._pools:
            made = [make_arrays(SHAPES[shape], index) for index in range(_POOL_GROUPS)]
            self._pools[shape] = [([it.token_ids, it.logprobs, it.lengths, it.rewards], it.size_bytes) for it in made]
        return self._pools[shape]


def _tallied(groups: int, moved: int, started: float, latencies: list[float]) -> Tallied:
    seconds = time.perf_counter() - started
    return {"groups": groups, "payload_bytes": moved, "seconds": seconds, "latencies_s": latencies}


if __name__ == "__main__":
    peer = ReverbPeer()
    answer_requests({"insert": peer.insert, "fill": peer.fill, "draw": peer.draw})
