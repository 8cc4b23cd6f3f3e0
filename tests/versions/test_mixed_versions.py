"""Clients and servers of two versions on one Redis, as while a deployment is upgraded."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import redis
from processes import ServerProcess
from samples import make_group
from versions.old_tree import ROOT, check_out, environment_of, start

from groupreplay import AsyncClient, Client, InvalidRequestError, TableConfig, convert
from groupreplay.group_messages import GroupStub, insert_request
from groupreplay.v1 import replay_service_pb2 as pb
from groupreplay_server.app import RunningServer

NAMES: dict[str, Any] = {"run": "run", "table": "train"}
OLDEST_LAYOUT = "4b759a8"
"""What may run beside the present version on one Redis."""
OLDEST_CLIENT = "e2fe7c6"
"""Whose SDK the present service serves."""
WORKER = Path(__file__).with_name("worker.py")
GROUPS = 60
"""Of each producer; a multiple of the batch."""


class OldServer(ServerProcess):
    """`groupreplay serve` of an earlier version."""

    def __init__(self, folder: Path, redis_url: str, tree: Path) -> None:
        super().__init__(folder, redis_url)
        self.environment = environment_of(tree)


@pytest.fixture
def start_old(clean_redis: redis.Redis, redis_url: str, tmp_path: Path) -> Iterator[Callable[[str], OldServer]]:
    """Start a service of an earlier version on the Redis of the test."""
    started: list[OldServer] = []

    def start_it(commit: str) -> OldServer:
        (tmp_path / "server").mkdir()
        process = OldServer(tmp_path / "server", redis_url, check_out(commit, tmp_path / "server-tree"))
        process.start()
        started.append(process)
        return process

    yield start_it
    for process in started:
        process.terminate()


@pytest.fixture
def new(clean_redis: redis.Redis, redis_url: str, tmp_path: Path) -> Iterator[ServerProcess]:
    """The present service on the same Redis."""
    process = ServerProcess(tmp_path, redis_url)
    process.start()
    yield process
    process.terminate()


def run_all(workers: list[subprocess.Popen[str]]) -> list[str]:
    """Wait for workers to end well; return the lines that they said."""
    said = []
    for worker in workers:
        output, _ = worker.communicate(timeout=100)
        assert worker.returncode == 0, worker.args
        said += output.split()
    return said


def trained(folder: Path) -> list[str]:
    """Return the fresh groups that were committed."""
    return sorted(line for file in folder.iterdir() for line in file.read_text().split())


def test_two_versions_on_one_redis_lose_nothing(
    new: ServerProcess, start_old: Callable[[str], OldServer], tmp_path: Path
) -> None:
    """Producers and trainers of both versions, each at the server of the other; the old one goes in the middle."""
    old = start_old(OLDEST_LAYOUT)
    tree = check_out(OLDEST_LAYOUT, tmp_path / "client-tree")
    both = f"ipv4:{old.grpc_address},{new.grpc_address}"
    committed = tmp_path / "committed"
    committed.mkdir()
    with Client(old.grpc_address) as client:
        client.create_table(**NAMES, config=TableConfig(ahead_groups=0))
        with pytest.raises(InvalidRequestError, match="does not take this call"):
            client.server_info()  # a call that was added later
    pushing = [
        start(ROOT, WORKER, "push", old.grpc_address, "new", str(GROUPS)),
        start(tree, WORKER, "push", new.grpc_address, "old", str(GROUPS)),
        start(tree, WORKER, "push", both, "stays", str(GROUPS)),
    ]
    pulling = [
        start(tree, WORKER, "pull", new.grpc_address, "old", "1", "2", str(3 * GROUPS), str(committed)),
        start(ROOT, WORKER, "pull", both, "new", "2", "2", str(3 * GROUPS), str(committed)),
    ]
    acknowledged = run_all(pushing[:1])
    assert old.terminate() == 0
    acknowledged += run_all(pushing[1:])
    run_all(pulling)
    assert len(acknowledged) == 3 * GROUPS
    assert trained(committed) == sorted(acknowledged)
    with Client(new.grpc_address) as client:
        counters = client.describe_table(**NAMES).counters
        history = client.table_history(**NAMES)
        assert client.list_groups(**NAMES).groups
    assert counters["inserted"] == counters["delivered_fresh"] == 3 * GROUPS
    assert counters.get("redelivered", 0) == 0
    # Steps that the old service committed have no line in a history that it did not know.
    assert 0 < sum(step.fresh for step in history.steps) <= 3 * GROUPS


def test_the_sdk_of_the_first_days_is_served(new: ServerProcess, tmp_path: Path) -> None:
    """It pushes, pulls and commits as it did when it was new."""
    tree = check_out(OLDEST_CLIENT, tmp_path / "tree")
    committed = tmp_path / "committed"
    committed.mkdir()
    with Client(new.grpc_address) as client:
        client.create_table(**NAMES, config=TableConfig(ahead_groups=0))
    pushing = start(tree, WORKER, "push", new.grpc_address, "old", str(GROUPS))
    pulling = start(tree, WORKER, "pull", new.grpc_address, "old", "1", "1", str(GROUPS), str(committed))
    acknowledged = run_all([pushing])
    run_all([pulling])
    assert trained(committed) == sorted(acknowledged)


async def test_a_field_of_a_later_version_stays_with_its_group(server: RunningServer, client: AsyncClient) -> None:
    """A service that is older than the producer keeps what it does not know, and hands it on to the trainer."""
    await client.create_table(**NAMES, config=TableConfig(ahead_groups=0))
    header, payload = convert.group_to_wire(make_group("g"))
    later = b"\xfa\x3e\x05later"  # field 1007, a string
    header.MergeFromString(later)
    async with grpc.aio.insecure_channel(server.grpc_address) as channel:
        stub = GroupStub(channel)
        answer = await stub.insert(insert_request("run", "train", [(header, payload)]))
        assert not answer.results[0].reason
        parts = []
        async for message in stub.next_batch(pb.NextBatchRequest(**NAMES, batch_size=1, lease_id="lease", timeout_s=5)):
            parts += message.parts
    [kept] = [part.header for part in parts if part.header is not None]
    assert later in kept.SerializeToString()
