"""Calls that wait: they sleep until Redis says that something changed, and end with an answer."""

import asyncio
from typing import Any, cast

import grpc.aio
import pytest
from samples import effective, ids, ineffective, make_group
from table_user import MakeTable, TableUser

from groupreplay import Batch, BatchNotReadyError, GroupState
from groupreplay.v1 import replay_service_pb2 as pb
from groupreplay.v1.replay_service_pb2_grpc import ReplayServiceStub


def waiting_batch(table: TableUser, batch_size: int, **options: Any) -> "asyncio.Task[Batch]":
    """Start a call that waits for a batch."""
    return asyncio.create_task(table.take(batch_size, timeout_s=60.0, **options))


async def test_an_insert_wakes_the_batch_that_waits_for_it(make_table: MakeTable) -> None:
    """A trainer that waits gets its batch with the last group it needs."""
    table = await make_table()
    await table.insert(*effective("a"))
    waiting = waiting_batch(table, 2)
    await table.until(missing=1)
    await table.insert(*effective("b"))
    assert ids(await waiting) == ["a", "b"]
    assert (await table.describe()).missing == 0


async def test_calls_that_wait_send_nothing_to_redis(make_table: MakeTable) -> None:
    """Waiting is sleeping: while others work, parked calls add no command, and an insert wakes whom it is of use to."""
    table = await make_table()
    other = await make_table("other")
    await table.insert(*effective("a"))
    parked = [waiting_batch(table, 5 + number) for number in range(3)]
    await table.until(missing=5 + 6 + 7 - 1)
    before = table.scripts_run()
    for _ in range(50):
        await other.describe()
    assert table.scripts_run() - before == 50
    before = table.scripts_run()
    await table.insert(*effective("b", "c", "d"))
    assert table.scripts_run() - before == 3
    await table.insert(*effective("e"))
    done, still_parked = await asyncio.wait(parked, return_when=asyncio.FIRST_COMPLETED)
    assert [len((await task).groups) for task in done] == [5]
    assert len(still_parked) == 2
    await table.insert_many(effective(*(f"more-{number}" for number in range(13))))
    await asyncio.wait_for(asyncio.gather(*still_parked), 30)


async def test_released_groups_wake_a_waiting_batch(make_table: MakeTable) -> None:
    """What one trainer gives back, another takes at once."""
    table = await make_table()
    await table.insert(*effective("a"))
    batch = await table.take(1)
    waiting = waiting_batch(table, 1)
    await table.until(missing=1)
    await table.release(batch)
    assert ids(await waiting) == ["a"]


async def test_expired_leases_wake_a_waiting_batch(make_table: MakeTable) -> None:
    """Whoever looks at the table first carries the expiry out, and the waiting trainer gets the groups."""
    table = await make_table()
    await table.insert(*effective("a"))
    await table.take(1)
    waiting = waiting_batch(table, 1)
    await table.until(missing=1)
    table.expire_leases()
    await table.describe()
    assert ids(await waiting) == ["a"]


async def test_the_group_of_another_prompt_wakes_a_batch_that_passed_over_repeated_prompts(
    make_table: MakeTable,
) -> None:
    """Three groups of one prompt count as one."""
    table = await make_table()
    await table.insert(*(make_group(f"a{number}", prompt_id="a") for number in range(3)))
    waiting = waiting_batch(table, 2)
    await table.until(missing=1)
    await table.insert(make_group("b"))
    assert ids(await waiting) == ["a0", "b"]


async def test_a_batch_that_waits_becomes_complete_when_a_repeated_prompt_leaves(make_table: MakeTable) -> None:
    """What is wanted may shrink while a call waits."""
    table = await make_table()
    await table.insert(*(make_group(f"a{number}", prompt_id="a") for number in range(3)))
    waiting = waiting_batch(table, 2)
    await table.until(missing=1)
    await table.take(1)
    await table.insert(make_group("b"))
    assert ids(await waiting) == ["a1", "b"]


async def test_waiting_trainers_share_what_comes(make_table: MakeTable) -> None:
    """No group goes to two of them, and none of them sleeps on."""
    table = await make_table()
    waiting = [waiting_batch(table, 2) for _ in range(4)]
    await table.until(missing=8)
    names = [f"g{number}" for number in range(8)]
    await table.insert(*effective(*names))
    batches = await asyncio.wait_for(asyncio.gather(*waiting), 30)
    assert sorted(name for batch in batches for name in ids(batch)) == names


async def test_a_call_that_ran_into_its_timeout_says_what_is_missing(make_table: MakeTable) -> None:
    """The message has the demand, what is there, when the last group came, and where to look."""
    table = await make_table()
    with pytest.raises(BatchNotReadyError, match=r"has 0 of the 2 fresh groups .* nothing was ever inserted"):
        await table.take(2)
    await table.insert(*effective("a", "b"))
    await table.train(1, step=1)
    held = await table.take(1)
    await table.insert(*ineffective("x"))
    with pytest.raises(BatchNotReadyError) as raised:
        await table.take(3, timeout_s=0.05)
    message = str(raised.value)
    assert f"table {table.run}/train has 1 of the 3 fresh groups that a batch of 3 needs" in message
    assert "after waiting 0.05 s" in message
    assert "the last insert was" in message
    assert "1 fresh (0 effective), 1 in 1 leases, 1 in replay, policy version 0; see that producers run" in message
    await table.release(held)


async def test_a_call_that_timed_out_is_forgotten(make_table: MakeTable) -> None:
    """It wants nothing any more."""
    table = await make_table()
    with pytest.raises(BatchNotReadyError):
        await table.take(4, timeout_s=0.05)
    assert (await table.describe()).missing == 0
    assert table.redis.hlen(table.key("waiting")) == 0


async def test_a_trainer_that_leaves_while_it_waits_wants_nothing_any_more(
    make_table: MakeTable, stub: ReplayServiceStub
) -> None:
    """Producers must not generate for a batch that nobody will take."""
    table = await make_table(ahead_groups=0)
    request = pb.NextBatchRequest(lease_id="gone", batch_size=3, timeout_s=3600, **table.names)
    call = cast("grpc.aio.UnaryStreamCall[Any, Any]", stub.NextBatch(request))
    await table.until(missing=3)
    call.cancel()
    await table.until(missing=0)
    assert (await table.admit("producer", 8)).groups == 0
    await table.insert(*effective("a", "b", "c"))
    assert await table.locate("a") == [GroupState.FRESH]


async def test_a_trainer_that_asks_again_under_its_lease_id_is_not_forgotten_with_its_first_call(
    make_table: MakeTable, stub: ReplayServiceStub
) -> None:
    """A connection that breaks ends a call late; the call that replaced it still counts for admission."""
    table = await make_table(ahead_groups=0)
    request = pb.NextBatchRequest(lease_id="same", batch_size=3, timeout_s=3600, **table.names)
    first = cast("grpc.aio.UnaryStreamCall[Any, Any]", stub.NextBatch(request))
    await table.until(missing=3)
    second = waiting_batch(table, 3, lease_id="same")
    while table.redis.hlen(table.key("waiting")) < 2:
        await table.describe()
    first.cancel()
    await table.until(missing=3)
    assert (await table.admit("producer", 8)).groups == 3
    await table.insert(*effective("a", "b", "c"))
    assert ids(await second) == ["a", "b", "c"]
    assert table.redis.hlen(table.key("waiting")) == 0
