"""Groups listed page by page, without taking them."""

from typing import Any

import pytest
from samples import effective, ineffective, make_group
from table_user import MakeTable, TableUser
from unchanged import unchanged

from groupreplay import FinishReason, GroupFeedback, GroupState, InvalidRequestError, ListedGroup, UnknownTableError
from groupreplay.v1 import replay_service_pb2 as pb


async def pages(table: TableUser, **options: Any) -> list[list[ListedGroup]]:
    """Return all pages of a listing."""
    found, cursor = [], ""
    while True:
        page = await table.client.list_groups(cursor=cursor, **table.names, **options)
        found.append(list(page.groups))
        cursor = page.next_cursor
        if not cursor:
            return found


async def listed(table: TableUser, **options: Any) -> list[str]:
    """Return the ids of a whole listing."""
    return [group.group_id for page in await pages(table, **options) for group in page]


async def in_all_places(make_table: MakeTable) -> TableUser:
    """Return a table with b c in replay, d e in a lease, f g fresh; version 1."""
    table = await make_table()
    await table.insert(*effective("b", "c", task="sums"), *ineffective("x"))
    await table.train(3, 1)
    await table.advance(1)
    await table.insert(*effective("d", "e", version=1))
    await table.take(2, lease_id="step-2")
    await table.insert(*effective("f", task="sums"), *ineffective("g", version=1))
    return table


async def test_groups_are_listed_by_place_and_newest_first(make_table: MakeTable) -> None:
    """Fresh, then leased, then replay; what left is not listed, and looking changes nothing."""
    table = await in_all_places(make_table)
    async with unchanged(table):
        [groups] = await pages(table)
    assert [group.group_id for group in groups if group.state is not GroupState.LEASED] == ["g", "f", "c", "b"]
    leased = {group.group_id: group.lease_id for group in groups if group.state is GroupState.LEASED}
    assert leased == {"d": "step-2", "e": "step-2"}
    states = [group.state for group in groups]
    assert states == [GroupState.FRESH] * 2 + [GroupState.LEASED] * 2 + [GroupState.REPLAY] * 2


async def test_a_listed_group_says_all_but_its_tokens(make_table: MakeTable) -> None:
    """What its producer said of it, and what the table knows."""
    table = await make_table(max_staleness=9)
    group = make_group(
        "a",
        prompt_id="p",
        rewards=(0.25, 1.0),
        tokens=5,
        task="sums",
        producer_id="gpu-1",
        finish_reasons=(FinishReason.STOP, FinishReason.LENGTH),
        tags={"level": "3"},
        created_at_ms=1234,
        priority=2.0,
    )
    await table.insert(group)
    await table.advance(2)
    batch = await table.take(1)
    await table.commit(batch, 1, GroupFeedback(group_id="a", priority=0.5, kl=0.125))
    [[found]] = await pages(table)
    assert (found.prompt_id, found.task, found.producer_id, found.tags) == ("p", "sums", "gpu-1", {"level": "3"})
    assert (found.rewards, found.response_lengths, found.prompt_length) == ((0.25, 1.0), (5, 5), 2)
    assert found.finish_reasons == (FinishReason.STOP, FinishReason.LENGTH)
    assert (found.state, found.effective, found.staleness, found.times_sampled) == (GroupState.REPLAY, True, 2, 1)
    assert (found.priority, found.kl, found.ess, found.redeliveries) == (0.5, 0.125, None, 0)
    assert found.created_at_ms == 1234
    assert found.inserted_at_ms == (await table.describe()).last_insert_ms
    assert found.payload_bytes > 0


async def test_a_group_without_payload_says_so_and_what_came_back_is_counted(make_table: MakeTable) -> None:
    """Ineffective groups keep their header only."""
    table = await make_table()
    await table.insert(*ineffective("x"))
    await table.release(await table.take(1))
    [[found]] = await pages(table)
    assert (found.payload_bytes, found.effective, found.redeliveries, found.times_sampled) == (0, False, 1, 0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"states": [GroupState.REPLAY]}, ["c", "b"]),
        ({"states": [GroupState.REPLAY, GroupState.FRESH]}, ["g", "f", "c", "b"]),
        ({"task": "sums"}, ["f", "c", "b"]),
        ({"task": "sums", "states": [GroupState.FRESH]}, ["f"]),
        ({"task": "", "effective": False}, ["g"]),
        ({"effective": True, "states": [GroupState.FRESH]}, ["f"]),
        ({"prompt_id": "prompt-of-b"}, ["b"]),
        ({"policy_version_to": 0}, ["f", "c", "b"]),
        ({"policy_version_from": 1, "states": [GroupState.FRESH, GroupState.REPLAY]}, ["g"]),
        ({"policy_version_from": 2}, []),
    ],
)
async def test_only_wanted_groups_are_listed(
    make_table: MakeTable, options: dict[str, Any], expected: list[str]
) -> None:
    """By place, task, prompt, reward variance and oldest policy version."""
    assert await listed(await in_all_places(make_table), **options) == expected


