"""What a trainer feeds back of each token of a group."""

from typing import Any

import numpy as np
import pytest
from kept_ratios import KeptRatios, read_kept_ratios
from samples import effective, make_group
from table_user import MakeTable, TableUser
from unchanged import unchanged

from groupreplay import GroupFeedback, GroupState, InvalidRequestError, LogRatios
from groupreplay.log_ratios import MAX_LOG_RATIO_BYTES
from groupreplay_server.store.keys import TableKeys

RATIOS = np.array([0.5, -0.25, 0.0, np.nan, 6.1e-5, -14.0], np.float32)


def ratios(group_id: str, values: Any = RATIOS, **other: float) -> GroupFeedback:
    """Return feedback with one log ratio for each token of a group of `effective`."""
    return GroupFeedback(group_id=group_id, log_ratios=values, **other)


async def read(table: TableUser, group_id: str) -> LogRatios | None:
    """Return the log ratios of a group that is there."""
    [stored] = await table.client.get_groups([group_id], log_ratios=True, **table.names)
    return stored.log_ratios


def kept(table: TableUser) -> KeptRatios:
    """Return what Redis has."""
    return read_kept_ratios(table.redis, TableKeys(table.run, table.table))


async def test_log_ratios_of_a_commit_are_read_with_the_group(make_table: MakeTable) -> None:
    """As float16, with the version that the batch was handed out with and the step; only where they are asked for."""
    table = await make_table()
    await table.insert(*effective("a", "b"))
    await table.advance(3)
    batch = await table.take(2)
    await table.advance(4)
    await table.commit(batch, 7, ratios("a", kl=0.5))
    found = await read(table, "a")
    assert found is not None
    np.testing.assert_array_equal(found.values, RATIOS.astype(np.float16), strict=True)
    assert (found.policy_version, found.step) == (3, 7)
    assert await read(table, "b") is None
    [plain] = await table.client.get_groups(["a"], **table.names)
    assert plain.log_ratios is None


async def test_the_latest_log_ratios_take_the_place_of_those_before(make_table: MakeTable) -> None:
    """By update_priorities they have no step; other feedback leaves them; their bytes are counted once."""
    table = await make_table()
    await table.insert(*effective("a"))
    await table.commit(await table.take(1), 1, ratios("a"))
    await table.advance(2)
    assert await table.client.update_priorities([ratios("a", -RATIOS), ratios("nobody")], **table.names) == ["nobody"]
    await table.feed_back("a", kl=0.1)
    found = await read(table, "a")
    assert found is not None
    np.testing.assert_array_equal(found.values, (-RATIOS).astype(np.float16), strict=True)
    assert (found.policy_version, found.step) == (2, None)
    assert kept(table).bytes == 2 * len(RATIOS)


@pytest.mark.parametrize("values", [RATIOS[:5], [*RATIOS, 0.0], []])
async def test_another_number_than_the_response_tokens_is_refused_and_nothing_is_committed(
    make_table: MakeTable, values: Any
) -> None:
    """The message has both numbers; the lease is as it was, and the commit can be made rightly."""
    table = await make_table()
    await table.insert(*effective("a", "b"))
    batch = await table.take(2)
    async with unchanged(table):
        with pytest.raises(InvalidRequestError, match=f"group b: {len(values)} log_ratios .* 6 tokens"):
            await table.commit(batch, 1, ratios("a", priority=9.0), ratios("b", values))
        with pytest.raises(InvalidRequestError, match=f"group b: {len(values)} log_ratios .* 6 tokens"):
            await table.client.update_priorities([ratios("a", priority=9.0), ratios("b", values)], **table.names)
    assert not await table.commit(batch, 1, ratios("a"))


async def test_more_than_one_call_takes_are_refused(make_table: MakeTable) -> None:
    """The limit is on all those of a call, so that every message stays below gRPC's 4 MiB."""
    table = await make_table()
    tokens = MAX_LOG_RATIO_BYTES // 4 // 2
    await table.insert(make_group("half", tokens=tokens), make_group("other", tokens=tokens), *effective("a"))
    halves = [ratios(name, np.full(2 * tokens, 0.125)) for name in ("half", "other")]
    batch = await table.take(3)
    async with unchanged(table):
        with pytest.raises(InvalidRequestError, match=f"are {MAX_LOG_RATIO_BYTES + 12} bytes .* {MAX_LOG_RATIO_BYTES}"):
            await table.commit(batch, 1, *halves, ratios("a"))
    await table.commit(batch, 1, *halves)
    found = await read(table, "half")
    assert found is not None
    assert found.values.nbytes == MAX_LOG_RATIO_BYTES // 2
    assert (found.values == 0.125).all()


