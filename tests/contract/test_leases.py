"""Commit, release, expiry: a training step is a transaction."""

import pytest
from samples import effective, ids, ineffective
from table_user import MakeTable

from groupreplay import GroupState, LeaseExpiredError, StepConflictError, UnknownLeaseError
from groupreplay.groups import now_ms


async def test_commit_of_the_same_step_twice_is_one_commit(make_table: MakeTable) -> None:
    """A trainer that does not know whether its commit came through repeats it."""
    table = await make_table()
    await table.insert(*effective("a"))
    batch = await table.take(1)
    assert [await table.commit(batch, step=7), await table.commit(batch, step=7)] == [False, True]
    state = await table.describe()
    assert (state.replay, state.leased, state.leases, state.counters["leases_committed"]) == (1, 0, 0, 1)


async def test_a_lease_is_committed_with_one_step_only(make_table: MakeTable) -> None:
    """One batch cannot be two steps."""
    table = await make_table()
    await table.insert(*effective("a"))
    batch = await table.take(1)
    await table.commit(batch, step=1)
    with pytest.raises(StepConflictError, match=rf"{batch.lease_id}.*committed with step 1, not 2"):
        await table.commit(batch, step=2)


async def test_a_step_is_committed_with_one_lease_only(make_table: MakeTable) -> None:
    """Two trainers on one table, or one resumed from an old checkpoint, find out at the commit."""
    table = await make_table()
    await table.insert(*effective("a", "b"))
    first, second = await table.take(1), await table.take(1)
    await table.commit(first, step=1)
    with pytest.raises(StepConflictError, match=rf"step 1 .* with lease {first.lease_id}, not {second.lease_id}"):
        await table.commit(second, step=1)
    assert (await table.describe()).leased == 1
    assert await table.commit(second, step=2) is False


@pytest.mark.parametrize("step", [0, 2**53 - 1])
async def test_a_step_may_be_any_counting_number(make_table: MakeTable, step: int) -> None:
    """The ends of the range are exact."""
    table = await make_table()
    await table.insert(*effective("a", "b"))
    first, second = await table.take(1), await table.take(1)
    await table.commit(first, step=step)
    with pytest.raises(StepConflictError, match=f"step {step} "):
        await table.commit(second, step=step)


async def test_released_groups_go_back_to_their_place(make_table: MakeTable) -> None:
    """The next batch is the one that was released, and says that its groups come again."""
    table = await make_table()
    await table.insert(*effective("a"), *ineffective("x"), *effective("b", "c"))
    batch = await table.take(3)
    assert await table.release(batch) == 3
    assert await table.release(batch) == 0
    state = await table.describe()
    assert (state.fresh, state.fresh_effective, state.leased, state.leases) == (4, 3, 0, 0)
    again = await table.take(4)
    assert ids(again) == ["a", "b", "c"]
    assert [delivered.redeliveries for delivered in again.groups] == [1, 1, 0]
    assert [delivered.times_sampled for delivered in again.groups] == [1, 1, 1]
    assert (await table.counters())["redelivered"] == 2


async def test_released_replay_groups_get_their_use_back(make_table: MakeTable) -> None:
    """A delivery that came to nothing does not count."""
    table = await make_table()
    await table.insert(*effective("a"))
    await table.train(1, step=1)
    await table.insert(*ineffective("x"))
    first = await table.take(1)
    await table.release(first)
    second = await table.take(1)
    assert [first.groups[0].times_sampled, second.groups[0].times_sampled] == [2, 2]


async def test_the_groups_of_an_expired_lease_come_again_at_their_place(make_table: MakeTable) -> None:
    """A trainer that dies costs its lease time, and no group."""
    table = await make_table()
    await table.insert(*effective("a", "b", "c"))
    await table.take(2)
    table.expire_leases()
    again = await table.take(3)
    assert ids(again) == ["a", "b", "c"]
    assert [delivered.redeliveries for delivered in again.groups] == [1, 1, 0]
    assert (await table.counters())["leases_expired"] == 1


async def test_a_lease_ends_by_itself_after_its_time(make_table: MakeTable) -> None:
    """A waiting trainer gets the groups of a dead one when their lease ends, without anybody's help."""
    table = await make_table()
    await table.insert(*effective("a"))
    lost = await table.take(1, lease_s=1.0)
    again = await table.take(1, timeout_s=20.0)
    assert ids(again) == ["a"]
    assert now_ms() >= lost.lease_deadline_ms
    with pytest.raises(LeaseExpiredError, match="1 of its 1 fresh groups were taken again"):
        await table.commit(lost, step=1)


async def test_a_late_commit_is_honoured_while_nobody_took_its_groups(make_table: MakeTable) -> None:
    """A step that took longer than its lease is not lost for nothing."""
    table = await make_table()
    await table.insert(*effective("old"))
    await table.train(1, step=1)
    await table.insert(*effective("a"), *ineffective("x"))
    batch = await table.take(2)
    assert ids(batch) == ["a", "old"]
    table.expire_leases()
    assert (await table.describe()).fresh == 2
    assert await table.commit(batch, step=2) is False
    state = await table.describe()
    assert (state.fresh, state.fresh_effective, state.replay, state.leased) == (0, 0, 2, 0)
    await table.insert(*ineffective("p", "q"))
    again = await table.take(2)
    assert {delivered.group.group_id: delivered.times_sampled for delivered in again.groups} == {"a": 2, "old": 3}


