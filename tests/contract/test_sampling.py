"""Sample: which groups a table that only samples hands out, in which order, how likely, and how fast."""

import asyncio
import math

import pytest
from samples import effective, ids, ineffective, make_group
from table_user import MakeTable, TableUser

from groupreplay import (
    Batch,
    BatchNotReadyError,
    Fill,
    GroupFeedback,
    GroupSource,
    GroupState,
    InvalidRequestError,
    RateLimit,
    RateLimitedError,
    TableConfig,
)


async def waiting_sample(table: TableUser, batch_size: int = 1) -> "asyncio.Task[Batch]":
    """Start a call that waits for a sample, and return when it has looked in vain."""
    before = table.scripts_run()
    task = asyncio.create_task(table.sample(batch_size, timeout_s=60.0))
    async with asyncio.timeout(60):
        while table.scripts_run() == before:
            await asyncio.to_thread(table.redis.ping)
    assert not task.done()
    return task


@pytest.mark.parametrize(
    ("sampler", "order"),
    [
        ("recency", ["c", "b", "a"]),
        ("fifo", ["a", "b", "c"]),
        ("lifo", ["c", "b", "a"]),
        ("max_priority", ["b", "c", "a"]),
        ("min_divergence", ["c", "a", "b"]),
    ],
)
async def test_samplers_that_are_not_random_have_their_order(
    make_table: MakeTable, sampler: str, order: list[str]
) -> None:
    """By age, by arrival, by priority, or by the KL fed back; none of them is a matter of chance."""
    table = await make_table(fill="sample", sampler=sampler)
    await table.insert(*(make_group(name, priority=value) for name, value in (("a", 1.0), ("b", 3.0), ("c", 2.0))))
    await table.feed_back("a", kl=0.1)
    await table.feed_back("b", kl=0.2)
    batch = await table.sample(3)
    assert ids(batch) == order
    assert {(item.probability, item.importance_weight) for item in batch.groups} == {(1.0, 1.0)}
    assert {item.source for item in batch.groups} == {GroupSource.REPLAY}
    assert (batch.fresh, batch.refilled, batch.shortfall) == (0, 3, 0)


async def test_a_prioritized_sample_says_how_likely_each_group_was(make_table: MakeTable) -> None:
    """Probability is weight over the sum of weights; importance weights undo its bias."""
    table = await make_table(fill="sample", sampler="prioritized", alpha=0.5, importance_beta=1.0)
    await table.insert(make_group("a", priority=1.0), make_group("b", priority=16.0), make_group("c", priority=25.0))
    batch = await table.sample(3)
    chance = {item.group.group_id: item.probability for item in batch.groups}
    assert chance == {"a": pytest.approx(0.1), "b": pytest.approx(0.4), "c": pytest.approx(0.5)}
    weights = {item.group.group_id: item.importance_weight for item in batch.groups}
    assert weights == {"a": pytest.approx(1.0), "b": pytest.approx(0.25), "c": pytest.approx(0.2)}


async def test_feedback_at_commit_changes_what_is_drawn_next(make_table: MakeTable) -> None:
    """A group of priority 0 is never drawn; its old priority is forgotten, also outside the lease."""
    table = await make_table(fill="sample", sampler="prioritized")
    await table.insert(*effective("a", "b", "c"))
    batch = await table.sample(1)
    [held] = ids(batch)
    others = sorted({"a", "b", "c"} - {held})
    await table.commit(batch, 1, *(GroupFeedback(group_id=name, priority=0.0) for name in (held, others[0])))
    assert await table.sampled(3) == [others[1]]


async def test_update_priorities_names_the_groups_that_are_not_there(make_table: MakeTable) -> None:
    """Unknown ones, those that left, and those that left while a lease holds them."""
    table = await make_table(fill="sample")
    await table.insert(*effective("a", "b", "held"))
    held = await table.sample(3)
    await table.client.delete_groups(["b", "held"], **table.names)
    feedback = [GroupFeedback(group_id=name, priority=2.0) for name in ("a", "b", "held", "nobody")]
    assert await table.client.update_priorities(feedback, **table.names) == ["b", "held", "nobody"]
    await table.commit(held, 1)


@pytest.mark.parametrize(
    ("source", "expected"),
    [("caller", [9.0, 1.0]), ("reward_variance", [0.25, 0.1875]), ("advantage", [0.5, 0.375])],
)
async def test_priorities_come_from_the_caller_or_from_the_rewards(
    make_table: MakeTable, source: str, expected: list[float]
) -> None:
    """p(1-p), or the mean distance from the mean; a caller that says nothing says 1."""
    table = await make_table(fill="sample", sampler="prioritized", priority=source)
    await table.insert(make_group("a", rewards=(0, 1, 0, 1), priority=9.0), make_group("b", rewards=(0, 0, 0, 1)))
    chance = {item.group.group_id: item.probability for item in (await table.sample(2)).groups}
    assert chance["a"] / chance["b"] == pytest.approx(expected[0] / expected[1])


