"""Servers are stateless: two of them with four clients on one table give the results of one of each."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import redis
from processes import ServerProcess
from samples import effective, ids
from table_user import TableUser

from groupreplay import AsyncClient, Batch, TableConfig

GROUPS, BATCH = 240, 6


@asynccontextmanager
async def users(
    folder: Path, url: str, connection: redis.Redis, servers: int, clients: int
) -> AsyncIterator[list[TableUser]]:
    """Start servers on one Redis; yield clients that are spread over them."""
    async with AsyncExitStack() as stack:
        addresses = []
        for number in range(servers):
            (folder / str(number)).mkdir()
            process = ServerProcess(folder / str(number), url)
            process.start()
            stack.callback(process.terminate)
            addresses.append(process.grpc_address)
        yield [
            TableUser(
                await stack.enter_async_context(AsyncClient(addresses[number % servers])), connection, "run", "train"
            )
            for number in range(clients)
        ]


async def train_all(user: TableUser, first_step: int, every: int) -> list[Batch]:
    """Train on this client's share of the batches."""
    batches = []
    for step in range(first_step, GROUPS // BATCH, every):
        batch = await user.take(BATCH, timeout_s=60.0)
        await user.commit(batch, step)
        batches.append(batch)
    return batches


@pytest.mark.parametrize(("servers", "clients"), [(1, 1), (2, 4)])
async def test_any_number_of_servers_and_clients_give_the_same_results(
    tmp_path: Path, redis_url: str, clean_redis: redis.Redis, servers: int, clients: int
) -> None:
    """Every group is trained on once as fresh, whoever inserted it and wherever, and the counts are the same."""
    async with users(tmp_path, redis_url, clean_redis, servers, clients) as everybody:
        for user in everybody:
            await user.client.create_table(config=TableConfig(), **user.names)
        names = [f"g{number:03}" for number in range(GROUPS)]

        async def produce(number: int) -> None:
            own = names[number::clients]
            await everybody[number].insert_many(effective(*own), timeout_s=60.0)
            await everybody[number].insert_many(effective(*own), timeout_s=60.0)  # again: nothing new

        produced = asyncio.gather(*(produce(number) for number in range(clients)))
        found = await asyncio.gather(*(train_all(user, number, clients) for number, user in enumerate(everybody)))
        await produced
        batches = [batch for of_client in found for batch in of_client]
        assert Counter(name for batch in batches for name in ids(batch)) == Counter(names)
        state = await everybody[-1].describe()
        assert (state.fresh, state.leased, state.leases, state.replay) == (0, 0, 0, GROUPS)
        counters = {name: state.counters[name] for name in ("inserted", "duplicate", "consumed", "leases_committed")}
        assert counters == {
            "inserted": GROUPS,
            "duplicate": GROUPS,
            "consumed": GROUPS,
            "leases_committed": GROUPS // BATCH,
        }
        sampled = await asyncio.gather(*(user.sampled(GROUPS) for user in everybody))
        assert all(sample == sampled[0] for sample in sampled)
        assert len(sampled[0]) == GROUPS
