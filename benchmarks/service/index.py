"""Work on the index alone, in tables of a thousand to a million tiny groups."""

import asyncio
import secrets
from collections.abc import Iterator
from itertools import islice
from typing import Final

from groupreplay import Fill, Sampler, TableConfig, UnknownRunError, UnknownTableError
from groupreplay.convert import group_to_wire
from groupreplay_admin.load.crew import Crew
from groupreplay_admin.load.jobs import Draw, Taking, Where
from groupreplay_admin.load.producing import groups_of
from groupreplay_admin.load.shapes import SHAPES
from groupreplay_server.store.connection import open_redis
from groupreplay_server.store.records import IncomingGroup, LeasedBatch
from groupreplay_server.store.redis_store import RedisStore
from service.deployment import RUN, Deployment
from service.measured import Measured, measured

BATCH: Final = 32
_AT_ONCE: Final = 1000
_LEASED_AT_ONCE: Final = 50_000
_CAPACITY: Final = 2**22
_FRESH: Final = 6400
"""Groups for the batches of a trial; half of them ineffective, so that as many come from replay."""
_MOST_BATCHES: Final = _FRESH // BATCH


def lease_from_index(service: Deployment, groups: int, seconds: float, crew: Crew) -> Measured:
    """Take batches of 32 of a table with so many replay groups, headers only, and commit them."""
    table = f"lease-{groups}"
    asyncio.run(_prepare_replay(service, table, groups))
    return _measured(service, table, seconds, "lease_batch", crew)


def draw_from_index(service: Deployment, groups: int, seconds: float, crew: Crew) -> Measured:
    """Draw 32 of so many groups by priority, and commit with feedback; payloads are tiny."""
    table = f"draw-{groups}"
    asyncio.run(_prepare_draws(service, table, groups))
    return _measured(service, table, seconds, "sample", crew)


def _measured(service: Deployment, table: str, seconds: float, call: Taking, crew: Crew) -> Measured:
    where = Where(server=service.address, run=RUN, table=table)
    job = Draw(
        where=where,
        seconds=seconds,
        call=call,
        batch_size=BATCH,
        max_batches=_MOST_BATCHES,
        feedback=True,
    )
    [tally] = crew.run([job])
    per_batch = {"ms_per_batch": 1e3 * BATCH / tally.groups_per_s}
    return {**measured(tally), **per_batch, "table_groups": float(table.rpartition("-")[2])}


async def _prepare_replay(service: Deployment, table: str, groups: int) -> None:
    """Make the table where it is not there, and see that it has fresh groups for a trial."""
    async with open_redis(service.redis.url, reply_timeout_s=None) as redis:
        store = RedisStore(redis)
        config = TableConfig(fresh_capacity=_CAPACITY, replay_capacity=groups, sampler=Sampler.RECENCY)
        if not await _has(store, table):
            await store.create_table(RUN, table, config)
            await _insert(store, table, _tiny(groups))
            await _commit_all(store, table)
        found = await store.describe_table(RUN, table)
        await _insert(store, table, _tiny(max(0, _FRESH - found.fresh), ineffective=0.5))


async def _commit_all(store: RedisStore, table: str) -> None:
    for step in range(10**6):
        lease_id = secrets.token_hex(8)
        found = await store.describe_table(RUN, table)
        if not found.fresh:
            return
        batch = await store.take_batch(
            RUN,
            table,
            lease_id=lease_id,
            batch_size=min(found.fresh, _LEASED_AT_ONCE),
            lease_ms=600_000,
            holder="index",
            wait_ms=0,
            call_id="index",
        )
        if not isinstance(batch, LeasedBatch):
            raise TypeError(f"table {table} has {found.fresh} fresh groups and no batch: {batch}")
        await store.commit_lease(RUN, table, lease_id=lease_id, step=step)


async def _prepare_draws(service: Deployment, table: str, groups: int) -> None:
    async with open_redis(service.redis.url, reply_timeout_s=None) as redis:
        store = RedisStore(redis)
        if not await _has(store, table):
            config = TableConfig(fill=Fill.SAMPLE, sampler=Sampler.PRIORITIZED, replay_capacity=groups)
            await store.create_table(RUN, table, config)
            await _insert(store, table, _tiny(groups))


async def _has(store: RedisStore, table: str) -> bool:
    try:
        await store.describe_table(RUN, table)
    except (UnknownRunError, UnknownTableError):
        return False
    return True


async def _insert(store: RedisStore, table: str, groups: Iterator[IncomingGroup]) -> None:
    while page := list(islice(groups, _AT_ONCE)):
        await store.insert_groups(RUN, table, page)


def _tiny(count: int, *, ineffective: float = 0.0) -> Iterator[IncomingGroup]:
    """Yield groups with the headers and payloads of the tiny shape, under new ids."""
    header, payload = group_to_wire(next(groups_of(SHAPES["tiny"], prefix="index")))
    written, batch = header.SerializeToString(), secrets.token_hex(4)
    for number in range(count):
        skipped = int((number + 1) * ineffective) > int(number * ineffective)
        yield IncomingGroup(
            group_id=f"{batch}-{number}",
            prompt_id=f"{batch}-{number}",
            producer_id="index",
            policy_version_min=0,
            policy_version_max=0,
            reward_std=0.0 if skipped else 0.5,
            task="",
            priority=1.0 + number % 7,
            reward_mean=0.5,
            header=written,
            payload=None if skipped else payload,
        )
