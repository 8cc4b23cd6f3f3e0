"""Limits of tables and runs: bytes, time, staleness, quotas; and changing, emptying and reading tables."""

import asyncio
from collections.abc import Sequence
from typing import cast

import pytest
from samples import effective, ids, ineffective, make_group, same
from table_user import MakeTable, TableUser
from unchanged import unchanged

from groupreplay import (
    GroupState,
    InvalidRequestError,
    QuotaExceededError,
    StalePolicyVersionError,
    TableFullError,
)


async def group_bytes(make_table: MakeTable) -> int:
    """Return the payload size of a small group."""
    table = await make_table("scale")
    await table.insert(*effective("a"))
    return (await table.describe()).payload_bytes


def age(table: TableUser, seconds: float) -> None:
    """Let the groups of a table have come earlier, as time would."""
    for member in cast(Sequence[bytes], table.redis.zrange(table.key("born"), 0, -1)):
        table.redis.zincrby(table.key("born"), -1000 * seconds, member)


async def test_capacity_bytes_evicts_replay_and_refuses_when_none_is_left(make_table: MakeTable) -> None:
    """Fresh groups cannot leave, so that is when an insert is refused."""
    size = await group_bytes(make_table)
    table = await make_table(capacity_bytes=2 * size)
    await table.insert(*effective("a"))
    await table.train(1, step=1)
    await table.insert(*effective("b", "c"))
    assert await table.locate("a", "b", "c") == [GroupState.GONE, GroupState.FRESH, GroupState.FRESH]
    with pytest.raises(TableFullError, match=r"bytes do not fit beside the groups of table .* capacity_bytes is"):
        await table.client.insert(make_group("d"), **table.names, timeout_s=3.0)
    assert (await table.describe()).payload_bytes == 2 * size


async def test_lowering_capacity_bytes_takes_effect_at_once(make_table: MakeTable) -> None:
    """Replay groups leave by the remover's order, down to the new limit."""
    size = await group_bytes(make_table)
    table = await make_table(fill="sample")
    await table.insert(*effective("a", "b", "c"))
    assert (await table.update(capacity_bytes=2 * size)).replay == 2
    assert await table.locate("a") == [GroupState.GONE]


async def test_groups_leave_when_their_time_is_over(make_table: MakeTable) -> None:
    """ttl_s counts from the insert, for fresh and replay groups."""
    table = await make_table(ttl_s=1000.0)
    await table.insert(*effective("a"))
    await table.train(1, step=1)
    await table.insert(*effective("b"))
    age(table, 1001.0)
    assert await table.locate("a", "b") == [GroupState.GONE, GroupState.GONE]
    assert (await table.counters())["gone_expired"] == 2


async def test_a_ttl_that_is_set_later_counts_from_the_insert_too(make_table: MakeTable) -> None:
    """And taking it away lets groups stay."""
    table = await make_table(ttl_s=1000.0)
    await table.insert(*effective("a"))
    await table.update(ttl_s=None)
    assert table.redis.exists(table.key("born")) == 0
    await table.update(ttl_s=500.0)
    assert table.redis.zcard(table.key("born")) == 1


async def test_withheld_groups_stay_and_are_not_delivered(make_table: MakeTable) -> None:
    """staleness_rule withhold: neither refused nor dropped."""
    table = await make_table(max_staleness=1, staleness_rule="withhold")
    await table.insert(*effective("old"))
    await table.advance(2)
    await table.insert(*effective("late"), *effective("new", version=2))
    assert ids(await table.take(1)) == ["new"]
    assert await table.locate("old", "late") == [GroupState.FRESH, GroupState.FRESH]
    await table.update(max_staleness=None)
    assert ids(await table.take(2)) == ["old", "late"]


async def test_a_batch_waits_for_admitted_groups_that_the_next_version_would_be_too_late_for(
    make_table: MakeTable,
) -> None:
    """staleness_rule wait: slow prompts are trained on rather than thrown away."""
    table = await make_table(max_staleness=0, staleness_rule="wait")
    assert (await table.admit("slow", 1)).groups == 1
    await table.insert(*effective("a", "b"))
    batch = asyncio.create_task(table.take(2, timeout_s=60.0))
    await table.until(missing=0, fresh=2)
    await table.insert(make_group("c", producer_id="slow"))
    assert ids(await batch) == ["a", "b"]
    await table.advance(1)
    with pytest.raises(StalePolicyVersionError):
        await table.insert(*effective("too-late"))


async def test_groups_per_version_paces_producers_by_the_policy_clock(make_table: MakeTable) -> None:
    """AReaL's rule: (max_staleness + version + 1) times this in all; a new version wakes whoever waits."""
    table = await make_table(max_staleness=1, groups_per_version=2)
    assert (await table.admit("p", 10)).groups == 4
    await table.insert(*effective("a", "b", "c", "d", producer_id="p"))
    waiting = asyncio.create_task(table.admit("p", 10, timeout_s=60.0))
    await table.until(fresh=4)
    await table.advance(1)
    assert (await waiting).groups == 2


