"""What a table remembers of the steps that were trained."""

from dataclasses import replace

import pytest
from samples import effective, ids, ineffective, same
from table_user import MakeTable, TableUser
from unchanged import unchanged

from groupreplay import (
    Batch,
    GroupSource,
    GroupState,
    InvalidRequestError,
    PayloadLostError,
    Policy,
    Sampler,
    UnknownStepError,
)


async def replay_step(table: TableUser, step: int) -> Batch:
    return await table.client.replay_step(step=step, **table.names)


async def test_a_step_can_be_asked_what_it_was_given(make_table: MakeTable) -> None:
    """Lease, holder, version, seed, and each group with its staleness, uses and probability."""
    table = await make_table(sampler=Sampler.UNIFORM)
    await table.insert(*effective("a", "b"))
    await table.train(2, step=1)
    await table.advance(1)
    await table.insert(*ineffective("x"), *effective("c", version=1))
    batch = await table.take(2, lease_id="second", holder="trainer-7")
    await table.commit(batch, 2)
    lineage = await table.client.get_lineage(step=2, **table.names)
    assert (lineage.step, lineage.lease_id, lineage.holder) == (2, "second", "trainer-7")
    assert (lineage.policy_version, lineage.batch_size, len(lineage.seed)) == (1, 2, 32)
    assert [group.group_id for group in lineage.groups] == ids(batch)
    assert [group.source for group in lineage.groups] == [GroupSource.FRESH, GroupSource.REPLAY]
    assert [group.staleness for group in lineage.groups] == [0, 1]
    assert [group.probability for group in lineage.groups] == [1.0, 0.5]
    assert lineage.undelivered_group_ids == ("x",)
    assert lineage.committed_at_ms > 0


async def test_a_kept_step_is_served_again_bit_for_bit(make_table: MakeTable) -> None:
    """Also after its groups were evicted: same order, same numbers, same bytes."""
    table = await make_table(replay_capacity=1, lineage_payload_steps=2)
    await table.insert(*effective("a", "b", task="sums"), *effective("c"))
    batch = await table.take(3)
    await table.commit(batch, 1)
    assert await table.locate("a", "b") == [GroupState.GONE, GroupState.GONE]
    again = await replay_step(table, 1)
    for one, other in zip(batch.groups, again.groups, strict=True):
        same(one.group, other.group)
        assert (one.source, one.staleness, one.times_sampled, one.probability, one.importance_weight) == (
            other.source, other.staleness, other.times_sampled, other.probability, other.importance_weight,
        )  # fmt: skip
    assert (again.lease_id, again.lease_deadline_ms, again.policy_version, again.fresh) == (
        batch.lease_id, batch.lease_deadline_ms, batch.policy_version, batch.fresh,
    )  # fmt: skip


async def test_groups_of_older_steps_are_let_go(make_table: MakeTable) -> None:
    """Beyond lineage_payload_steps ids stay known and payloads do not; the error says which setting keeps them."""
    table = await make_table(replay_capacity=1, lineage_payload_steps=1)
    for step, names in enumerate((("a", "b"), ("c", "d"), ("e", "f")), start=1):
        await table.insert(*effective(*names))
        await table.train(2, step=step)
    with pytest.raises(PayloadLostError, match=r"2 of the 2 groups of step 1 have left .*lineage_payload_steps"):
        await replay_step(table, 1)
    assert ids(await replay_step(table, 3)) == ["e", "f"]
    assert [group.group_id for group in (await table.client.get_lineage(step=1, **table.names)).groups] == ["a", "b"]


@pytest.mark.parametrize("late", [False, True])
async def test_a_step_that_is_committed_after_newer_ones_is_a_step_like_any_other(
    make_table: MakeTable, late: bool
) -> None:
    """Two trainers share a table, and one of them is behind: its groups join replay, those of the newest steps stay."""
    table = await make_table(lineage_payload_steps=1)
    await table.insert(*effective("a", "b", "c", "d"), *ineffective("x"))
    behind = await table.take(2)
    await table.train(2, step=9)
    if late:
        table.expire_leases()
    assert await table.commit(behind, step=1) is False
    assert await table.locate("a", "b", "c", "d", "x") == [GroupState.REPLAY] * 4 + [GroupState.FRESH]
    assert [group.group_id for group in (await table.client.get_lineage(step=1, **table.names)).groups] == ["a", "b"]
    assert ids(await replay_step(table, 9)) == ["c", "d"]
    assert len(await table.train(1, step=10)) == 1


async def test_steps_beyond_the_lineage_are_forgotten(make_table: MakeTable) -> None:
    """lineage_steps bounds what is remembered."""
    table = await make_table(lineage_steps=1)
    for step in (1, 2):
        await table.insert(*effective(f"g{step}"))
        await table.train(1, step=step)
    assert ids(await replay_step(table, 2)) == ["g2"]
    async with unchanged(table):
        with pytest.raises(UnknownStepError, match=r"no step 1: .*last lineage_steps 1"):
            await table.client.get_lineage(step=1, **table.names)


async def test_a_table_without_lineage_remembers_no_step(make_table: MakeTable) -> None:
    """lineage_steps=0 costs nothing."""
    table = await make_table(lineage_steps=0)
    await table.insert(*effective("a"))
    await table.train(1, step=1)
    with pytest.raises(UnknownStepError):
        await table.client.get_lineage(step=1, **table.names)
    assert not table.redis.exists(table.key("lineage"), table.key("logged"))


async def test_a_rewind_forgets_the_steps_that_are_undone(make_table: MakeTable) -> None:
    """They may be committed anew, with other groups; those before stay."""
    table = await make_table(lineage_payload_steps=5)
    for step in (1, 2):
        await table.insert(*effective(f"g{step}", version=step - 1))
        await table.train(1, step=step)
        await table.advance(step)
    await table.client.rewind_policy(Policy(run=table.run, version=1, weights_uri="w1"), step=1)
    with pytest.raises(UnknownStepError):
        await replay_step(table, 2)
    assert ids(await replay_step(table, 1)) == ["g1"]
    await table.insert(*effective("h", version=1))
    await table.train(1, step=2)
    assert ids(await replay_step(table, 2)) == ["h"]


async def test_payloads_of_steps_are_let_go_when_fewer_shall_be_kept(make_table: MakeTable) -> None:
    """UpdateTable takes effect at once, and the memory is free."""
    table = await make_table(replay_capacity=1, lineage_payload_steps=9)
    for step in range(1, 5):
        await table.insert(*effective(f"a{step}", f"b{step}"))
        await table.train(2, step=step)
    before = (await table.describe()).payload_bytes
    config = (await table.describe()).config
    await table.client.update_table(config=replace(config, lineage_payload_steps=0), **table.names)
    assert (await table.describe()).payload_bytes == before // 8
    with pytest.raises(PayloadLostError):
        await replay_step(table, 3)


async def test_a_step_out_of_range_is_refused(make_table: MakeTable) -> None:
    """Steps are not negative."""
    table = await make_table()
    with pytest.raises(InvalidRequestError, match="step -1 is not in 0 to"):
        await table.client.get_lineage(step=-1, **table.names)
