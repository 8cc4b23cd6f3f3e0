"""Groups whose rollouts are pushed one at a time."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from partial_groups import read_partials
from processes import ServerProcess
from samples import ids, make_group, same
from table_user import MakeTable, TableUser, connect

from groupreplay import (
    FuturePolicyVersionError,
    GroupClosedError,
    GroupState,
    GroupTooLargeError,
    InsertOutcome,
    InvalidGroupError,
    InvalidRequestError,
    Policy,
    PushOutcome,
    PushResult,
    QuotaExceededError,
    RolloutGroup,
    RolloutPiece,
    StalePolicyVersionError,
    TableFullError,
    merge_groups,
)
from groupreplay_server.store.keys import TableKeys

PENDING, CLOSED, DUPLICATE, REFUSED = PushOutcome


def rollout(reward: float, group_id: str = "g", **other: Any) -> RolloutGroup:
    """Return a piece with one rollout, whose tokens tell it apart."""
    tokens = other.pop("tokens", 3)
    fields: dict[str, Any] = {"response_token_ids": np.full(tokens, int(reward * 10), np.int32), "created_at_ms": 1}
    return make_group(group_id, rewards=(reward,), tokens=tokens, **fields | other)


async def push(table: TableUser, group: RolloutGroup, piece_id: str, group_size: int = 3, **options: Any) -> PushResult:
    """Push one piece."""
    return await table.client.push_rollout(
        group, group_size=group_size, piece_id=piece_id, **{"timeout_s": 10.0} | options, **table.names
    )


async def taken(table: TableUser) -> RolloutGroup:
    """Take the only group of the table."""
    [delivered] = (await table.take(1)).groups
    return delivered.group


async def partial_counts(table: TableUser) -> dict[str, int]:
    """Return what the table counts of partial groups."""
    counters = await table.counters()
    return {name.removeprefix("partial_"): n for name, n in counters.items() if name.startswith("partial_")}


async def until_counted(table: TableUser, **expected: int) -> None:
    """Wait until the table's counts of partial groups are these."""
    async with asyncio.timeout(60):
        while await partial_counts(table) != expected:
            pass


def open_groups(table: TableUser) -> dict[str, Sequence[str]]:
    """Return the pieces of each open group, in order of arrival."""
    groups = read_partials(table.redis, TableKeys(table.run, table.table)).groups
    return {group_id: group.pieces for group_id, group in groups.items()}


async def test_a_group_is_inserted_when_its_last_rollout_comes(make_table: MakeTable) -> None:
    """Each push says how many are there; the last one closes the group and says that it is inserted."""
    table = await make_table()
    first, second = await push(table, rollout(0.0), "0"), await push(table, rollout(1.0), "1")
    assert [(r.outcome, r.rollouts, r.group_size, r.insert) for r in (first, second)] == [
        (PENDING, 1, 3, None), (PENDING, 2, 3, None),
    ]  # fmt: skip
    assert await table.locate("g") == [GroupState.UNKNOWN]
    last = await push(table, rollout(0.5), "2")
    assert (last.outcome, last.rollouts, last.group_size) == (CLOSED, 3, 3)
    assert last.insert is not None
    assert last.insert.outcome is InsertOutcome.INSERTED
    assert await table.locate("g") == [GroupState.FRESH]
    assert await partial_counts(table) == {"opened": 1, "closed": 1}
    assert open_groups(table) == {}


async def test_rollouts_stand_in_the_order_of_their_arrival(make_table: MakeTable) -> None:
    """Whatever their piece ids are; the group is what merge_groups makes of the pieces in that order."""
    table = await make_table()
    pieces = [rollout(reward, tokens=tokens) for reward, tokens in ((1.0, 4), (0.0, 2), (0.5, 7))]
    for piece, piece_id in zip(pieces, ("z", "a", "m"), strict=True):
        await push(table, piece, piece_id)
    group = await taken(table)
    assert group.rewards.tolist() == [1.0, 0.0, 0.5]
    assert group.response_lengths.tolist() == [4, 2, 7]
    same(group, merge_groups(pieces))


