"""What a batch consists of, by the table's fill rule."""

import pytest
from samples import effective, ids, ineffective, make_group
from table_user import MakeTable

from groupreplay import Batch, BatchNotReadyError, GroupSource, GroupState

FRESH, REPLAY = GroupSource.FRESH, GroupSource.REPLAY


def composition(batch: Batch) -> dict[str, int]:
    """Return the numbers of a batch."""
    names = ("batch_size", "fresh", "fresh_effective", "refilled", "shortfall")
    return {name: getattr(batch, name) for name in names}


async def test_replay_refills_the_slots_of_ineffective_groups(make_table: MakeTable) -> None:
    """POPO: effective fresh groups in order of arrival, then the most recent replay groups."""
    table = await make_table()
    await table.insert(*effective("a", "b", "c"))
    await table.train(3, step=1)
    await table.insert(*ineffective("x"), *effective("d"), *ineffective("y"))
    batch = await table.take(3)
    assert ids(batch) == ["d", "c", "b"]
    assert [delivered.source for delivered in batch.groups] == [FRESH, REPLAY, REPLAY]
    assert [delivered.times_sampled for delivered in batch.groups] == [1, 2, 2]
    assert [delivered.probability for delivered in batch.groups] == [1.0, 1.0, 1.0]
    assert [delivered.on_policy for delivered in batch.groups] == [True, False, False]
    assert composition(batch) == {"batch_size": 3, "fresh": 3, "fresh_effective": 1, "refilled": 2, "shortfall": 0}
    state = await table.describe()
    assert (state.fresh, state.fresh_effective, state.leased, state.replay, state.leases) == (0, 0, 3, 3, 1)


async def test_a_committed_batch_moves_its_effective_groups_to_replay(make_table: MakeTable) -> None:
    """After training, effective groups can be used again, and ineffective ones leave."""
    table = await make_table()
    await table.insert(*effective("a"), *ineffective("x"))
    assert await table.train(2, step=1) == ["a"]
    assert await table.locate("a", "x") == [GroupState.REPLAY, GroupState.GONE]
    assert await table.counters() == {
        "inserted": 2, "inserted_effective": 1, "inserted_ineffective": 1, "batches": 1, "consumed": 2,
        "delivered_fresh": 1, "shortfall": 1, "leases_committed": 1, "gone_ineffective": 1,
    }  # fmt: skip


async def test_replay_never_holds_the_groups_of_its_own_step(make_table: MakeTable) -> None:
    """A batch is short rather than twice the same group."""
    table = await make_table()
    await table.insert(*effective("a"), *ineffective("x", "y"))
    batch = await table.take(3)
    assert ids(batch) == ["a"]
    assert composition(batch) == {"batch_size": 3, "fresh": 3, "fresh_effective": 1, "refilled": 0, "shortfall": 2}


async def test_replay_adds_nothing_to_a_batch_of_effective_groups(make_table: MakeTable) -> None:
    """Where every fresh group is effective, the batch is on-policy."""
    table = await make_table()
    await table.insert(*effective("a", "b"))
    await table.train(2, step=1)
    await table.insert(*effective("c", "d"))
    batch = await table.take(2)
    assert ids(batch) == ["c", "d"]
    assert composition(batch) == {"batch_size": 2, "fresh": 2, "fresh_effective": 2, "refilled": 0, "shortfall": 0}


async def test_none_leaves_the_slots_of_ineffective_groups_empty(make_table: MakeTable) -> None:
    """GRPO-filter: the batch is shorter, and no group is used again."""
    table = await make_table(fill="none")
    await table.insert(*effective("a"), *ineffective("x"), *effective("b"))
    batch = await table.take(3)
    assert ids(batch) == ["a", "b"]
    assert composition(batch) == {"batch_size": 3, "fresh": 3, "fresh_effective": 2, "refilled": 0, "shortfall": 1}
    await table.commit(batch, step=1)
    assert await table.locate("a", "b", "x") == [GroupState.GONE] * 3
    counters = await table.counters()
    assert (counters["gone_trained"], counters["gone_ineffective"]) == (2, 1)
    assert (await table.describe()).payload_bytes == 0


async def test_resample_takes_fresh_groups_until_enough_are_effective(make_table: MakeTable) -> None:
    """DAPO: ineffective groups on the way are consumed; effective ones beyond the batch stay."""
    table = await make_table(fill="resample")
    await table.insert(*ineffective("x"), *effective("a"), *ineffective("y"), *effective("b", "c"))
    batch = await table.take(2)
    assert ids(batch) == ["a", "b"]
    assert composition(batch) == {"batch_size": 2, "fresh": 4, "fresh_effective": 2, "refilled": 0, "shortfall": 0}
    assert await table.locate("x", "y", "c") == [GroupState.LEASED, GroupState.LEASED, GroupState.FRESH]
    await table.commit(batch, step=1)
    assert await table.locate("a", "x") == [GroupState.GONE, GroupState.GONE]


