"""What inserting groups promises."""

import asyncio
from typing import Any

import numpy as np
import pytest
from samples import effective, ids, ineffective, make_group, same
from table_user import MakeTable

from groupreplay import FinishReason, GroupState, InsertOutcome, StalePolicyVersionError, TableFullError

INSERTED, DUPLICATE, REFUSED = InsertOutcome.INSERTED, InsertOutcome.DUPLICATE, InsertOutcome.REFUSED


async def test_an_inserted_group_is_fresh_and_counted(make_table: MakeTable) -> None:
    """What you insert waits for the next batch, and the table says so."""
    table = await make_table()
    assert await table.insert(make_group("a")) == [INSERTED]
    assert await table.locate("a", "never-seen") == [GroupState.FRESH, GroupState.UNKNOWN]
    state = await table.describe()
    assert (state.fresh, state.fresh_effective, state.replay, state.leased, state.leases) == (1, 1, 0, 0, 0)
    assert state.counters == {"inserted": 1, "inserted_effective": 1}
    assert state.last_insert_ms > 0


async def test_a_group_comes_out_as_it_went_in(make_table: MakeTable) -> None:
    """Every field of a group survives the way through the service."""
    group = make_group(
        "rich",
        rewards=(0.25, -1.0, 3.5),
        tokens=4,
        loss_mask=np.arange(12) % 3 > 0,
        version_spans=np.array([[0, 0], [7, 2]], np.int32),
        policy_version_max=2,
        finish_reasons=(FinishReason.STOP, FinishReason.LENGTH, FinishReason.ABORT),
        task="gsm8k",
        producer_id="node-1",
        created_at_ms=1234,
        tags={"split": "train", "ключ": "значение"},
        prompt_text="2 + 2 = ?",
        response_texts=("4", "", "vier 🙂"),
        columns={
            "routed_experts": np.arange(24, dtype=np.uint8).reshape(12, 2),
            "temperature": np.array(0.7),
            "empty": np.zeros((0, 5), np.float16),
        },
    )
    table = await make_table()
    await table.advance(2)
    await table.insert(group)
    delivered = (await table.take(1)).groups[0].group
    same(delivered, group)
    assert not delivered.response_token_ids.flags.writeable


async def test_insert_of_the_same_group_twice_stores_it_once(make_table: MakeTable) -> None:
    """Repeating an insert is safe."""
    table = await make_table()
    assert await table.insert(make_group("a"), make_group("a")) == [INSERTED, DUPLICATE]
    state = await table.describe()
    assert (state.fresh, state.counters["inserted"], state.counters["duplicate"]) == (1, 1, 1)


async def test_insert_of_a_known_group_changes_nothing_wherever_the_group_is(make_table: MakeTable) -> None:
    """A late retry finds its group leased, in replay, or gone, and leaves it there with its payload."""
    table = await make_table()
    again = effective("replayed", "leased")
    await table.insert(again[0], *ineffective("gone"))
    await table.train(2, step=1)
    await table.insert(again[1])
    batch = await table.take(1)
    assert await table.insert(*again, *ineffective("gone")) == [DUPLICATE] * 3
    assert await table.locate("replayed", "leased", "gone") == [GroupState.REPLAY, GroupState.LEASED, GroupState.GONE]
    assert ids(await table.take(1, lease_id=batch.lease_id)) == ["leased"]
    await table.commit(batch, step=2)
    assert await table.replay_order(2) == ["leased", "replayed"]


async def test_many_groups_arrive_in_their_order(make_table: MakeTable) -> None:
    """insert_many keeps the order over several windows, and answers for each group."""
    table = await make_table()
    names = [f"g{number:03}" for number in range(300)]
    results = await table.insert_many(effective(*names))
    assert [(result.group_id, result.outcome) for result in results] == [(name, INSERTED) for name in names]
    assert ids(await table.take(300)) == names