async def test_a_piece_may_hold_several_rollouts(make_table: MakeTable) -> None:
    """Engines that return some of a group at once push them at once."""
    table = await make_table()
    await push(table, make_group("g", rewards=(0.0, 1.0)), "left", 4)
    result = await push(table, make_group("g", rewards=(0.0, 0.5)), "right", 4)
    assert (result.outcome, result.rollouts) == (CLOSED, 4)
    assert (await taken(table)).rewards.tolist() == [0.0, 1.0, 0.0, 0.5]


async def test_a_piece_that_is_the_whole_group_closes_it(make_table: MakeTable) -> None:
    """There is nothing to wait for."""
    table = await make_table()
    group = make_group("g")
    assert (await push(table, group, "all", 2)).outcome is CLOSED
    same(await taken(table), group)


async def test_everything_of_a_rollout_comes_through(make_table: MakeTable) -> None:
    """Masks, texts, finish reasons and columns of tokens and of rollouts, each beside its own rollout."""
    table = await make_table()
    pieces = [
        rollout(
            reward,
            tokens=tokens,
            loss_mask=np.arange(tokens) % 2 == 0,
            finish_reasons=(reason,),
            response_texts=(f"text {reward}",),
            prompt_text="a prompt",
            task="gsm8k",
            producer_id="node-1",
            tags={"split": "train"},
            columns={"routed": np.full((tokens, 2), tokens, np.uint8), "advantage": np.array([reward])},
        )
        for reward, tokens, reason in ((1.0, 3, "stop"), (0.0, 5, "length"))
    ]
    for index, piece in enumerate(pieces):
        await push(table, piece, str(index), 2)
    same(await taken(table), merge_groups(pieces))


async def test_spans_tell_the_versions_of_rollouts_from_different_policies(make_table: MakeTable) -> None:
    """Weights change while a group is under way: the group says which tokens are of which version."""
    table = await make_table()
    await push(table, rollout(0.0, tokens=2), "0")
    await table.advance(1)
    spans = np.array([[0, 0], [2, 1]], np.int32)
    await push(table, rollout(1.0, tokens=5, policy_version_max=1, version_spans=spans), "1")
    await push(table, rollout(1.0, tokens=2, version=1), "2")
    group = await taken(table)
    assert (group.policy_version_min, group.policy_version_max) == (0, 1)
    assert group.version_spans is not None
    assert group.version_spans.tolist() == [[0, 0], [4, 1]]


async def test_a_piece_that_is_pushed_again_changes_nothing(make_table: MakeTable) -> None:
    """A retry is safe while the group is open, and after it closed."""
    table = await make_table()
    await push(table, rollout(0.0), "0", 2)
    again = await push(table, rollout(0.0), "0", 2)
    assert (again.outcome, again.rollouts, again.group_size, again.insert) == (DUPLICATE, 1, 2, None)
    await push(table, rollout(1.0), "1", 2)
    for piece_id in ("0", "1"):
        late = await push(table, rollout(0.0), piece_id, 2)
        assert late.outcome is DUPLICATE
        assert late.insert is not None
        assert late.insert.outcome is InsertOutcome.DUPLICATE
    assert (await taken(table)).rewards.tolist() == [0.0, 1.0]
    assert await partial_counts(table) == {"opened": 1, "closed": 1}


async def test_concurrent_pushes_of_all_pieces_make_one_group(make_table: MakeTable) -> None:
    """Many environments end at once, and repeat themselves: one group with each rollout once."""
    table = await make_table()
    pushes = [push(table, rollout(float(index)), str(index), 8) for index in range(8) for _ in range(2)]
    outcomes = [result.outcome for result in await asyncio.gather(*pushes)]
    assert REFUSED not in outcomes
    assert CLOSED in outcomes
    assert sorted((await taken(table)).rewards.tolist()) == [float(index) for index in range(8)]


