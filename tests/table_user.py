"""A client that names one table in every call, and the ways to open one."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import redis
from rest_client import RestClient
from samples import ids, ineffective
from threaded_client import ThreadedClient

from groupreplay import (
    Admission,
    AsyncClient,
    Batch,
    Client,
    GroupFeedback,
    GroupState,
    InsertOutcome,
    InsertResult,
    Policy,
    RolloutGroup,
    Table,
    TableConfig,
)
from groupreplay_server.store.keys import TableKeys


@asynccontextmanager
async def connect(kind: str, address: str, timeout_s: float = 10.0) -> AsyncIterator[AsyncClient]:
    """Open an `async` client, or a `sync` or a `rest` one behind the same methods; rest takes an HTTP address."""
    if kind == "rest":
        async with RestClient(address, timeout_s=timeout_s) as over_http:
            yield over_http
    elif kind == "async":
        async with AsyncClient(address, timeout_s=timeout_s) as connected:
            yield connected
    else:
        with Client(address, timeout_s=timeout_s) as plain:
            yield cast(AsyncClient, ThreadedClient(plain))


@dataclass(frozen=True, slots=True)
class TableUser:
    """Uses one table, and looks into its Redis where time or other processes would have to be waited for."""

    client: AsyncClient
    redis: redis.Redis
    run: str
    table: str

    @property
    def names(self) -> dict[str, Any]:
        """Arguments that every call on a table has."""
        return {"run": self.run, "table": self.table}

    def key(self, name: str) -> str:
        """Return a Redis key of the table."""
        return TableKeys(self.run, self.table).key(name)

    async def insert(self, *groups: RolloutGroup) -> list[InsertOutcome]:
        """Insert groups one after the other; the first that is refused raises."""
        return [await self.client.insert(group, **self.names) for group in groups]

    async def insert_many(self, groups: Iterable[RolloutGroup], timeout_s: float = 10.0) -> list[InsertResult]:
        """Insert groups in windows; return their results."""
        results = self.client.insert_many(_stream(groups), timeout_s=timeout_s, **self.names)
        return [result async for result in results]

    async def take(self, batch_size: int, **options: Any) -> Batch:
        """Take a batch that is expected to be there, unless a timeout_s is passed."""
        return await self.client.next_batch(batch_size=batch_size, **self.names, **{"timeout_s": 0.0} | options)

    async def sample(self, batch_size: int, **options: Any) -> Batch:
        """Draw a sample that is expected to be there, unless a timeout_s is passed."""
        return await self.client.sample(batch_size=batch_size, **self.names, **{"timeout_s": 0.0} | options)

    async def sampled(self, batch_size: int) -> list[str]:
        """Draw a sample, release it, and return its group ids."""
        batch = await self.sample(batch_size)
        await self.release(batch)
        return ids(batch)

    async def commit(self, batch: Batch, step: int, *feedback: GroupFeedback) -> bool:
        """Commit a batch."""
        return await self.client.commit(lease_id=batch.lease_id, step=step, feedback=feedback, **self.names)

    async def feed_back(self, group_id: str, **values: float) -> list[str]:
        """Tell the table what was found out about a group."""
        return await self.client.update_priorities([GroupFeedback(group_id=group_id, **values)], **self.names)

    async def update(self, **limits: Any) -> Table:
        """Change some limits."""
        config = replace((await self.describe()).config, **limits)
        return await self.client.update_table(config=config, **self.names)

    async def rewind(self, version: int, *, step: int, **options: Any) -> Policy:
        """Move the policy clock back."""
        policy = Policy(run=self.run, version=version, weights_uri=f"back-to-{version}")
        return await self.client.rewind_policy(policy, step=step, **options)

    async def release(self, batch: Batch) -> int:
        """Release a batch."""
        return await self.client.release(lease_id=batch.lease_id, **self.names)

    async def train(self, batch_size: int, step: int) -> list[str]:
        """Take a batch, commit it, and return its group ids."""
        batch = await self.take(batch_size)
        await self.commit(batch, step)
        return ids(batch)

    async def admit(self, producer_id: str, max_groups: int, timeout_s: float = 0.0, **options: Any) -> Admission:
        """Ask for admission."""
        return await self.client.request_admission(
            producer_id=producer_id, max_groups=max_groups, timeout_s=timeout_s, **options, **self.names
        )

    async def advance(self, version: int) -> Policy:
        """Publish a policy version."""
        return await self.client.advance_policy(Policy(run=self.run, version=version, weights_uri=f"w{version}"))

    async def locate(self, *group_ids: str) -> list[GroupState]:
        """Say where groups are."""
        return await self.client.locate_groups(group_ids, **self.names)

    async def describe(self) -> Table:
        """Return the state of the table."""
        return await self.client.describe_table(**self.names)

    async def counters(self) -> dict[str, int]:
        """Return the table's counts, without those of refusals."""
        counters = (await self.describe()).counters
        return {name: value for name, value in counters.items() if not name.startswith("refused_")}

    async def until(self, **expected: int) -> None:
        """Wait until describe_table shows these sizes."""
        async with asyncio.timeout(60):
            while True:
                table = await self.describe()
                if all(getattr(table, name) == value for name, value in expected.items()):
                    return

    async def replay_order(self, slots: int, *, version: int = 0) -> list[str]:
        """Return the replay groups that a batch without effective fresh groups gets; its lease is left as it is."""
        await self.insert(*ineffective(*(f"probe-{version}-{slot}" for slot in range(slots)), version=version))
        return ids(await self.take(slots))

    def scripts_run(self) -> int:
        """Return how many scripts Redis has run, for any table."""
        stats = cast(dict[str, dict[str, int]], self.redis.info("commandstats"))
        return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "eval"))

    def age_producers(self, by_ms: int) -> None:
        """Move what is known of producers into the past, as time would."""
        script = """
            local all = redis.call('HGETALL', KEYS[1])
            for i = 1, #all, 2 do
              local known = cmsgpack.unpack(all[i + 1])
              known[1], known[2], known[3] = known[1] - ARGV[1], known[2] - ARGV[1], known[3] - ARGV[1]
              redis.call('HSET', KEYS[1], all[i], cmsgpack.pack(known))
            end"""
        self.redis.eval(script, 1, self.key("producers"), by_ms)

    def expire_leases(self) -> None:
        """Move the deadline of every live lease into the past, as time would."""
        for lease_id in cast(Sequence[bytes], self.redis.zrange(self.key("leases"), 0, -1)):
            self.redis.zadd(self.key("leases"), {lease_id: 1})


async def _stream(groups: Iterable[RolloutGroup]) -> AsyncIterator[RolloutGroup]:
    for group in groups:
        yield group


class MakeTable:
    """Makes tables in a run of the test's own."""

    def __init__(self, client: AsyncClient, connection: redis.Redis, run: str) -> None:
        self._client = client
        self._redis = connection
        self.run = run

    async def __call__(self, table: str = "train", **config: Any) -> TableUser:
        await self._client.create_table(run=self.run, table=table, config=TableConfig(**config))
        return TableUser(self._client, self._redis, self.run, table)
