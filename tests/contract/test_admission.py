"""RequestAdmission: producers generate what is wanted, and no more."""

import asyncio
from typing import Any

import pytest
from samples import effective, ids, make_group
from table_user import MakeTable, TableUser

from groupreplay import Admission, Batch, GroupState


async def waiting_admission(table: TableUser, producer_id: str, max_groups: int) -> "asyncio.Task[Admission]":
    """Start a call that waits for admission, and return when the table has told it that there is no demand."""
    before = table.scripts_run()
    task = asyncio.create_task(table.admit(producer_id, max_groups, timeout_s=60.0))
    async with asyncio.timeout(60):
        while table.scripts_run() == before:
            await asyncio.to_thread(table.redis.ping)
    assert not task.done()
    return task


def waiting_batch(table: TableUser, batch_size: int, **options: Any) -> "asyncio.Task[Batch]":
    """Start a call that waits for a batch."""
    return asyncio.create_task(table.take(batch_size, timeout_s=60.0, **options))


async def test_without_a_limit_producers_may_fill_the_table(make_table: MakeTable) -> None:
    """The room in the table is what limits them, shared by all."""
    table = await make_table(fresh_capacity=10)
    await table.insert(*effective("a", "b"))
    assert (await table.admit("one", 5)).groups == 5
    assert (await table.admit("two", 5)).groups == 3
    assert (await table.admit("three", 5)).groups == 0


async def test_admission_names_the_policy_to_generate_with(make_table: MakeTable) -> None:
    """Producers need no second call for the weights."""
    table = await make_table()
    published = await table.advance(3)
    assert (await table.admit("one", 1)).policy == published


async def test_ahead_groups_bounds_what_is_fresh_or_promised(make_table: MakeTable) -> None:
    """Inserting uses an admission up, and does not make room for more."""
    table = await make_table(ahead_groups=4)
    assert (await table.admit("one", 3)).groups == 3
    assert (await table.admit("two", 3)).groups == 1
    await table.insert(make_group("a", producer_id="one"), make_group("b", producer_id="two"))
    assert (await table.admit("three", 3)).groups == 0
    await table.train(1, step=1)
    assert (await table.admit("three", 3)).groups == 1


async def test_with_no_groups_ahead_producers_generate_what_a_waiting_batch_misses(make_table: MakeTable) -> None:
    """On-policy to the group: nothing is generated before a trainer waits."""
    table = await make_table(ahead_groups=0)
    assert (await table.admit("one", 8)).groups == 0
    await table.insert(*effective("a"))
    producer = await waiting_admission(table, "one", 8)
    trainer = waiting_batch(table, 4)
    assert (await producer).groups == 3
    await table.insert(*effective("b", "c", "d", producer_id="one"))
    assert ids(await trainer) == ["a", "b", "c", "d"]
    assert (await table.admit("one", 8)).groups == 0


async def test_several_producers_share_the_demand_of_several_trainers(make_table: MakeTable) -> None:
    """Together they may generate what all waiting batches miss."""
    table = await make_table(ahead_groups=0)
    trainers = [waiting_batch(table, 3), waiting_batch(table, 4)]
    await table.until(missing=7)
    granted = [(await table.admit(f"producer-{number}", 3)).groups for number in range(4)]
    assert granted == [3, 3, 1, 0]
    await table.insert(*effective(*(f"g{number}" for number in range(7))))
    await asyncio.gather(*trainers)


async def test_under_resample_ineffective_groups_do_not_meet_the_demand(make_table: MakeTable) -> None:
    """Producers go on until enough groups are effective."""
    table = await make_table(ahead_groups=0, fill="resample")
    trainer = waiting_batch(table, 2)
    await table.until(missing=2)
    assert (await table.admit("one", 8)).groups == 2
    await table.insert(make_group("x", rewards=(1, 1), producer_id="one"), make_group("a", producer_id="one"))
    assert (await table.admit("one", 8)).groups == 1
    await table.insert(make_group("b", producer_id="one"))
    assert ids(await trainer) == ["a", "b"]