async def test_many_pieces_travel_in_one_call(make_table: MakeTable) -> None:
    """push_rollouts answers for each; a refused piece does not hold up the others."""
    table = await make_table()
    pieces = [
        RolloutPiece(group=rollout(reward, name, **other), piece_id=piece_id, group_size=2)
        for reward, name, piece_id, other in (
            (0.0, "a", "0", {}), (0.0, "b", "0", {}), (1.0, "a", "1", {"task": "other"}), (1.0, "b", "1", {}),
            (1.0, "a", "2", {}),
        )
    ]  # fmt: skip
    results = await table.client.push_rollouts(pieces, **table.names)
    assert [r.outcome for r in results] == [PENDING, PENDING, REFUSED, CLOSED, CLOSED]
    assert isinstance(results[2].error, InvalidGroupError)
    assert ids(await table.take(2)) == ["b", "a"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"prompt_id": "q"}, "piece 1 has prompt_id 'q', its first piece 0 has 'prompt-of-g'"),
        ({"prompt_token_ids": np.array([9], np.int32)}, "piece 1 has prompt_token_ids"),
        ({"task": "t"}, "piece 1 has task 't', its first piece 0 has ''"),
        ({"loss_mask": np.ones(3, bool)}, "piece 1 has columns 'loss_mask', its first piece 0 has ''"),
        ({"columns": {"x": np.zeros((3, 2))}}, r"piece 1 has columns 'x float64 \[2\]'"),
    ],
)
async def test_a_piece_that_disagrees_is_refused_and_changes_nothing(
    make_table: MakeTable, other: dict[str, Any], message: str
) -> None:
    """The error names what differs and both values; the group can still be completed."""
    table = await make_table()
    await push(table, rollout(0.0), "0", 2)
    before = await table.describe()
    with pytest.raises(InvalidGroupError, match=message):
        await push(table, rollout(1.0, **other), "1", 2)
    assert await table.describe() == before
    assert open_groups(table) == {"g": ("0",)}
    assert (await push(table, rollout(1.0), "1", 2)).outcome is CLOSED


async def test_a_piece_of_another_group_size_is_refused(make_table: MakeTable) -> None:
    """All producers of a group must know how large it is."""
    table = await make_table()
    await push(table, rollout(0.0), "0", 2)
    with pytest.raises(InvalidGroupError, match="piece 1 has group_size '3', its first piece 0 has '2'"):
        await push(table, rollout(1.0), "1", 3)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (np.array(0.7), r"column 'x' of a piece has shape \[\].*leave it out, or insert the whole group at once"),
        (np.zeros((9, 2)), r"column 'x' of a piece has shape \[9, 2\]"),
    ],
)
async def test_a_column_of_unknown_rows_is_refused(make_table: MakeTable, column: Any, message: str) -> None:
    """It cannot be put together with others, and the first piece already hears so."""
    table = await make_table()
    with pytest.raises(InvalidGroupError, match=message):
        await push(table, rollout(0.0, columns={"x": column}), "0")
    assert await partial_counts(table) == {}


async def test_rows_of_a_column_are_of_tokens_in_all_pieces_or_of_rollouts_in_all(make_table: MakeTable) -> None:
    """A piece of one token leaves it open; the next one decides."""
    table = await make_table()
    await push(table, rollout(0.0, tokens=1, columns={"x": np.zeros(1)}), "0")
    await push(table, rollout(1.0, columns={"x": np.ones(3)}), "1")
    with pytest.raises(InvalidGroupError, match="a row for each token that earlier pieces have for each rollout"):
        await push(table, rollout(1.0, columns={"x": np.ones(1)}), "2")
    await push(table, rollout(1.0, tokens=1, columns={"x": np.ones(1)}), "2")
    assert (await taken(table)).columns["x"].tolist() == [0, 1, 1, 1, 1]


