"""RewindPolicy and labels: a trainer that restarts from an older checkpoint, and engines with names for weights."""

import asyncio

import pytest
from samples import effective, ids, make_group
from table_user import MakeTable
from unchanged import unchanged

from groupreplay import (
    FuturePolicyVersionError,
    GroupState,
    LeaseExpiredError,
    Policy,
    PolicyVersionConflictError,
    UnknownLeaseError,
    UnknownRunError,
)


async def test_a_rewind_removes_what_undone_policies_made(make_table: MakeTable) -> None:
    """Groups of later versions leave fresh and replay; older ones stay, and new ones of the old version are taken."""
    table = await make_table()
    await table.insert(*effective("old"))
    await table.train(1, step=1)
    await table.advance(2)
    await table.insert(*effective("undone", version=2), make_group("mixed", policy_version_max=2))
    policy = await table.rewind(1, step=1)
    assert (policy.version, policy.rewinds, policy.weights_uri) == (1, 1, "back-to-1")
    assert await table.locate("old", "undone", "mixed") == [GroupState.REPLAY, GroupState.GONE, GroupState.GONE]
    assert (await table.counters())["gone_rewound"] == 2
    with pytest.raises(FuturePolicyVersionError):
        await table.insert(*effective("late", version=2))
    await table.insert(*effective("new", version=1))


async def test_a_table_that_nobody_looked_at_follows_a_rewind_after_the_clock_went_on(make_table: MakeTable) -> None:
    """Version 2 of after the rewind is another one than version 2 of before."""
    table, other = await make_table("train"), await make_table("other")
    await table.advance(2)
    await other.insert(*effective("undone", version=2), *effective("kept", version=1))
    await table.rewind(1, step=0)
    await table.client.advance_policy(Policy(run=table.run, version=2, weights_uri="anew"))
    assert await other.locate("undone", "kept") == [GroupState.GONE, GroupState.FRESH]


async def test_steps_after_the_checkpoint_may_be_committed_anew(make_table: MakeTable) -> None:
    """Steps up to it stay committed; leases that lived end."""
    table = await make_table()
    await table.insert(*effective("a", "b", "c", "d"))
    first, second, third = [await table.take(1, lease_id=f"lease-{step}") for step in (1, 2, 3)]
    await table.commit(first, step=1)
    await table.commit(second, step=2)
    await table.rewind(0, step=1)
    assert await table.commit(first, step=1) is True
    with pytest.raises(UnknownLeaseError):
        await table.commit(second, step=2)
    with pytest.raises(LeaseExpiredError, match="was released, its groups went back"):
        await table.commit(third, step=3)
    again = await table.take(1, lease_id="lease-2")
    assert ids(again) == ["c"]
    assert await table.commit(again, step=2) is False


async def test_the_same_rewind_again_changes_nothing(make_table: MakeTable) -> None:
    """A retry after a lost answer does not undo what came after."""
    table = await make_table()
    await table.advance(3)
    first = await table.rewind(1, step=1, rewind_id="mine")
    await table.insert(*effective("a", version=1))
    async with unchanged(table):
        assert await table.rewind(1, step=1, rewind_id="mine") == first


async def test_a_rewind_goes_back_only(make_table: MakeTable) -> None:
    """Forward is AdvancePolicy's; an unknown run is said to be one."""
    table = await make_table()
    await table.advance(1)
    async with unchanged(table):
        with pytest.raises(PolicyVersionConflictError, match=r"stands at policy version 1, it cannot go back to 2"):
            await table.rewind(2, step=1)
    with pytest.raises(UnknownRunError, match="no run nobody"):
        await table.client.rewind_policy(Policy(run="nobody", version=0), step=0)


async def test_watchers_see_the_clock_go_back(make_table: MakeTable) -> None:
    """Generators reload the older weights; (rewinds, version) grows all the same."""
    table = await make_table()
    await table.advance(2)
    watch = table.client.watch_policy(run=table.run)
    assert (await anext(watch)).version == 2
    following = asyncio.ensure_future(anext(watch))
    rewound = await table.rewind(1, step=1)
    assert await following == rewound


async def test_labels_name_versions(make_table: MakeTable) -> None:
    """An engine that reports what it calls its weights gets the version; digits are the default."""
    table = await make_table()
    await table.client.advance_policy(Policy(run=table.run, version=1, label="sha-1"))
    await table.advance(2)
    resolved = [await table.client.resolve_policy(run=table.run, label=label) for label in ("sha-1", "2")]
    assert resolved == [1, 2]
    with pytest.raises(FuturePolicyVersionError, match=r"no policy labelled 'sha-9'; its clock stands at version 2"):
        await table.client.resolve_policy(run=table.run, label="sha-9")
    async with unchanged(table):
        with pytest.raises(PolicyVersionConflictError, match="label 'sha-1' already names policy version 1, not 3"):
            await table.client.advance_policy(Policy(run=table.run, version=3, label="sha-1"))
    await table.rewind(1, step=0)
    with pytest.raises(FuturePolicyVersionError):
        await table.client.resolve_policy(run=table.run, label="2")