async def test_a_producer_that_asks_again_gives_its_earlier_admission_up(make_table: MakeTable) -> None:
    """A producer that restarts does not block the others with what it will never insert."""
    table = await make_table(ahead_groups=4)
    assert (await table.admit("one", 4)).groups == 4
    assert (await table.admit("one", 3)).groups == 3
    assert (await table.admit("two", 4)).groups == 1


async def test_a_producer_that_asks_for_less_wakes_the_one_that_waits(make_table: MakeTable) -> None:
    """What one gives up, another gets at once."""
    table = await make_table(ahead_groups=4)
    await table.admit("one", 4)
    waiting = await waiting_admission(table, "two", 4)
    await table.admit("one", 1)
    assert (await waiting).groups == 3


async def test_the_admission_of_a_producer_that_died_ends(make_table: MakeTable) -> None:
    """A producer that waits gets it when its time is over, by itself."""
    table = await make_table(ahead_groups=2)
    assert (await table.admit("dead", 2, admission_s=1.0)).groups == 2
    assert (await table.admit("alive", 2)).groups == 0
    assert (await table.admit("alive", 2, timeout_s=30.0)).groups == 2


async def test_a_group_without_a_producer_uses_nobodys_admission(make_table: MakeTable) -> None:
    """Groups from elsewhere count as fresh groups only."""
    table = await make_table(ahead_groups=4)
    await table.admit("one", 2)
    await table.insert(*effective("a"))
    assert (await table.admit("two", 4)).groups == 1


async def test_a_duplicate_uses_no_admission(make_table: MakeTable) -> None:
    """A retried insert counts once."""
    table = await make_table(ahead_groups=4)
    await table.admit("one", 3)
    await table.insert(*effective("a", "a", producer_id="one"))
    assert (await table.admit("two", 4)).groups == 1


async def test_taking_a_batch_wakes_producers(make_table: MakeTable) -> None:
    """Room in the table is demand."""
    table = await make_table(ahead_groups=2)
    await table.insert(*effective("a", "b"))
    waiting = await waiting_admission(table, "one", 8)
    await table.train(2, step=1)
    assert (await waiting).groups == 2


async def test_dropping_stale_groups_wakes_producers(make_table: MakeTable) -> None:
    """New weights make the groups of a waiting batch stale: it looks at once, and needs new ones."""
    table = await make_table(ahead_groups=0, max_staleness=0)
    await table.insert(*effective("old-1", "old-2", "old-3"))
    trainer = waiting_batch(table, 4)
    await table.until(missing=1)
    assert (await table.admit("one", 4)).groups == 1
    producer = await waiting_admission(table, "two", 4)
    await table.advance(1)
    assert (await producer).groups == 3
    await table.insert(*effective("a", version=1, producer_id="one"))
    await table.insert(*effective("b", "c", "d", version=1, producer_id="two"))
    assert ids(await trainer) == ["a", "b", "c", "d"]
    assert await table.locate("old-1") == [GroupState.GONE]


async def test_a_late_commit_wakes_producers(make_table: MakeTable) -> None:
    """Groups that had come back and leave with a late commit make room."""
    table = await make_table(ahead_groups=2, fill="none")
    await table.insert(*effective("a", "b"))
    batch = await table.take(2)
    table.expire_leases()
    await table.until(fresh=2)
    waiting = await waiting_admission(table, "one", 8)
    await table.commit(batch, step=1)
    assert (await waiting).groups == 2


async def test_admission_without_demand_ends_with_no_groups(make_table: MakeTable) -> None:
    """After timeout_s the answer is 0, no error: ask again."""
    table = await make_table(ahead_groups=0)
    assert (await table.admit("one", 8, timeout_s=0.05)).groups == 0


@pytest.mark.parametrize("max_groups", [1, 65536])
async def test_admission_is_at_most_what_was_asked_for(make_table: MakeTable, max_groups: int) -> None:
    """The range of max_groups ends at 65536."""
    table = await make_table(fresh_capacity=100_000)
    assert (await table.admit("one", max_groups)).groups == max_groups