async def test_more_rollouts_than_the_group_has_are_refused(make_table: MakeTable) -> None:
    """Before it is complete because they are too many, afterwards because it has closed or is there."""
    table = await make_table()
    await push(table, rollout(0.0), "0", 2)
    with pytest.raises(InvalidGroupError, match="piece 1 has 2 rollouts, which would make 3 of 2"):
        await push(table, make_group("g"), "1", 2)
    with pytest.raises(InvalidGroupError, match="piece x has 3 rollouts, group_size is 2"):
        await push(table, make_group("h", rewards=(0, 1, 2)), "x", 2)


async def test_a_group_closes_at_its_time_with_what_is_there(make_table: MakeTable) -> None:
    """A straggler holds nobody up: with min_rollouts the group goes out without it, and the straggler is told."""
    table = await make_table()
    await push(table, rollout(0.0), "0", min_rollouts=2, close_after_s=0.3)
    await push(table, rollout(1.0), "1")
    await table.until(fresh=1)
    assert await partial_counts(table) == {"opened": 1, "closed_short": 1}
    with pytest.raises(GroupClosedError, match="group g closed with 2 of 3 rollouts, without piece 2: its time was"):
        await push(table, rollout(1.0), "2")
    assert (await push(table, rollout(1.0), "1")).outcome is DUPLICATE
    assert (await taken(table)).rewards.tolist() == [0.0, 1.0]


async def test_a_group_below_its_minimum_is_dropped_at_its_time(make_table: MakeTable) -> None:
    """What is not worth training on leaves nothing but a count; its pieces and stragglers are told."""
    table = await make_table()
    await push(table, rollout(0.0), "0", min_rollouts=2, close_after_s=0.1)
    await until_counted(table, opened=1, dropped=1)
    assert open_groups(table) == {}
    assert (await table.describe()).payload_bytes == 0
    assert await table.locate("g") == [GroupState.UNKNOWN]
    with pytest.raises(GroupClosedError, match="group g was dropped with 1 of 3 rollouts, piece 0 among them"):
        await push(table, rollout(0.0), "0")
    with pytest.raises(GroupClosedError, match="group g closed with 1 of 3 rollouts, without piece 1"):
        await push(table, rollout(0.0), "1")


async def test_without_a_minimum_a_group_is_complete_or_dropped(make_table: MakeTable) -> None:
    """min_rollouts is group_size where nobody says otherwise."""
    table = await make_table()
    await push(table, rollout(0.0), "0", close_after_s=0.1)
    await push(table, rollout(0.0, "h"), "0", close_after_s=0.2, min_rollouts=1)
    await until_counted(table, opened=2, dropped=1, closed_short=1)
    assert await table.locate("g", "h") == [GroupState.UNKNOWN, GroupState.FRESH]


async def test_the_numbers_of_the_first_piece_hold(make_table: MakeTable) -> None:
    """Later pieces move neither the time nor the minimum."""
    table = await make_table()
    await push(table, rollout(0.0), "0", min_rollouts=2, close_after_s=0.3)
    await push(table, rollout(1.0), "1", min_rollouts=3, close_after_s=3600.0)
    await table.until(fresh=1)


async def test_pieces_count_in_usage_and_payload_bytes_until_the_group_is_inserted(make_table: MakeTable) -> None:
    """An open group is one group of the quota, with the bytes of its pieces; the whole group takes their place."""
    table = await make_table()
    await push(table, rollout(0.0), "0", 2)
    quota = await table.client.get_quota(run=table.run)
    assert (quota.groups, quota.bytes) == (1, (await table.describe()).payload_bytes)
    assert quota.bytes > 0
    await push(table, rollout(1.0), "1", 2)
    after = await table.client.get_quota(run=table.run)
    assert (after.groups, after.bytes) == (1, (await table.describe()).payload_bytes)
    assert quota.bytes < after.bytes < 2 * quota.bytes  # the prompt is there once


