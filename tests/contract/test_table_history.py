"""What a table tells whoever watches a training run: a line for each step, and how the buffer is."""

import asyncio
from collections.abc import Callable

import pytest
from samples import effective, ids, ineffective, make_group
from table_user import MakeTable, TableUser
from unchanged import unchanged

from groupreplay import Fill, GroupFeedback, Histogram, InvalidRequestError, TableHistory, UnknownTableError


async def history(table: TableUser, until: Callable[[TableHistory], bool] = lambda _: True) -> TableHistory:
    """Return the table's history once it is as expected; an answer may be a second old."""
    async with asyncio.timeout(20):
        while True:
            found = await table.client.table_history(**table.names)
            if until(found):
                return found


async def test_a_step_leaves_one_line(make_table: MakeTable) -> None:
    """What filled the batch, how old it was, what reward it had, and what the trainer said of it."""
    table = await make_table()
    await table.insert(*effective("a", "b"))
    await table.train(2, step=1)
    await table.advance(3)
    await table.insert(*ineffective("x", version=3), make_group("c", rewards=(0.0, 0.0, 0.0, 1.0), version=2))
    batch = await table.take(2)
    feedback = [GroupFeedback(group_id=name, kl=kl, ess=0.5) for name, kl in zip(ids(batch), (0.25, 0.75), strict=True)]
    await table.commit(batch, 7, *feedback)
    first, second = (await history(table)).steps
    assert (first.step, first.policy_version, first.reward_mean, first.kl_mean, first.ess_mean) == (
        1,
        0,
        0.5,
        None,
        None,
    )
    assert (first.replay_reward_mean, first.staleness_mean, first.staleness_max) == (None, 0.0, 0)
    assert (second.step, second.policy_version, second.batch_size, second.groups) == (7, 3, 2, 2)
    assert (second.fresh, second.fresh_effective, second.refilled, second.shortfall) == (2, 1, 1, 0)
    assert (second.effective_share, second.staleness_mean, second.staleness_max) == (0.5, 2.0, 3)
    assert (second.reward_mean, second.replay_reward_mean) == (0.625, 0.5)
    assert (second.kl_mean, second.ess_mean) == (0.5, 0.5)
    assert second.committed_at_ms >= first.committed_at_ms > 0


async def test_slots_that_stay_empty_are_told(make_table: MakeTable) -> None:
    """A batch that nothing could fill has a shortfall, and no staleness where it has no groups."""
    table = await make_table()
    await table.insert(*ineffective("x", "y"))
    await table.train(2, step=1)
    [step] = (await history(table)).steps
    assert (step.groups, step.shortfall, step.staleness_mean, step.reward_mean) == (0, 2, None, 1.0)


async def test_a_draw_from_replay_is_a_step_without_fresh_groups(make_table: MakeTable) -> None:
    """Tables that only sample have a history too."""
    table = await make_table(fill=Fill.SAMPLE)
    await table.insert(*effective("a", "b"))
    await table.commit(await table.sample(2), 1)
    [step] = (await history(table)).steps
    assert (step.fresh, step.effective_share, step.reward_mean) == (0, None, None)
    assert (step.groups, step.refilled, step.replay_reward_mean) == (2, 2, 0.5)


async def test_only_newer_steps_are_sent_to_whoever_knows_the_others(make_table: MakeTable) -> None:
    """A page asks for what is new, and reads the newest where it cannot have all."""
    table = await make_table()
    for step in range(1, 6):
        await table.insert(*effective(f"g{step}"))
        await table.train(1, step=step)
    known = await table.client.table_history(after_step=3, **table.names)
    assert ([step.step for step in known.steps], known.newest_step) == ([4, 5], 5)
    newest = await table.client.table_history(limit=1, **table.names)
    assert [step.step for step in newest.steps] == [5]


async def test_later_steps_come_to_be_known(make_table: MakeTable) -> None:
    """Answers are given again for a second, not for longer; a step that is committed late has its place."""
    table = await make_table()
    assert (await history(table)).newest_step is None
    for step in (3, 5, 4):
        await table.insert(*effective(f"g{step}"))
        await table.train(1, step=step)
        found = await history(table, lambda found, step=step: any(it.step == step for it in found.steps))  # type: ignore[misc]
    assert [step.step for step in found.steps] == [3, 4, 5]