async def test_resample_waits_for_effective_groups_only(make_table: MakeTable) -> None:
    """Any number of ineffective groups makes no batch."""
    table = await make_table(fill="resample")
    await table.insert(*ineffective(*(f"x{number}" for number in range(9))), *effective("a"))
    with pytest.raises(BatchNotReadyError, match="1 of the 2 effective fresh groups"):
        await table.take(2)
    assert (await table.describe()).fresh == 10


async def test_keep_hands_out_every_group_as_it_came(make_table: MakeTable) -> None:
    """GRPO: ineffective groups are in the batch, with their payload."""
    table = await make_table(fill="keep")
    groups = [*ineffective("x"), *effective("a"), *ineffective("y")]
    await table.insert(*groups)
    batch = await table.take(3)
    assert ids(batch) == ["x", "a", "y"]
    assert composition(batch) == {"batch_size": 3, "fresh": 3, "fresh_effective": 1, "refilled": 0, "shortfall": 0}
    assert [len(delivered.group.response_token_ids) for delivered in batch.groups] == [6, 6, 6]
    await table.commit(batch, step=1)
    assert await table.locate("x", "a", "y") == [GroupState.GONE] * 3


@pytest.mark.parametrize("fill", ["replay", "none", "keep"])
async def test_a_batch_needs_as_many_fresh_groups_as_it_has_slots(make_table: MakeTable, fill: str) -> None:
    """Without a whole rollout batch there is no training batch, however full replay is."""
    table = await make_table(fill=fill)
    await table.insert(*effective("a", "b"))
    await table.train(2, step=1)
    await table.insert(*effective("c"))
    with pytest.raises(BatchNotReadyError, match="1 of the 2 fresh groups"):
        await table.take(2)


async def test_batches_take_fresh_groups_in_order_of_arrival(make_table: MakeTable) -> None:
    """No fresh group overtakes another."""
    table = await make_table(fill="keep")
    await table.insert(*effective("c", "a", "e", "b", "d"))
    assert [await table.train(2, step=1), await table.train(2, step=2)] == [["c", "a"], ["e", "b"]]
    assert (await table.describe()).fresh == 1


@pytest.mark.parametrize("fill", ["replay", "none", "resample", "keep"])
async def test_a_batch_holds_one_group_of_a_prompt(make_table: MakeTable, fill: str) -> None:
    """The second group of a prompt keeps its place for the next batch."""
    table = await make_table(fill=fill)
    await table.insert(make_group("a1", prompt_id="a"), make_group("a2", prompt_id="a"), make_group("b"))
    assert await table.train(2, step=1) == ["a1", "b"]
    await table.insert(make_group("c"))
    assert await table.train(2, step=2) == ["a2", "c"]


async def test_groups_of_one_prompt_alone_never_make_a_batch_of_two(make_table: MakeTable) -> None:
    """What is missing counts the groups that were passed over."""
    table = await make_table()
    await table.insert(make_group("a1", prompt_id="a"), make_group("a2", prompt_id="a"))
    with pytest.raises(BatchNotReadyError, match="2 of the 3 fresh groups that a batch of 2 needs"):
        await table.take(2)


@pytest.mark.parametrize("fill", ["replay", "none", "resample", "keep"])
async def test_a_table_that_allows_repeated_prompts_takes_them_in_order(make_table: MakeTable, fill: str) -> None:
    """With allow_repeated_prompts the prompt does not matter."""
    table = await make_table(fill=fill, allow_repeated_prompts=True)
    await table.insert(make_group("a1", prompt_id="a"), make_group("a2", prompt_id="a"), make_group("b"))
    assert ids(await table.take(2)) == ["a1", "a2"]


async def test_replay_refills_with_one_group_of_a_prompt(make_table: MakeTable) -> None:
    """The prompts of the fresh part and of the replay part differ, too."""
    table = await make_table(allow_repeated_prompts=False)
    for step, name in enumerate(["a1", "b1", "a2", "b2"], start=1):
        await table.insert(make_group(name, prompt_id=name[0]))
        await table.train(1, step=step)
    await table.insert(make_group("b3", prompt_id="b"), *ineffective("x", "y"))
    assert ids(await table.take(3)) == ["b3", "a2"]


async def test_an_ineffective_group_may_be_refilled_by_its_own_prompt(make_table: MakeTable) -> None:
    """The prompt that gave no gradient now may have given one before."""
    table = await make_table()
    await table.insert(make_group("a1", prompt_id="a"))
    await table.train(1, step=1)
    await table.insert(*ineffective("a2", prompt_id="a"))
    assert ids(await table.take(1)) == ["a1"]


async def test_a_batch_of_thousands_comes_whole_and_in_order(make_table: MakeTable) -> None:
    """Many small groups, whose headers outweigh their payloads, arrive complete."""
    table = await make_table(fill="keep")
    names = [f"g{number:04}" for number in range(3000)]
    tags = {"note": "n" * 1500}
    await table.insert_many(effective(*names, tags=tags))
    assert ids(await table.take(3000)) == names