async def test_a_group_that_fills_the_quota_with_its_pieces_is_inserted(make_table: MakeTable) -> None:
    """Its pieces make room for the whole; a further group is refused at its first piece."""
    table = await make_table()
    await push(table, rollout(0.0), "0", 2)
    size = (await table.client.get_quota(run=table.run)).bytes
    await table.client.set_quota(run=table.run, max_groups=1, max_bytes=2 * size)
    with pytest.raises(QuotaExceededError, match=r"the .* bytes of piece 0 would exceed the quota"):
        await push(table, rollout(0.0, "h"), "0", 2, timeout_s=3.0)
    assert (await push(table, rollout(1.0), "1", 2)).outcome is CLOSED


async def test_pieces_together_may_be_as_large_as_the_table_allows(make_table: MakeTable) -> None:
    """max_group_bytes is for the whole group; the piece that would go beyond is refused."""
    table = await make_table(max_group_bytes=3000)
    columns = {"x": np.zeros((3, 400), np.uint8)}
    await push(table, rollout(0.0, columns=columns), "0", 2)
    with pytest.raises(GroupTooLargeError, match=r"piece 1 would make its payload .* takes at most 3000"):
        await push(table, rollout(1.0, tokens=5, columns={"x": np.zeros((5, 400), np.uint8)}), "1", 2)
    assert (await push(table, rollout(1.0, columns=columns), "1", 2)).outcome is CLOSED


async def test_pieces_and_neighbours_of_many_megabytes_come_through(make_table: MakeTable) -> None:
    """Pieces above the size of a message travel in parts, small ones between them too."""
    table = await make_table()
    pixels = np.arange(3 * 3_000_000, dtype=np.uint8).reshape(3, 1000, 3000)
    groups = [rollout(r, "large", columns={"pixels": pixels + np.uint8(r)}) for r in (0.0, 1.0)]
    pieces = [
        RolloutPiece(group=groups[0], piece_id="0", group_size=2),
        RolloutPiece(group=rollout(0.0, "small"), piece_id="0", group_size=2),
        RolloutPiece(group=groups[1], piece_id="1", group_size=2),
        RolloutPiece(group=rollout(1.0, "small"), piece_id="1", group_size=2),
    ]
    results = await table.client.push_rollouts(pieces, **table.names)
    assert [r.outcome for r in results] == [PENDING, PENDING, CLOSED, CLOSED]
    batch = await table.take(2)
    assert ids(batch) == ["large", "small"]
    same(batch.groups[0].group, merge_groups(groups))


async def test_a_piece_above_the_limit_is_refused_however_it_travels(make_table: MakeTable) -> None:
    """Its bytes are thrown away as they come."""
    table = await make_table(max_group_bytes=5_000)
    with pytest.raises(GroupTooLargeError, match="takes at most 5000"):
        await push(table, rollout(0.0, columns={"x": np.zeros((3, 2_000_000), np.uint8)}), "0")


async def test_a_piece_of_a_policy_that_is_too_old_or_unknown_is_refused(make_table: MakeTable) -> None:
    """As a group would be, and the group stays open for others."""
    table = await make_table(max_staleness=1)
    await table.advance(2)
    await push(table, rollout(0.0, version=2), "0", 2)
    with pytest.raises(StalePolicyVersionError, match="policy version 0 of piece 1 is 2 behind 2"):
        await push(table, rollout(1.0, version=0), "1", 2)
    with pytest.raises(FuturePolicyVersionError, match="policy version 3 of piece 1 was never published"):
        await push(table, rollout(1.0, version=3), "1", 2)
    assert open_groups(table) == {"g": ("0",)}