async def test_steps_that_are_undone_are_forgotten(make_table: MakeTable) -> None:
    """After a rewind, and after a reset; who keeps steps is told that some were undone."""
    table = await make_table()
    for step in (1, 2):
        await table.insert(*effective(f"g{step}", version=step - 1))
        await table.train(1, step=step)
        await table.advance(step)
    before = await history(table, lambda found: found.newest_step == 2)
    await table.rewind(1, step=1)
    after = await history(table, lambda found: found.newest_step == 1)
    assert [step.step for step in after.steps] == [1]
    assert after.steps_undone == before.steps_undone + 1
    await table.client.reset_table(**table.names)
    assert (await history(table, lambda found: found.newest_step is None)).steps == ()


async def test_a_table_without_lineage_has_a_history(make_table: MakeTable) -> None:
    """A line takes a hundred bytes, whatever the batch holds."""
    table = await make_table(lineage_steps=0)
    await table.insert(*effective("a"))
    await table.train(1, step=1)
    assert [step.step for step in (await history(table)).steps] == [1]


async def test_the_buffer_shows_how_old_and_how_important_its_groups_are(make_table: MakeTable) -> None:
    """Staleness in whole versions, priority in bins of one width, fresh and replay apart."""
    table = await make_table()
    await table.insert(*effective("a", "b", "c"))
    await table.train(3, step=1)
    await table.advance(2)
    await table.insert(*effective("d", version=1))
    await table.feed_back("a", priority=5.0)
    found = await history(table)
    assert (found.replay.groups, found.replay.looked_at, found.fresh.groups) == (3, 3, 1)
    assert found.replay.staleness == Histogram(edges=(1.0, 2.0, 3.0), counts=(0, 3))
    assert found.fresh.staleness == Histogram(edges=(1.0, 2.0, 3.0), counts=(1, 0))
    assert found.fresh.priority.edges == found.replay.priority.edges
    assert sum(found.replay.priority.counts) == 3
    assert (found.replay.priority.edges[0], found.replay.priority.edges[-1]) == (1.0, 5.0)
    assert (found.replay.priority.counts[0], found.replay.priority.counts[-1]) == (2, 1)


async def test_an_empty_buffer_has_no_distribution(make_table: MakeTable) -> None:
    """Nothing is said of what is not there."""
    found = await history(await make_table())
    assert (found.steps, found.newest_step, found.replay.groups) == ((), None, 0)
    assert found.fresh.staleness == Histogram(edges=(), counts=())


async def test_a_large_buffer_is_looked_at_in_part(make_table: MakeTable) -> None:
    """The work is bounded, every age is met, and the answer says how many groups it saw."""
    table = await make_table(fresh_capacity=4000)
    for version in range(2):
        await table.insert_many(effective(*(f"v{version}-{it}" for it in range(600)), version=version))
        await table.advance(version + 1)
    found = await history(table)
    assert (found.fresh.groups, found.fresh.looked_at) == (1200, 512)
    assert found.fresh.staleness == Histogram(edges=(1.0, 2.0, 3.0), counts=(256, 256))


async def test_the_history_comes_back_with_nothing_else_changed(make_table: MakeTable) -> None:
    """Looking takes nothing."""
    table = await make_table()
    await table.insert(*effective("a", "b"))
    await table.train(1, step=1)
    async with unchanged(table):
        await history(table)


async def test_many_watchers_cost_one_reading(make_table: MakeTable) -> None:
    """Within a second the service asks Redis once."""
    table = await make_table()
    await table.insert(*effective("a"))
    await table.client.table_history(**table.names)
    before = table.scripts_run()
    await asyncio.gather(*(table.client.table_history(**table.names) for _ in range(100)))
    assert table.scripts_run() - before < 50


async def test_what_cannot_be_asked_for_is_refused(make_table: MakeTable) -> None:
    """A limit out of range, a step that cannot be, a table that is not there."""
    table = await make_table()
    with pytest.raises(InvalidRequestError, match="limit 1001 is not in 1 to 1000"):
        await table.client.table_history(limit=1001, **table.names)
    with pytest.raises(InvalidRequestError, match="after_step -2 is not in -1 to"):
        await table.client.table_history(after_step=-2, **table.names)
    with pytest.raises(UnknownTableError):
        await table.client.table_history(run=table.run, table="other")
