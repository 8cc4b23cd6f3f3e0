"""Atropos: post scored groups to its server and get batches of them, in JSON."""

import socket
import subprocess
import sys
import time
from contextlib import closing
from typing import Any

import requests

from groupreplay_admin.load.shapes import SHAPES, make_arrays
from service.peers.answering import Tallied, answer_requests

_POOL_GROUPS = 8
_GROUPS_A_BATCH = 8
_START_S = 120.0


class AtroposPeer:
    """A client of a server that runs beside it."""

    def __init__(self) -> None:
        with closing(socket.create_server(("127.0.0.1", 0))) as probe:
            port = probe.getsockname()[1]
        self._url = f"http://127.0.0.1:{port}"
        self._session = requests.Session()
        server = ["-m", "uvicorn", "atroposlib.api.server:app", "--host", "127.0.0.1", "--port", str(port)]
        self._server = subprocess.Popen([sys.executable, *server, "--log-level", "warning"], stdout=sys.stderr)
        self._groups: dict[str, list[dict[str, Any]]] = {}
        self._wait()

    def close(self) -> None:
        """Stop the server."""
        self._server.terminate()
        self._server.wait()

    def push(self, *, shape: str, groups: int) -> Tallied:
        """Post groups one after the other, to an empty queue."""
        made = self._pool(shape)
        self._register(SHAPES[shape].rollouts)
        latencies = []
        started = time.perf_counter()
        for number in range(groups):
            sent = time.perf_counter()
            self._session.post(f"{self._url}/scored_data", json=made[number % len(made)]).raise_for_status()
            latencies.append(time.perf_counter() - sent)
        seconds = time.perf_counter() - started
        moved = groups * SHAPES[shape].mean_bytes
        return {"groups": groups, "payload_bytes": moved, "seconds": seconds, "latencies_s": latencies}

    def pull(self, *, shape: str) -> Tallied:
        """Get batches until there are no more."""
        groups, latencies = 0, []
        started = asked = time.perf_counter()
        while batch := self._session.get(f"{self._url}/batch").json()["batch"]:
            latencies.append(time.perf_counter() - asked)
            groups += len(batch)
            asked = time.perf_counter()
        seconds = asked - started
        moved = groups * SHAPES[shape].mean_bytes
        return {"groups": groups, "payload_bytes": moved, "seconds": seconds, "latencies_s": latencies}

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_S
        while True:
            try:
                self._session.get(f"{self._url}/", timeout=1).raise_for_status()
            except requests.ConnectionError:
                if time.monotonic() > deadline or self._server.poll() is not None:
                    raise
                time.sleep(0.1)
            else:
                return

    def _register(self, rollouts: int) -> None:
        self._session.get(f"{self._url}/reset_data").raise_for_status()
        trainer: dict[str, Any] = {
            "wandb_group": "a", "wandb_project": "a", "batch_size": _GROUPS_A_BATCH * rollouts, "max_token_len": 4096,
            "checkpoint_dir": "", "save_checkpoint_interval": 0, "starting_step": 0, "num_steps": 100,
        }  # fmt: skip
        self._session.post(f"{self._url}/register", json=trainer).raise_for_status()
        self._session.get(f"{self._url}/batch").raise_for_status()
        environment: dict[str, Any] = {
            "max_token_length": 4096,
            "desired_name": "x",
            "weight": 1.0,
            "group_size": rollouts,
        }
        self._session.post(f"{self._url}/register-env", json=environment).raise_for_status()

    def _pool(self, shape: str) -> list[dict[str, Any]]:
        if shape not in self._groups:
            self._groups[shape] = [_scored_data(shape, index) for index in range(_POOL_GROUPS)]
        return self._groups[shape]


def _scored_data(shape: str, index: int) -> dict[str, Any]:
    arrays = make_arrays(SHAPES[shape], index)
    ends = arrays.lengths.cumsum()
    spans = [slice(end - length, end) for end, length in zip(ends, arrays.lengths, strict=True)]
    return {
        "tokens": [arrays.token_ids[span].tolist() for span in spans],
        "masks": [[1] * int(length) for length in arrays.lengths],
        "scores": arrays.rewards.tolist(),
        "inference_logprobs": [arrays.logprobs[span].tolist() for span in spans],
    }


if __name__ == "__main__":
    with closing(AtroposPeer()) as peer:
        answer_requests({"push": peer.push, "pull": peer.pull})
