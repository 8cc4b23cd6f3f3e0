"""Servers keep nothing, so any number of them is one service."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import redis
from samples import effective, ids, ineffective
from service_user import settings
from table_user import TableUser

from groupreplay import AsyncClient, GroupState, TableConfig
from groupreplay.types import Table
from groupreplay_server.app import running_server


@pytest.fixture
async def tables(clean_redis: redis.Redis, redis_url: str) -> AsyncIterator[list[TableUser]]:
    """Four clients of two servers on one Redis, and their table."""
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(running_server(settings(redis_url))) for _ in range(2)]
        clients = [
            await stack.enter_async_context(AsyncClient(servers[number % 2].grpc_address, timeout_s=20.0))
            for number in range(4)
        ]
        users = [TableUser(client, clean_redis, "run", "train") for client in clients]
        await users[0].client.create_table(run="run", table="train", config=TableConfig())
        yield users


async def play(users: list[TableUser]) -> tuple[list[Any], Table]:
    """Do the same things through these clients in turn; return what they said, and the table in the end."""
    said: list[Any] = []
    for step in range(4):
        turn = users[step % len(users) :] + users[: step % len(users)]
        said += await turn[0].insert(*effective(f"a{step}", f"b{step}"), *effective(f"a{step}"))
        said += await turn[-1].insert(*ineffective(f"c{step}"))
        batch = await turn[1 % len(turn)].take(3, lease_id=f"lease-{step}")
        said.append([(each.group.group_id, each.source, each.times_sampled) for each in batch.groups])
        said.append(await turn[-1].commit(batch, step))
        said.append(await turn[0].commit(batch, step))
        said.append(await turn[1 % len(turn)].advance(step + 1))
    return said, await users[0].describe()


async def test_two_servers_and_four_clients_say_what_one_of_each_says(
    tables: list[TableUser], clean_redis: redis.Redis
) -> None:
    """The same calls in the same order give the same answers, whichever server gets them."""
    said, table = await play(tables)
    clean_redis.flushall()
    await tables[0].client.create_table(run="run", table="train", config=TableConfig())
    alone, table_alone = await play(tables[:1])
    assert [_timeless(each) for each in said] == [_timeless(each) for each in alone]
    assert (table.counters, table.fresh, table.replay) == (table_alone.counters, table_alone.fresh, table_alone.replay)


def _timeless(said: Any) -> Any:
    return (said.run, said.version, said.weights_uri) if hasattr(said, "published_at_ms") else said


async def test_two_servers_give_every_group_to_one_of_four_clients(tables: list[TableUser]) -> None:
    """Two producers and two trainers at once, each on both servers: no group is fresh in two batches, none is left."""
    taken: list[str] = []

    async def produce(user: TableUser, producer: str) -> None:
        for number in range(40):
            await user.insert(*effective(f"{producer}-{number}"))

    async def train(user: TableUser, trainer: int) -> None:
        for step in range(8):
            batch = await user.take(5, timeout_s=20.0)
            taken.extend(ids(batch))
            await user.commit(batch, step=2 * step + trainer)

    async with asyncio.TaskGroup() as tasks:
        for number in range(2):
            tasks.create_task(produce(tables[number], f"p{number}"))
            tasks.create_task(train(tables[number + 2], number))
    assert len(taken) == len(set(taken)) == 80
    assert set(await tables[0].locate(*taken)) == {GroupState.REPLAY}


async def test_a_call_that_waits_at_one_server_is_woken_by_an_insert_at_the_other(tables: list[TableUser]) -> None:
    """Wake-ups travel through Redis."""
    waiting = asyncio.create_task(tables[0].take(1, timeout_s=60.0))
    await tables[1].until(missing=1)
    await tables[1].insert(*effective("a"))
    assert ids(await asyncio.wait_for(waiting, 20)) == ["a"]