async def test_log_ratios_and_payload_of_the_largest_call_fit_the_messages(make_table: MakeTable) -> None:
    """A group whose log ratios are as many as a call takes is read back whole."""
    table = await make_table(replay_capacity=4)
    tokens = MAX_LOG_RATIO_BYTES // 2 // 2
    group = make_group("a", tokens=tokens)
    await table.insert(group)
    await table.commit(await table.take(1), 1, ratios("a", np.zeros(2 * tokens)))
    [stored] = await table.client.get_groups(["a"], log_ratios=True, **table.names)
    np.testing.assert_array_equal(stored.group.response_token_ids, group.response_token_ids)
    assert stored.log_ratios is not None
    assert stored.log_ratios.values.nbytes == MAX_LOG_RATIO_BYTES


async def test_log_ratios_go_with_their_group(make_table: MakeTable) -> None:
    """Deleted, evicted, or retired by the very commit that brings them: nothing of them stays."""
    table = await make_table(replay_capacity=2)
    await table.insert(*effective("a", "b"))
    await table.commit(await table.take(2), 1, ratios("a"), ratios("b"))
    assert kept(table).groups == {"a", "b"}
    await table.client.delete_groups(["a"], **table.names)
    assert kept(table).groups == {"b"}
    await table.insert(*effective("c", "d"))
    await table.commit(await table.take(2), 2)
    assert await table.locate("b") == [GroupState.GONE]
    assert kept(table) == KeptRatios({}, set(), set(), 0)
    filtered = await make_table("filtered", fill="none")
    await filtered.insert(*effective("x"))
    await filtered.commit(await filtered.take(1), 1, ratios("x"))
    assert kept(filtered) == KeptRatios({}, set(), set(), 0)
    await until_no_payload_is_left(filtered)


async def until_no_payload_is_left(table: TableUser) -> None:
    """Wait for the service to remove what nobody needs any more."""
    while list(table.redis.scan_iter(f"*payload:{table.run}/{table.table}/*")):
        await table.describe()


async def test_log_ratios_stay_as_long_as_a_lease_or_a_kept_step_needs_their_group(make_table: MakeTable) -> None:
    """They are there exactly as long as the group's own data is."""
    table = await make_table(fill="none", lineage_payload_steps=1)
    await table.insert(*effective("a"))
    await table.commit(await table.take(1), 1, ratios("a"))
    assert await table.locate("a") == [GroupState.GONE]
    assert kept(table).groups == {"a"}
    await table.insert(*effective("b"))
    await table.commit(await table.take(1), 2)
    assert kept(table).groups == set()


async def test_a_repeated_commit_leaves_the_log_ratios_of_the_first(make_table: MakeTable) -> None:
    """And does not leave its own behind."""
    table = await make_table()
    await table.insert(*effective("a"))
    batch = await table.take(1)
    assert not await table.commit(batch, 1, ratios("a"))
    assert await table.commit(batch, 1, ratios("a", -RATIOS))
    found = await read(table, "a")
    assert found is not None
    np.testing.assert_array_equal(found.values, RATIOS.astype(np.float16))


async def test_a_late_commit_with_log_ratios_is_committed_as_one_without_is(make_table: MakeTable) -> None:
    """Looking at the groups first must not end the lease, whose groups somebody else may then take."""
    table = await make_table()
    await table.insert(*effective("a"))
    batch = await table.take(1)
    table.expire_leases()
    assert not await table.commit(batch, 1, ratios("a"))
    assert await read(table, "a") is not None
    assert await table.locate("a") == [GroupState.REPLAY]


async def test_snapshots_leave_log_ratios_out(make_table: MakeTable, tmp_path: Any) -> None:
    """They are about the policy of one moment; the restored table has the groups without them."""
    table = await make_table()
    await table.insert(*effective("a"))
    await table.commit(await table.take(1), 1, ratios("a", kl=0.5))
    await table.client.snapshot(path=tmp_path / "table.grs", **table.names)
    restored = TableUser(table.client, table.redis, table.run, "restored")
    await table.client.restore(tmp_path / "table.grs", run=table.run, table="restored")
    assert await read(restored, "a") is None


def test_what_is_no_list_of_numbers_is_refused_where_it_is_made() -> None:
    """Before anything is sent; NaN may be."""
    for values, words in (
        ([[0.0]], r"of shape \(1, 1\)"),
        (["one"], "not numbers"),
        ([0.0, np.inf], r"log_ratios\[1\] is inf"),
        ([70000.0], r"log_ratios\[0\] is 70000"),
    ):
        with pytest.raises(InvalidRequestError, match=words):
            ratios("a", values)
    assert np.isnan(np.asarray(ratios("a", [np.nan]).log_ratios)[0])
