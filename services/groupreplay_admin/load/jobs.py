"""What clients of the service do under load."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal, TypedDict

from groupreplay import AsyncClient, BatchNotReadyError, GroupFeedback, RolloutGroup
from groupreplay.convert import group_to_wire
from groupreplay_admin.load.crew import Go
from groupreplay_admin.load.producing import groups_of
from groupreplay_admin.load.shapes import SHAPES
from groupreplay_admin.load.tally import Tally

Taking = Literal["sample", "next_batch", "lease_batch"]
_STEPS_EACH = 2**32
"""Training steps that a client may commit before it would meet those of the next. The first is the time in
microseconds, so that no job before has committed it."""


class TableName(TypedDict):
    """How calls of the SDK name a table."""

    run: str
    table: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """A table of a service."""

    server: str
    run: str
    table: str
    login: dict[str, Any] = field(default_factory=dict, repr=False)
    """As Connection.login() has it."""

    def client(self, timeout_s: float) -> AsyncClient:
        """Return a client of the service, not yet open."""
        return AsyncClient(self.server, timeout_s=timeout_s, **self.login)

    @property
    def name(self) -> TableName:
        """The table's name, as every call takes it."""
        return {"run": self.run, "table": self.table}


@dataclass(frozen=True, slots=True, kw_only=True)
class _TableJob:
    where: Where
    seconds: float
    """How long to go on."""
    number: int = 0
    """Of the client, among those of its kind."""
    timeout_s: float = 60.0
    """For each call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _InsertJob(_TableJob):
    shape: str
    """Name of the shape of the groups."""
    ineffective: float = 0.0
    """Share of the groups whose rewards are all alike."""
    max_groups: int = 2**40
    """Stop after so many."""
    sender: str = field(default_factory=lambda: f"bench{time.time_ns():x}")
    """In every group id, so that no two jobs send the same group."""

    def _supply(self) -> Iterator[RolloutGroup]:
        return groups_of(
            SHAPES[self.shape],
            prefix=f"{self.sender}-{self.number}",
            producer_id=f"bench-{self.number}",
            ineffective=self.ineffective,
        )

    async def groups(self) -> AsyncIterator[RolloutGroup]:
        """Yield groups until time is up; it counts from the second on, so that the first can be made beforehand."""
        supply = self._supply()
        yield next(supply)
        until = time.perf_counter() + self.seconds
        for _ in range(self.max_groups - 1):
            if time.perf_counter() >= until:
                return
            yield next(supply)


def _payload_bytes(group: RolloutGroup) -> int:
    return group.response_token_ids.nbytes + group.behaviour_logprobs.nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class InsertEach(_InsertJob):
    """Insert groups one at a time: the next when the service has acknowledged the one before."""

    async def run(self, go: Go) -> Tally:
        """Insert until time is up."""
        latencies: list[float] = []
        moved = 0
        async with self.where.client(self.timeout_s) as client:
            await client.describe_table(**self.where.name)  # connects
            groups = self.groups()
            group: RolloutGroup | None = await anext(groups)
            await go()
            started = time.perf_counter()
            while group is not None:
                sent = time.perf_counter()
                await client.insert(group, **self.where.name)
                latencies.append(time.perf_counter() - sent)
                moved += _payload_bytes(group)
                group = await anext(groups, None)
            seconds = time.perf_counter() - started
        return Tally(groups=len(latencies), payload_bytes=moved, seconds=seconds, latencies_s=latencies)


@dataclass(frozen=True, slots=True, kw_only=True)
class InsertAtRate(_InsertJob):
    """Insert groups at their times, whether or not those before are acknowledged, as independent producers would."""

    per_s: float
    """Groups a second."""

    async def run(self, go: Go) -> Tally:
        """Insert until time is up. A group's latency counts from the moment it was due."""
        latencies: list[float] = []
        supply = self._supply()
        total = max(1, int(self.seconds * self.per_s))
        async with self.where.client(self.timeout_s) as client:
            await client.describe_table(**self.where.name)

            async def insert(group: RolloutGroup, due: float) -> int:
                await client.insert(group, **self.where.name)
                latencies.append(time.perf_counter() - due)
                return _payload_bytes(group)

            await go()
            started = time.perf_counter()
            async with asyncio.TaskGroup() as tasks:
                sent = []
                for number in range(total):
                    due = started + number / self.per_s
                    await asyncio.sleep(due - time.perf_counter())
                    sent.append(tasks.create_task(insert(next(supply), due)))
            seconds = time.perf_counter() - started
        moved = sum(task.result() for task in sent)
        return Tally(groups=total, payload_bytes=moved, seconds=seconds, latencies_s=latencies)