async def test_a_quota_counts_all_tables_of_a_run(make_table: MakeTable) -> None:
    """And no other run's; what is held stays, and room comes back when groups leave."""
    one, two = await make_table("one"), await make_table("two")
    await one.insert(*effective("a"))
    quota = await one.client.set_quota(run=one.run, max_groups=2)
    assert (quota.max_groups, quota.max_bytes, quota.groups) == (2, None, 1)
    await two.insert(*effective("b"))
    with pytest.raises(QuotaExceededError, match=r"exceed the quota of run run-.* \(max_groups 2, max_bytes unlimited"):
        await two.client.insert(make_group("c"), **two.names, timeout_s=3.0)
    await one.client.reset_table(**one.names)
    await two.insert(*effective("c"))
    held = await one.client.get_quota(run=one.run)
    assert (held.groups, held.bytes) == (2, (await two.describe()).payload_bytes)
    await one.client.set_quota(run=one.run, max_bytes=held.bytes)
    with pytest.raises(QuotaExceededError):
        await one.client.insert(make_group("d"), **one.names, timeout_s=3.0)
    await one.client.set_quota(run=one.run)
    await one.insert(*effective("d"))


async def test_a_table_that_lowers_its_uses_lets_used_groups_leave_when_met(make_table: MakeTable) -> None:
    """A limit that changes holds for what is there."""
    table = await make_table(fill="sample", sampler="fifo")
    await table.insert(*effective("a", "b"))
    await table.commit(await table.sample(1), step=1)
    await table.update(max_times_sampled=1)
    assert ids(await table.sample(2)) == ["b"]
    assert await table.locate("a") == [GroupState.GONE]
    assert (await table.counters())["gone_exhausted"] == 1


@pytest.mark.parametrize(
    "change", [{"fill": "none"}, {"sampler": "fifo"}, {"remover": "lifo"}, {"alpha": 2.0}, {"min_reward_std": 0.5}]
)
async def test_what_decides_over_order_and_weight_cannot_change(
    make_table: MakeTable, change: dict[str, object]
) -> None:
    """The message has the field, and both values; nothing changes."""
    table = await make_table()
    await table.insert(*effective("a"))
    [name] = change
    async with unchanged(table):
        with pytest.raises(InvalidRequestError, match=rf"^{name} of table run-.*/train is .* and cannot become"):
            await table.update(**change)


async def test_a_reset_table_is_empty_and_goes_on(make_table: MakeTable) -> None:
    """Groups leave, leases end, counts and configuration stay; the ids are remembered."""
    table = await make_table()
    await table.insert(*effective("a", "b", "c"))
    await table.train(1, step=1)
    await table.take(1)
    assert await table.client.reset_table(**table.names) == 3
    state = await table.describe()
    assert (state.fresh, state.replay, state.leased, state.leases) == (0, 0, 0, 0)
    assert (state.counters["inserted"], state.counters["gone_reset"]) == (3, 3)
    assert await table.insert(make_group("a")) == ["duplicate"]


async def test_groups_are_read_without_being_taken(make_table: MakeTable) -> None:
    """Wherever they are; those that left or never came are left out."""
    table = await make_table()
    sent = effective("fresh", "leased", "deleted")
    await table.insert(sent[1])
    lease = await table.take(1)
    await table.insert(sent[0], sent[2])
    assert await table.client.delete_groups(["deleted", "leased", "nobody"], **table.names) == 1
    names = ["leased", "deleted", "fresh", "nobody"]
    found = await table.client.get_groups(names, **table.names)
    assert [(item.group.group_id, item.times_sampled) for item in found] == [("leased", 1), ("fresh", 0)]
    same(found[1].group, sent[0])
    await table.release(lease)


async def test_task_counters_say_what_became_of_the_groups_of_a_task(make_table: MakeTable) -> None:
    """So that what is dropped, and the bias it makes, can be seen."""
    table = await make_table(max_staleness=0)
    await table.insert(*effective("a", task="math"), *ineffective("x", task="code"), *effective("b"))
    await table.train(2, step=1)
    await table.advance(1)
    with pytest.raises(StalePolicyVersionError):
        await table.insert(*effective("late", task="math"))
    await table.client.delete_groups(["b"], **table.names)
    assert (await table.describe()).task_counters == {
        "gone_deleted:": 1,
        "gone_ineffective:code": 1,
        "inserted_effective:": 1,
        "inserted_effective:math": 1,
        "inserted_ineffective:code": 1,
        "refused_stale_policy_version:math": 1,
    }