async def test_a_commit_at_the_deadline_is_honoured_before_anybody_noticed(make_table: MakeTable) -> None:
    """The deadline alone changes nothing; somebody else's batch does."""
    table = await make_table()
    await table.insert(*effective("a"))
    batch = await table.take(1)
    table.expire_leases()
    assert await table.commit(batch, step=1) is False
    assert await table.locate("a") == [GroupState.REPLAY]


async def test_a_late_commit_is_refused_once_a_group_was_taken_again(make_table: MakeTable) -> None:
    """No group is trained on twice as fresh; the message says what to do."""
    table = await make_table()
    await table.insert(*effective("a", "b"))
    late = await table.take(2)
    table.expire_leases()
    other = await table.take(1)
    with pytest.raises(LeaseExpiredError, match=r"1 of its 2 fresh groups.*discard this update.*lease_s"):
        await table.commit(late, step=1)
    await table.release(other)
    assert await table.commit(late, step=1) is False


async def test_a_released_lease_cannot_be_committed(make_table: MakeTable) -> None:
    """Who gives a batch back cannot have trained on it."""
    table = await make_table()
    await table.insert(*effective("a"))
    batch = await table.take(1)
    await table.release(batch)
    with pytest.raises(LeaseExpiredError, match="was released"):
        await table.commit(batch, step=1)
    assert await table.locate("a") == [GroupState.FRESH]


async def test_a_committed_lease_cannot_be_released_extended_or_taken_again(make_table: MakeTable) -> None:
    """What is trained is trained."""
    table = await make_table()
    await table.insert(*effective("a", "b"))
    batch = await table.take(1)
    await table.commit(batch, step=3)
    with pytest.raises(StepConflictError, match="committed with step 3; its groups cannot go back"):
        await table.release(batch)
    with pytest.raises(StepConflictError, match="committed with step 3"):
        await table.client.extend_lease(lease_id=batch.lease_id, lease_s=60.0, **table.names)
    with pytest.raises(StepConflictError, match="committed with step 3; take the next batch with a new lease id"):
        await table.take(1, lease_id=batch.lease_id)


async def test_an_unknown_lease_is_named(make_table: MakeTable) -> None:
    """A typing error in a lease id is not silently a success."""
    table = await make_table()
    for call in (
        table.client.commit(lease_id="typo", step=1, **table.names),
        table.client.release(lease_id="typo", **table.names),
        table.client.extend_lease(lease_id="typo", lease_s=60.0, **table.names),
    ):
        with pytest.raises(UnknownLeaseError, match=r"train never gave a lease typo"):
            await call


async def test_an_extended_lease_lives_on(make_table: MakeTable) -> None:
    """Extending counts from now, and returns the new deadline."""
    table = await make_table()
    await table.insert(*effective("a"))
    batch = await table.take(1, lease_s=30.0)
    before_ms = now_ms()
    deadline_ms = await table.client.extend_lease(lease_id=batch.lease_id, lease_s=3600.0, **table.names)
    assert 3_600_000 <= deadline_ms - before_ms < 3_700_000
    again = await table.take(1, lease_id=batch.lease_id)
    assert again.lease_deadline_ms == deadline_ms


async def test_a_lease_that_ended_cannot_be_extended(make_table: MakeTable) -> None:
    """Too late is said, not ignored."""
    table = await make_table()
    await table.insert(*effective("a"))
    batch = await table.take(1)
    table.expire_leases()
    with pytest.raises(LeaseExpiredError, match=r"was expired, its groups went back; take a new batch, and extend"):
        await table.client.extend_lease(lease_id=batch.lease_id, lease_s=60.0, **table.names)
    assert await table.locate("a") == [GroupState.FRESH]


async def test_the_same_lease_id_returns_the_same_batch(make_table: MakeTable) -> None:
    """A trainer that lost the answer, or restarted, fetches its batch again; nothing is taken twice."""
    table = await make_table()
    await table.insert(*effective("old"))
    await table.train(1, step=1)
    await table.insert(*effective("a"), *ineffective("x"), *effective("b"))
    first = await table.take(2, lease_id="mine")
    again = await table.take(2, lease_id="mine")
    assert ids(first) == ids(again) == ["a", "old"]
    for one, other in zip(first.groups, again.groups, strict=True):
        for name in ("source", "staleness", "times_sampled", "redeliveries"):
            assert getattr(one, name) == getattr(other, name)
    assert (first.fresh, first.fresh_effective, first.shortfall) == (again.fresh, again.fresh_effective, 0)
    assert (await table.counters())["batches"] == 2


async def test_a_lease_id_can_be_used_again_after_its_end(make_table: MakeTable) -> None:
    """After expiry the id names the next batch, whose commit counts."""
    table = await make_table()
    await table.insert(*effective("a", "b"))
    await table.take(1, lease_id="mine")
    table.expire_leases()
    batch = await table.take(2, lease_id="mine")
    assert ids(batch) == ["a", "b"]
    assert await table.commit(batch, step=1) is False