@dataclass(frozen=True, slots=True, kw_only=True)
class InsertStream(_InsertJob):
    """Insert groups as a stream, as fast as the service takes them."""

    async def run(self, go: Go) -> Tally:
        """Stream until time is up, and wait for the last acknowledgement."""
        done = moved = 0

        async def counted() -> AsyncIterator[RolloutGroup]:
            nonlocal moved
            group: RolloutGroup | None = first
            while group is not None:
                moved += _payload_bytes(group)
                yield group
                group = await anext(source, None)

        async with self.where.client(self.timeout_s) as client:
            await client.describe_table(**self.where.name)
            source = self.groups()
            first = await anext(source)
            group_to_wire(first)  # imports what encoding needs
            await go()
            started = time.perf_counter()
            async for result in client.insert_many(counted(), **self.where.name):
                if result.error is not None:
                    raise result.error
                done += 1
            seconds = time.perf_counter() - started
        return Tally(groups=done, payload_bytes=moved, seconds=seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw(_TableJob):
    """Take batches and commit each, as a trainer that needs no time to train."""

    call: Taking
    """lease_batch leaves the payloads out."""
    batch_size: int
    max_batches: int = 2**40
    """Stop after so many."""
    feedback: bool = False
    """Whether each commit tells a priority for each group."""
    wait_s: float = 0.0
    """How long to wait for a batch; the job ends when there is none."""
    ahead: int = 0
    """Batches that are asked for beyond the one in hand, as GroupDataset(prefetch=...) does. 0 = the next is asked for
    when the one before is committed."""

    async def run(self, go: Go) -> Tally:
        """Take batches until time is up or there are no more. A batch's latency counts from when it is waited for."""
        latencies: list[float] = []
        groups = moved = 0
        steps = count(time.time_ns() // 1000 + self.number * _STEPS_EACH)
        async with self.where.client(self.timeout_s) as client:
            await client.describe_table(**self.where.name)
            await go()
            started = ended = time.perf_counter()
            async with aclosing(self._batches(client, started + self.seconds)) as batches:
                async for batch in batches:
                    await self._commit(client, batch, next(steps))
                    before, ended = ended, time.perf_counter()
                    latencies.append(ended - before)
                    groups += len(batch.group_ids)
                    moved += batch.payload_bytes
        return Tally(groups=groups, payload_bytes=moved, seconds=ended - started, latencies_s=latencies)

    async def _batches(self, client: AsyncClient, until: float) -> AsyncGenerator["_Batch"]:
        """Yield batches until time is up; before one is yielded, those that are to be ahead of it are asked for."""
        under_way: deque[asyncio.Task[_Batch]] = deque()
        asked = 0

        def ask(most: int) -> None:
            nonlocal asked
            while len(under_way) < most and asked < self.max_batches and time.perf_counter() < until:
                under_way.append(asyncio.create_task(self._take(client)))
                asked += 1

        try:
            while True:
                ask(1)
                if not under_way:
                    return
                batch = await under_way.popleft()
                ask(self.ahead)
                yield batch
        except BatchNotReadyError:
            return
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def _take(self, client: AsyncClient) -> "_Batch":
        size, wait_s, holder = self.batch_size, self.wait_s, f"bench-{self.number}"
        if self.call == "lease_batch":
            outline = await client.lease_batch(**self.where.name, batch_size=size, timeout_s=wait_s, holder=holder)
            return _Batch(outline.lease_id, [it.delivery.group_id for it in outline.groups], 0)
        taking = client.sample if self.call == "sample" else client.next_batch
        batch = await taking(**self.where.name, batch_size=size, timeout_s=wait_s, holder=holder)
        moved = sum(_payload_bytes(it.group) for it in batch.groups)
        return _Batch(batch.lease_id, [it.group.group_id for it in batch.groups], moved)

    async def _commit(self, client: AsyncClient, batch: "_Batch", step: int) -> None:
        told = enumerate(batch.group_ids) if self.feedback else ()
        feedback = [GroupFeedback(group_id=it, priority=1.0 + index % 7) for index, it in told]
        await client.commit(**self.where.name, lease_id=batch.lease_id, step=step, feedback=feedback)


@dataclass(frozen=True, slots=True)
class _Batch:
    """What is left of a batch when its groups have been looked at."""

    lease_id: str
    group_ids: list[str]
    payload_bytes: int
