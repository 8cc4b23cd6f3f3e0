"""SIGKILL of the service in the middle of everything: what it acknowledged is there, once."""

import asyncio
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis
from processes import ServerProcess, plain_environment
from samples import effective, ids, make_group
from table_user import TableUser

from groupreplay import AsyncClient, GroupSource, GroupState, InsertOutcome, RolloutGroup, TableConfig
from groupreplay.table_config import Fill

ROUNDS = 3
GROUPS_PER_ROUND = 150


@pytest.fixture
def process(clean_redis: redis.Redis, redis_url: str, tmp_path: Path) -> Iterator[ServerProcess]:
    """A service of the test's own, on the session's Redis."""
    running = ServerProcess(tmp_path, redis_url)
    running.start()
    yield running
    running.kill()


@pytest.fixture
async def client(process: ServerProcess) -> AsyncIterator[AsyncClient]:
    """A client that goes on trying while the service is away."""
    async with AsyncClient(process.grpc_address, timeout_s=60.0) as connected:
        yield connected


class Loop:
    """Producers and a trainer that know nothing of crashes, and what they were told."""

    def __init__(self, table: TableUser, seed: int) -> None:
        self._table = table
        self._rng = random.Random(seed)
        self.acknowledged: list[str] = []
        self.committed: dict[int, list[str]] = {}
        self.replayed = 0
        self.progress = asyncio.Condition()

    async def produce(self, producer: str, count: int) -> None:
        """Insert groups, some of them ineffective, in calls of different sizes."""
        names = [f"{producer}-{number}" for number in range(count)]
        while names:
            size = self._rng.randint(1, 12)
            group_ids, names = names[:size], names[size:]
            for result in await self._table.insert_many(map(self._group, group_ids), timeout_s=60.0):
                assert result.outcome in {InsertOutcome.INSERTED, InsertOutcome.DUPLICATE}, result
                self.acknowledged.append(result.group_id)
            await self._tell()

    def _group(self, group_id: str) -> RolloutGroup:
        rewards = (0.0, 1.0) if self._rng.random() < 0.6 else (1.0, 1.0)
        return make_group(group_id, rewards=rewards, tokens=self._rng.choice([3, 3000]))

    async def train(self, steps: int, batch_size: int) -> None:
        """Take batches and commit them, one after the other."""
        for step in range(steps):
            batch = await self._table.take(batch_size, timeout_s=60.0)
            fresh = [each.group.group_id for each in batch.groups if each.source is GroupSource.FRESH]
            await self._table.commit(batch, step=step)
            self.committed[step] = fresh
            self.replayed += len(batch.groups) - len(fresh)
            await self._tell()

    async def _tell(self) -> None:
        async with self.progress:
            self.progress.notify_all()

    async def until(self, groups: int) -> None:
        """Wait until so many groups were acknowledged."""
        async with self.progress:
            await self.progress.wait_for(lambda: len(self.acknowledged) >= groups)


@pytest.mark.parametrize(("fill", "seed"), [(Fill.REPLAY, 1), (Fill.NONE, 2)])
async def test_what_a_killed_service_acknowledged_is_there_once(
    process: ServerProcess, client: AsyncClient, clean_redis: redis.Redis, fill: Fill, seed: int
) -> None:
    """Producers and trainer go on with its successor: no group is lost, and none is trained as fresh in two steps."""
    await client.create_table(run="run", table="train", config=TableConfig(fill=fill))
    table = TableUser(client, clean_redis, "run", "train")
    rng = random.Random(seed)
    total = ROUNDS * GROUPS_PER_ROUND
    loop = Loop(table, seed)
    async with asyncio.TaskGroup() as tasks:
        for producer in ("one", "two"):
            tasks.create_task(loop.produce(producer, total // 2))
        tasks.create_task(loop.train(total // 10 - 1, 10))
        for round_number in range(ROUNDS):
            await loop.until(round_number * GROUPS_PER_ROUND + rng.randint(10, GROUPS_PER_ROUND - 30))
            await asyncio.to_thread(process.kill)
            await asyncio.to_thread(process.start)
    assert len(set(loop.acknowledged)) == len(loop.acknowledged) == total
    places = await table.locate(*loop.acknowledged)
    assert GroupState.UNKNOWN not in places
    trained = [name for names in loop.committed.values() for name in names]
    assert len(set(trained)) == len(trained)
    assert (loop.replayed > 0) == (fill is Fill.REPLAY)
    state = await table.describe()
    assert (state.counters["inserted"], state.leased, state.leases) == (total, 0, 0)
    assert state.counters["leases_committed"] == total // 10 - 1
    assert state.counters["consumed"] == total - state.fresh == total - 10


TRAINER = """
import sys, time
from groupreplay import Client
with Client(sys.argv[1]) as client:
    batch = client.next_batch(run="run", table="train", batch_size=2, lease_s=float(sys.argv[2]), lease_id="dead")
    print(*(delivered.group.group_id for delivered in batch.groups), flush=True)
    client.next_batch(run="run", table="train", batch_size=1000, timeout_s=3600)
"""


@pytest.fixture
def trainer(process: ServerProcess) -> Iterator[subprocess.Popen[str]]:
    """A trainer in a process of its own: takes a batch for two seconds, then waits for one that never comes."""
    command = [sys.executable, "-c", TRAINER, process.grpc_address, "2"]
    with subprocess.Popen(command, env=plain_environment(), stdout=subprocess.PIPE, text=True) as running:
        yield running
        running.kill()


async def test_a_batch_of_a_trainer_that_died_goes_to_the_next_one(
    client: AsyncClient, clean_redis: redis.Redis, trainer: subprocess.Popen[str]
) -> None:
    """When its lease ends, at the same place, and marked as delivered before."""
    await client.create_table(run="run", table="train", config=TableConfig())
    table = TableUser(client, clean_redis, "run", "train")
    await table.insert(*effective("a", "b", "c"))
    assert trainer.stdout is not None
    assert await asyncio.to_thread(trainer.stdout.readline) == "a b\n"
    await table.until(missing=999)
    trainer.kill()
    await table.until(missing=0)
    batch = await table.take(3, timeout_s=60.0)
    assert ids(batch) == ["a", "b", "c"]
    assert [delivered.redeliveries for delivered in batch.groups] == [1, 1, 0]
    assert await table.commit(batch, step=1) is False


async def test_a_trainer_that_comes_back_gets_its_batch_again_from_the_successor(
    process: ServerProcess, client: AsyncClient, clean_redis: redis.Redis
) -> None:
    """Leases live in Redis, not in the service: the same lease id is the same batch, before and after a crash."""
    await client.create_table(run="run", table="train", config=TableConfig())
    table = TableUser(client, clean_redis, "run", "train")
    await table.insert(*effective("a", "b", "c"))
    assert ids(await table.take(2, lease_id="mine")) == ["a", "b"]
    await asyncio.to_thread(process.kill)
    await asyncio.to_thread(process.start)
    batch = await table.take(2, lease_id="mine", timeout_s=10.0)
    assert ids(batch) == ["a", "b"]
    assert [delivered.redeliveries for delivered in batch.groups] == [0, 0]
    assert await table.commit(batch, step=1) is False
    assert await table.locate("a", "b", "c") == [GroupState.REPLAY, GroupState.REPLAY, GroupState.FRESH]