async def test_replay_is_listed_from_the_newest_policy_version(make_table: MakeTable) -> None:
    """Not in the order of arrival: what was sampled by an older policy may arrive late."""
    table = await make_table()
    await table.advance(3)
    await table.insert(*effective("a", version=3), *effective("b", version=1), *effective("c", version=2))
    await table.train(3, 1)
    assert await listed(table, limit=1) == ["a", "c", "b"]
    assert await listed(table, policy_version_from=2, policy_version_to=2) == ["c"]


@pytest.mark.parametrize("limit", [1, 2, 3, 1000])
async def test_pages_have_every_group_once(make_table: MakeTable, limit: int) -> None:
    """However large they are, over all places."""
    table = await in_all_places(make_table)
    found = await pages(table, limit=limit)
    assert all(len(page) <= limit for page in found)
    assert sorted(group.group_id for page in found for group in page) == ["b", "c", "d", "e", "f", "g"]


async def test_groups_that_come_and_go_do_not_shift_a_listing(make_table: MakeTable) -> None:
    """A page goes on behind the last group of the page before, whether that is still there or not."""
    table = await make_table()
    await table.insert(*effective("a", "b", "c", "d"))
    first = await table.client.list_groups(limit=2, **table.names)
    await table.insert(*effective("e"))
    await table.client.delete_groups(["c", "d"], **table.names)
    second = await table.client.list_groups(limit=2, cursor=first.next_cursor, **table.names)
    assert [group.group_id for group in (*first.groups, *second.groups)] == ["d", "c", "b", "a"]


async def test_a_large_table_is_listed_in_bounded_steps(make_table: MakeTable) -> None:
    """A page that looks for what is rare ends before it has looked at everything; leased groups are found all."""
    table = await make_table(allow_repeated_prompts=True)
    many = [f"g{number}" for number in range(2500)]
    await table.insert_many(effective("rare", task="rare"))
    await table.insert_many(effective(*many))
    assert [[group.group_id for group in page] for page in await pages(table, task="rare")] == [[], ["rare"]]
    await table.take(2501)
    found = await pages(table, states=[GroupState.LEASED], limit=700)
    assert sorted(group.group_id for page in found for group in page) == sorted(["rare", *many])
    assert [len(page) for page in found][:3] == [700, 700, 700]


async def test_large_headers_make_small_pages(make_table: MakeTable) -> None:
    """A page stays below what one gRPC message may hold."""
    table = await make_table()
    await table.insert(*(make_group(f"g{number}", tags={"note": "x" * 200_000}) for number in range(24)))
    found = await pages(table, limit=1000)
    assert [len(page) for page in found] == [11, 11, 2]


async def test_bad_requests_for_a_listing_are_refused(make_table: MakeTable) -> None:
    """Each with its own words."""
    table = await in_all_places(make_table)
    with pytest.raises(InvalidRequestError, match="limit 1001 is not in 1 to 1000"):
        await listed(table, limit=1001)
    with pytest.raises(InvalidRequestError, match="states gone cannot be listed"):
        await listed(table, states=[GroupState.GONE])
    with pytest.raises(InvalidRequestError, match="policy_version_to 1048576 is not in 0 to 1048575"):
        await listed(table, policy_version_to=2**20)
    for cursor in ("x", "gone:1:", "fresh:-1:", "fresh:1:a:b", "replay:1:"):
        with pytest.raises(InvalidRequestError, match="is not the next_cursor of a page of this listing"):
            await table.client.list_groups(cursor=cursor, states=[GroupState.FRESH], **table.names)
    with pytest.raises(UnknownTableError):
        await table.client.list_groups(run=table.run, table="other")


async def test_a_request_without_limit_and_filters_lists_what_there_is(make_table: MakeTable, stub: Any) -> None:
    """As REST clients and others that leave out what they do not need send it."""
    table = await in_all_places(make_table)
    response = await stub.ListGroups(pb.ListGroupsRequest(**table.names))
    assert (len(response.groups), response.next_cursor) == (6, "")


async def test_a_table_says_which_versions_its_replay_has(make_table: MakeTable) -> None:
    """Nothing while it is empty; then the oldest and the newest."""
    table = await make_table()
    await table.advance(3)
    assert ((await table.describe()).replay_version_min, (await table.describe()).replay_version_max) == (None, None)
    await table.insert(*effective("a", version=3), *effective("b", version=0), *effective("c", version=2))
    await table.train(3, 1)
    assert ((await table.describe()).replay_version_min, (await table.describe()).replay_version_max) == (0, 3)