async def test_a_refused_group_does_not_hold_up_the_others(make_table: MakeTable) -> None:
    """In a stream each group has its own answer, with the error of the refused one."""
    table = await make_table(max_staleness=0)
    await table.advance(1)
    groups = [*effective("a", version=1), *effective("old", version=0), *effective("b", version=1)]
    results = await table.insert_many(groups)
    assert [result.outcome for result in results] == [INSERTED, REFUSED, INSERTED]
    assert isinstance(results[1].error, StalePolicyVersionError)
    assert ids(await table.take(2)) == ["a", "b"]


async def test_a_group_is_twice_in_one_insert_and_stored_once(make_table: MakeTable) -> None:
    """Duplicates inside one call are found too."""
    table = await make_table()
    results = await table.insert_many(effective("a", "a", "b"))
    assert [result.outcome for result in results] == [INSERTED, DUPLICATE, INSERTED]
    assert (await table.describe()).fresh == 2


async def test_concurrent_inserts_of_one_group_store_it_once(make_table: MakeTable) -> None:
    """Two producers with one group id: one wins, and the group keeps its payload."""
    table = await make_table()
    outcomes = await asyncio.gather(*(table.insert(make_group("a")) for _ in range(8)))
    assert sorted(outcome for [outcome] in outcomes) == [DUPLICATE] * 7 + [INSERTED]
    assert ids(await table.take(1)) == ["a"]


async def test_a_full_table_refuses_until_the_timeout_and_takes_again_when_there_is_room(make_table: MakeTable) -> None:
    """fresh_capacity holds producers back; an insert waits for room as long as its timeout allows."""
    table = await make_table(fresh_capacity=2, fill="none")
    await table.insert(*effective("a", "b"))
    with pytest.raises(TableFullError, match=r"c.*holds 2 groups.*fresh_capacity.*slow the producers down"):
        await table.client.insert(make_group("c"), timeout_s=3.0, **table.names)
    assert await table.locate("c") == [GroupState.UNKNOWN]
    waiting = asyncio.create_task(table.insert(make_group("c")))
    while "refused_table_full" not in (await table.describe()).counters:
        pass
    await table.train(2, step=1)
    assert await waiting == [INSERTED]


async def test_insert_many_sends_again_only_the_groups_that_found_no_room(make_table: MakeTable) -> None:
    """A window that fits only in part is completed as room comes, each group stored once."""
    table = await make_table(fresh_capacity=3)
    results = await table.insert_many(effective("a", "b", "c", "d"), timeout_s=3.0)
    assert [result.outcome for result in results] == [INSERTED, INSERTED, INSERTED, REFUSED]
    assert isinstance(results[3].error, TableFullError)
    assert (await table.counters())["inserted"] == 3
    assert "duplicate" not in await table.counters()


@pytest.mark.parametrize("fill", ["replay", "none", "resample"])
async def test_the_payload_of_an_ineffective_group_is_not_kept(make_table: MakeTable, fill: str) -> None:
    """A group that no batch will ever hold costs a header, no payload."""
    table = await make_table(fill=fill)
    await table.insert(*ineffective("a"))
    assert (await table.describe()).payload_bytes == 0
    assert not list(table.redis.scan_iter(f"gr1:payload:{table.run}/*"))


@pytest.mark.parametrize("config", [{"fill": "keep"}, {"keep_ineffective_payload": True}])
async def test_the_payload_of_an_ineffective_group_is_kept_where_it_is_wanted(
    make_table: MakeTable, config: dict[str, Any]
) -> None:
    """A table that trains on all groups, or is told to, keeps every payload."""
    table = await make_table(**config)
    await table.insert(*ineffective("a"))
    assert (await table.describe()).payload_bytes > 0


async def test_the_threshold_of_effective_is_the_tables(make_table: MakeTable) -> None:
    """A standard deviation of exactly min_reward_std is not above it."""
    table = await make_table(min_reward_std=0.5, fill="none")
    await table.insert(make_group("at", rewards=(0.0, 1.0)), make_group("above", rewards=(0.0, 1.5)))
    assert (await table.describe()).fresh_effective == 1
    assert ids(await table.take(2)) == ["above"]