async def test_min_staleness_and_max_kl_hold_groups_back(make_table: MakeTable) -> None:
    """Groups that are too young, or too far from the policy, stay and wait."""
    table = await make_table(fill="sample", sampler="fifo", min_staleness=2, max_kl=0.5)
    await table.insert(*effective("a", "b"))
    await table.advance(1)
    await table.insert(*effective("young", version=1))
    sample = await waiting_sample(table, 3)
    await table.feed_back("b", kl=0.6)
    await table.advance(2)  # wakes the sample
    assert ids(await sample) == ["a"]
    assert set(await table.locate("a", "b", "young")) == {GroupState.REPLAY}


async def test_replay_ineffective_keeps_groups_without_variance(make_table: MakeTable) -> None:
    """POPO-ineff; otherwise they leave as they come."""
    plain = await make_table("plain", fill="sample")
    ablation = await make_table("ablation", fill="sample", replay_ineffective=True)
    for table in (plain, ablation):
        await table.insert(*ineffective("x"), *effective("a"))
    assert ids(await plain.sample(2)) == ["a"]
    assert ids(await ablation.sample(2)) == ["a", "x"]
    assert await plain.locate("x") == [GroupState.GONE]


@pytest.mark.parametrize(("kind", "order"), [("queue", ["a", "b", "c"]), ("stack", ["c", "b", "a"])])
async def test_a_queue_and_a_stack_hand_each_group_out_once(make_table: MakeTable, kind: str, order: list[str]) -> None:
    """Inserts wait while it is full, samples while it is empty; ineffective groups take no room."""
    config = TableConfig.queue(3) if kind == "queue" else TableConfig.stack(3)
    table = TableUser(make_table._client, make_table._redis, make_table.run, "q")
    await table.client.create_table(config=config, **table.names)
    await table.insert(*ineffective(*(f"x{number}" for number in range(5))))
    await table.insert(*effective("a", "b", "c"))
    with pytest.raises(RateLimitedError, match=r"one group for 1 samples, and inserts are ahead by its max_diff 3"):
        await table.client.insert(make_group("d"), **table.names, timeout_s=3.0)
    for step, name in enumerate(order):
        batch = await table.sample(1)
        assert ids(batch) == [name]
        await table.commit(batch, step)
    with pytest.raises(BatchNotReadyError, match="has 0 of the 1 replay groups that a sample needs"):
        await table.sample(1, timeout_s=0.05)
    assert await table.locate(*order) == [GroupState.GONE] * 3


async def test_a_group_of_a_queue_that_comes_back_is_handed_out_again(make_table: MakeTable) -> None:
    """A released lease wakes whoever waits; nothing is lost with a trainer that gave up."""
    table = TableUser(make_table._client, make_table._redis, make_table.run, "q")
    await table.client.create_table(config=TableConfig.queue(2), **table.names)
    await table.insert(*effective("a"))
    first = await table.sample(1)
    second = await waiting_sample(table)
    await table.release(first)
    assert ids(await second) == ["a"]


async def test_the_rate_limit_may_change_while_the_table_runs(make_table: MakeTable) -> None:
    """samples_per_insert 2, then 4: the same group may be drawn more often at once."""
    limit = RateLimit.of(2.0, error_buffer=2.0)
    table = await make_table(fill="sample", rate_limit=limit)
    await table.insert(*effective("a"))
    for _ in range(2):
        await table.sample(1)
    sample = await waiting_sample(table)
    changed = await table.update(rate_limit=RateLimit.of(4.0, error_buffer=4.0))
    assert ids(await sample) == ["a"]
    assert changed.config.rate_limit == RateLimit.of(4.0, error_buffer=4.0)


async def test_a_sample_waits_for_min_size_to_sample(make_table: MakeTable) -> None:
    """The insert that completes it wakes the call."""
    table = await make_table(fill="sample", rate_limit=RateLimit.of(1.0, min_size_to_sample=2, error_buffer=5.0))
    await table.insert(*effective("a"))
    sample = await waiting_sample(table, 2)
    await table.insert(*effective("b"))
    assert ids(await sample) == ["b", "a"]


async def test_sampling_a_table_that_trains_on_fresh_groups_draws_from_its_replay(make_table: MakeTable) -> None:
    """Under fill replay both ways to get groups work side by side; other rules keep no replay."""
    table = await make_table()
    await table.insert(*effective("a", "b"))
    await table.train(2, step=1)
    assert await table.sampled(2) == ["b", "a"]
    for fill in (Fill.NONE, Fill.RESAMPLE, Fill.KEEP):
        other = await make_table(f"of-{fill}", fill=fill)
        with pytest.raises(InvalidRequestError, match=f"has fill rule {fill}, which keeps no replay to sample from"):
            await other.sample(1)
    only = await make_table("only", fill="sample")
    with pytest.raises(InvalidRequestError, match=r"has fill rule sample, so it makes no batches; call Sample"):
        await only.take(1)


async def test_the_same_lease_id_returns_the_same_sample(make_table: MakeTable) -> None:
    """A retry draws nothing new."""
    table = await make_table(fill="sample", sampler="uniform")
    await table.insert(*effective(*(f"g{number}" for number in range(20))))
    first = await table.sample(3, lease_id="mine")
    again = await table.sample(3, lease_id="mine")
    assert ids(first) == ids(again)
    assert [item.probability for item in again.groups] == [1 / 20] * 3
    assert math.isclose((await table.describe()).counters["delivered_replay"], 3)
