"""The policy clock of a run."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from samples import make_group
from table_user import MakeTable

from groupreplay import (
    FuturePolicyVersionError,
    InvalidRequestError,
    Policy,
    PolicyVersionConflictError,
    UnknownRunError,
)
from groupreplay.groups import MAX_POLICY_VERSION


async def next_of(policies: AsyncIterator[Policy]) -> Policy:
    """Return the next policy; a watch that sleeps through it fails the test."""
    return await asyncio.wait_for(anext(policies), 30)


async def test_a_run_starts_at_version_0_without_weights(make_table: MakeTable) -> None:
    """What the run starts from may be named later."""
    table = await make_table()
    policy = await table.client.get_policy(run=table.run)
    assert (policy.run, policy.version, policy.weights_uri, policy.weights_sha256) == (table.run, 0, "", "")


async def test_advancing_publishes_version_and_weights(make_table: MakeTable) -> None:
    """Versions may be skipped."""
    table = await make_table()
    wanted = Policy(run=table.run, version=7, weights_uri="s3://w/7 (new)", weights_sha256="ab" * 32)
    published = await table.client.advance_policy(wanted)
    assert published.published_at_ms > 0
    assert (published.version, published.weights_uri, published.weights_sha256) == (7, "s3://w/7 (new)", "ab" * 32)
    assert await table.client.get_policy(run=table.run) == published


async def test_advancing_to_the_same_version_and_weights_twice_is_once(make_table: MakeTable) -> None:
    """A trainer repeats what it is not sure of; the time of publication stays."""
    table = await make_table()
    assert await table.advance(3) == await table.advance(3)


async def test_a_version_cannot_be_published_again_with_other_weights_or_go_back(make_table: MakeTable) -> None:
    """Two trainers on one clock find out."""
    table = await make_table()
    published = await table.advance(3)
    for version in (2, 3):
        other = Policy(run=table.run, version=version, weights_uri="other")
        with pytest.raises(
            PolicyVersionConflictError, match=rf"stands at policy version 3 .*version {version} .*other"
        ):
            await table.client.advance_policy(other)
    assert await table.client.get_policy(run=table.run) == published


async def test_version_0_may_name_its_weights_once(make_table: MakeTable) -> None:
    """The trainer publishes the base model before the first step."""
    table = await make_table()
    assert (await table.advance(0)).weights_uri == "w0"
    with pytest.raises(PolicyVersionConflictError):
        await table.client.advance_policy(Policy(run=table.run, version=0, weights_uri="other"))


async def test_the_largest_version_is_exact(make_table: MakeTable) -> None:
    """Groups of the last version are taken, and stand first in replay."""
    table = await make_table()
    await table.advance(MAX_POLICY_VERSION)
    for step, version in enumerate((MAX_POLICY_VERSION, MAX_POLICY_VERSION - 1, 0)):
        await table.insert(make_group(f"v{version}", version=version))
        await table.train(1, step=step)
    order = await table.replay_order(3, version=MAX_POLICY_VERSION)
    assert order == [f"v{MAX_POLICY_VERSION}", f"v{MAX_POLICY_VERSION - 1}", "v0"]
    with pytest.raises(InvalidRequestError, match=f"version {MAX_POLICY_VERSION + 1} is not in 0 to"):
        await table.advance(MAX_POLICY_VERSION + 1)


async def test_a_group_from_the_future_is_refused(make_table: MakeTable) -> None:
    """A producer cannot have weights that were never published."""
    table = await make_table()
    await table.advance(1)
    with pytest.raises(FuturePolicyVersionError, match=r"version 2 was never published, the clock stands at 1; call"):
        await table.insert(make_group("a", policy_version_max=2))


async def test_the_clock_of_an_unknown_run_is_refused(make_table: MakeTable) -> None:
    """Reading, advancing and watching all say which run."""
    client = make_table._client
    with pytest.raises(UnknownRunError, match="no run nobody"):
        await client.get_policy(run="nobody")
    with pytest.raises(UnknownRunError, match="no run nobody"):
        await client.advance_policy(Policy(run="nobody", version=1))
    with pytest.raises(UnknownRunError, match="no run nobody"):
        await anext(client.watch_policy(run="nobody"))


async def test_watching_shows_the_current_policy_and_each_newer_one(make_table: MakeTable) -> None:
    """A producer reloads when the trainer publishes."""
    table = await make_table()
    first = await table.advance(1)
    watch = table.client.watch_policy(run=table.run)
    assert await next_of(watch) == first
    for version in (2, 3):
        following = asyncio.create_task(next_of(watch))
        assert await table.advance(version) == await following


async def test_watching_after_a_version_waits_for_the_next(make_table: MakeTable) -> None:
    """Who has version 1 is told about version 2 only."""
    table = await make_table()
    await table.advance(1)
    following = asyncio.create_task(next_of(table.client.watch_policy(run=table.run, after_version=1)))
    await table.advance(2)
    assert (await following).version == 2


async def test_a_watch_sees_version_0_again_when_it_gets_its_weights(make_table: MakeTable) -> None:
    """A producer that was there before the trainer learns where the base model lies."""
    table = await make_table()
    watch = table.client.watch_policy(run=table.run)
    assert (await next_of(watch)).weights_uri == ""
    following = asyncio.create_task(next_of(watch))
    await table.advance(0)
    assert (await following).weights_uri == "w0"


async def test_every_watcher_is_told(make_table: MakeTable) -> None:
    """However many producers there are, and although other runs have clocks too."""
    table = await make_table()
    watches = [table.client.watch_policy(run=table.run, after_version=0) for _ in range(5)]
    following = [asyncio.create_task(next_of(watch)) for watch in watches]
    await table.client.create_table(run="elsewhere", table="train")
    await table.client.advance_policy(Policy(run="elsewhere", version=9))
    await table.advance(1)
    assert [(await task).version for task in following] == [1] * 5