async def test_a_group_that_became_too_old_while_it_was_open_is_dropped(make_table: MakeTable) -> None:
    """The push that completes it is told why."""
    table = await make_table(max_staleness=1)
    await push(table, rollout(0.0), "0", 2)
    await table.advance(2)
    with pytest.raises(StalePolicyVersionError, match="group g: policy version 0 is 2 behind 2"):
        await push(table, rollout(1.0, version=2), "1", 2)
    assert await partial_counts(table) == {"opened": 1, "dropped": 1}
    with pytest.raises(GroupClosedError, match="was dropped with 2 of 2 rollouts"):
        await push(table, rollout(1.0, version=2), "1", 2)


async def test_a_complete_group_waits_for_room_in_a_full_table(make_table: MakeTable) -> None:
    """Nothing is lost: the push says why it waits, and the service inserts it by itself when there is room."""
    table = await make_table(fresh_capacity=1, fill="none")
    await table.insert(make_group("first"))
    await push(table, rollout(0.0), "0", 2)
    result = await push(table, rollout(1.0), "1", 2, timeout_s=3.0)
    assert (result.outcome, result.rollouts) == (PENDING, 2)
    assert result.insert is not None
    assert isinstance(result.insert.error, TableFullError)
    with pytest.raises(GroupClosedError, match="without piece 2: it was complete"):
        await push(table, rollout(1.0), "2", 2)
    await table.train(1, step=1)
    await table.until(fresh=1)
    assert await partial_counts(table) == {"opened": 1, "closed": 1}


async def test_reset_and_rewind_drop_open_groups(make_table: MakeTable) -> None:
    """What is undone stays undone, also where only some rollouts of a group had come."""
    table = await make_table()
    await table.advance(2)
    await push(table, rollout(0.0, "old", version=1), "0")
    await push(table, rollout(0.0, "new", version=2), "0")
    await table.client.rewind_policy(Policy(run=table.run, version=1, weights_uri="w1"), step=0)
    await table.describe()
    assert open_groups(table) == {"old": ("0",)}
    await table.client.reset_table(**table.names)
    assert open_groups(table) == {}
    assert await partial_counts(table) == {"opened": 2, "dropped": 2}
    assert (await table.describe()).payload_bytes == 0


async def test_a_whole_group_that_comes_by_another_way_takes_the_place_of_its_pieces(make_table: MakeTable) -> None:
    """The group is there once, with what was inserted."""
    table = await make_table()
    await push(table, rollout(0.0), "0")
    group = make_group("g")
    assert await table.insert(group) == [InsertOutcome.INSERTED]
    assert (await push(table, rollout(0.0), "0")).outcome is DUPLICATE
    same(await taken(table), group)
    assert await partial_counts(table) == {"opened": 1, "dropped": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 0}, "group_size 0"),
        ({"group_size": 4097}, "group_size <= 4096"),
        ({"min_rollouts": 4}, "min_rollouts 4"),
        ({"close_after_s": 0.0}, "close_after_s 0.0 is not in 0.001 to 86400"),
        ({"piece_id": "a/b"}, "piece_id 'a/b' is not"),
    ],
)
async def test_numbers_out_of_range_are_refused(make_table: MakeTable, options: dict[str, Any], message: str) -> None:
    """Before anything travels."""
    table = await make_table()
    with pytest.raises(InvalidRequestError, match=message):
        await push(table, rollout(0.0), **{"piece_id": "0"} | options)


async def test_every_server_carries_out_the_times_of_all(make_table: MakeTable, redis_url: str, tmp_path: Path) -> None:
    """A group that was opened through one server is closed when that one is gone: its neighbour heard of it."""
    table = await make_table()
    other = ServerProcess(tmp_path, redis_url)
    await asyncio.to_thread(other.start)
    async with asyncio.timeout(30):
        await _push_through(other, table)
        await asyncio.to_thread(other.kill)
        await table.until(fresh=1)


async def _push_through(server: ServerProcess, table: TableUser) -> None:
    async with connect("async", server.grpc_address) as client:
        await client.push_rollout(
            rollout(1.0), group_size=3, piece_id="0", min_rollouts=1, close_after_s=1.0, **table.names
        )
