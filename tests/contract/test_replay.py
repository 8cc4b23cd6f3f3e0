"""Which groups replay keeps, which it hands out, and when they leave."""

import pytest
from samples import effective, ids, ineffective, make_group
from table_user import MakeTable, TableUser

from groupreplay import GroupState, StalePolicyVersionError


async def trained(table: TableUser, *names: str, version: int = 0, step: int = 1) -> None:
    """Insert groups and train on them, so that they are in replay."""
    await table.insert(*effective(*names, version=version))
    await table.train(len(names), step=step)


async def test_replay_hands_out_the_newest_policy_version_first_then_the_latest_arrival(make_table: MakeTable) -> None:
    """An old group that arrives late stays behind the groups of newer policies."""
    table = await make_table()
    await trained(table, "a", "b", step=1)
    await table.advance(1)
    await trained(table, "c", "d", version=1, step=2)
    await trained(table, "late", version=0, step=3)
    assert await table.replay_order(5, version=1) == ["d", "c", "late", "b", "a"]


async def test_staleness_is_counted_from_the_oldest_token(make_table: MakeTable) -> None:
    """A group that was sampled across versions is as stale as its oldest token; on-policy means none."""
    table = await make_table(fill="keep")
    await table.advance(5)
    await table.insert(make_group("new", version=5), make_group("spans", version=3, policy_version_max=5))
    batch = await table.take(2)
    assert batch.policy_version == 5
    assert [delivered.staleness for delivered in batch.groups] == [0, 2]
    assert [delivered.on_policy for delivered in batch.groups] == [True, False]


async def test_a_group_beyond_max_staleness_is_refused_and_one_at_it_is_taken(make_table: MakeTable) -> None:
    """The limit is inclusive."""
    table = await make_table(max_staleness=2)
    await table.advance(5)
    await table.insert(make_group("at", version=3))
    with pytest.raises(StalePolicyVersionError, match=r"version 2 is 3 behind 5.*at most 2; regenerate"):
        await table.insert(make_group("beyond", version=2))
    assert await table.locate("at", "beyond") == [GroupState.FRESH, GroupState.UNKNOWN]


async def test_fresh_groups_that_became_stale_are_dropped_when_a_batch_is_taken(make_table: MakeTable) -> None:
    """A batch holds nothing that is older than the table allows."""
    table = await make_table(max_staleness=1)
    await table.insert(*effective("old"), *ineffective("x"))
    await table.advance(2)
    await table.insert(*effective("new", version=2))
    assert ids(await table.take(1)) == ["new"]
    assert await table.locate("old", "x") == [GroupState.GONE, GroupState.GONE]
    assert (await table.counters())["gone_stale"] == 2
    assert (await table.describe()).fresh_effective == 0


async def test_replay_groups_that_became_stale_are_dropped(make_table: MakeTable) -> None:
    """Replay honours max_staleness at the draw."""
    table = await make_table(max_staleness=1)
    await trained(table, "a", step=1)
    await table.advance(1)
    await trained(table, "b", version=1, step=2)
    await table.advance(2)
    assert await table.replay_order(2, version=2) == ["b"]
    assert await table.locate("a") == [GroupState.GONE]
    assert (await table.counters())["gone_stale"] == 1


async def test_a_group_leaves_after_max_times_sampled_deliveries(make_table: MakeTable) -> None:
    """Two deliveries are one fresh and one replayed."""
    table = await make_table(max_times_sampled=2)
    await trained(table, "a", step=1)
    await table.insert(*ineffective("x"))
    batch = await table.take(1)
    assert [delivered.times_sampled for delivered in batch.groups] == [2]
    await table.commit(batch, step=2)
    assert await table.locate("a") == [GroupState.GONE]
    assert (await table.counters())["gone_exhausted"] == 1


async def test_a_group_with_one_allowed_delivery_never_joins_replay(make_table: MakeTable) -> None:
    """max_times_sampled = 1 is training on fresh groups only."""
    table = await make_table(max_times_sampled=1)
    await trained(table, "a")
    assert await table.locate("a") == [GroupState.GONE]


async def test_a_group_that_is_out_for_its_last_delivery_is_not_handed_out_again(make_table: MakeTable) -> None:
    """Deliveries in live leases count; a released one is given back."""
    table = await make_table(max_times_sampled=2)
    await trained(table, "a")
    await table.insert(*ineffective("x", "y", "z"))
    first = await table.take(1)
    assert ids(first) == ["a"]
    assert ids(await table.take(1)) == []
    await table.release(first)
    batch = await table.take(1)
    assert ids(batch) == ["a"]
    assert [delivered.times_sampled for delivered in batch.groups] == [2]


async def test_replay_beyond_its_capacity_loses_the_oldest_groups(make_table: MakeTable) -> None:
    """replay_capacity evicts by policy version, then by arrival."""
    table = await make_table(replay_capacity=3)
    await table.advance(1)
    await trained(table, "new", version=1, step=1)
    await trained(table, "a", "b", "c", step=2)
    assert await table.locate("new", "a", "b", "c") == [GroupState.REPLAY, GroupState.GONE, *[GroupState.REPLAY] * 2]
    assert (await table.counters())["gone_evicted"] == 1


async def test_an_evicted_group_stays_whole_for_the_lease_that_holds_it(make_table: MakeTable) -> None:
    """A batch that was handed out can be fetched again although replay moved on."""
    table = await make_table(replay_capacity=1)
    await trained(table, "a", step=1)
    await table.insert(*ineffective("x"))
    batch = await table.take(1)
    await trained(table, "b", step=2)
    assert await table.locate("a") == [GroupState.GONE]
    assert ids(await table.take(1, lease_id=batch.lease_id)) == ["a"]
    await table.commit(batch, step=3)
    assert await table.locate("a", "b") == [GroupState.GONE, GroupState.REPLAY]


async def test_payloads_of_groups_that_left_are_removed_from_redis(make_table: MakeTable) -> None:
    """Memory is given back: as many payload keys as groups that still need one."""
    table = await make_table(replay_capacity=2)
    for step in range(1, 8):
        await trained(table, f"a{step}", f"b{step}", step=step)
    await table.until(replay=2)
    pattern = f"gr1:payload:{table.run}/*"
    while len(list(table.redis.scan_iter(pattern))) > 2 or table.redis.zcard(table.key("garbage")):
        await table.describe()  # the service removes them after it answered
    assert (await table.describe()).payload_bytes == 2 * table.redis.strlen(next(table.redis.scan_iter(pattern)))


async def test_two_leases_may_hold_the_same_replay_group(make_table: MakeTable) -> None:
    """Replay is shared by trainers; each delivery counts."""
    table = await make_table()
    await trained(table, "a")
    await table.insert(*ineffective("x", "y"))
    first, second = await table.take(1), await table.take(1)
    assert [first.groups[0].times_sampled, second.groups[0].times_sampled] == [2, 3]
    await table.commit(first, step=2)
    await table.release(second)
    assert await table.locate("a") == [GroupState.REPLAY]
    await table.insert(*ineffective("z"))
    assert (await table.take(1)).groups[0].times_sampled == 3
