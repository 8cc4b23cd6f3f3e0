"""Making tables and looking at them."""

from typing import Any

import pytest
from samples import effective, ineffective
from table_user import MakeTable

from groupreplay import (
    Fill,
    GroupState,
    InvalidRequestError,
    TableConfig,
    TableExistsError,
    UnknownRunError,
    UnknownTableError,
)

EVERYTHING = TableConfig(
    fill=Fill.RESAMPLE,
    replay_capacity=2**40 - 1,
    fresh_capacity=17,
    max_staleness=0,
    max_times_sampled=3,
    min_reward_std=0.1,
    max_group_bytes=12345,
    allow_repeated_prompts=True,
    keep_ineffective_payload=True,
    ahead_groups=0,
)


@pytest.mark.parametrize("config", [TableConfig(), EVERYTHING], ids=["defaults", "everything"])
async def test_a_new_table_is_empty_and_has_its_configuration(make_table: MakeTable, config: TableConfig) -> None:
    """What you configure is what describe_table shows, zeros and absences included."""
    table = await make_table(**{name: getattr(config, name) for name in TableConfig.__slots__})
    state = await table.describe()
    assert state.config == config
    assert (state.run, state.table, state.policy_version, state.last_insert_ms) == (table.run, "train", 0, 0)
    assert (state.fresh, state.replay, state.leased, state.leases, state.payload_bytes, state.missing) == (0,) * 6
    assert state.counters == {}


async def test_making_the_same_table_again_changes_nothing(make_table: MakeTable) -> None:
    """Every process may create the tables it needs at its start."""
    table = await make_table()
    await table.insert(*effective("a"))
    before = await table.describe()
    assert await table.client.create_table(**table.names) == before


async def test_a_table_with_another_configuration_is_refused(make_table: MakeTable) -> None:
    """The message names every difference."""
    table = await make_table(max_staleness=3)
    before = await table.describe()
    with pytest.raises(TableExistsError, match="max_staleness is 3, not None; take another name or its values"):
        await table.client.create_table(config=TableConfig(fill=Fill.NONE), **table.names)
    assert await table.describe() == before


async def test_tables_of_a_run_share_its_policy_clock_and_nothing_else(make_table: MakeTable) -> None:
    """The same group id may be in two tables."""
    train, test = await make_table("train"), await make_table("test", fill="keep")
    await train.insert(*effective("a"))
    await test.insert(*ineffective("a"))
    await train.advance(4)
    assert [(await table.describe()).policy_version for table in (train, test)] == [4, 4]
    await train.train(1, step=1)
    assert await train.locate("a") == [GroupState.REPLAY]
    assert await test.locate("a") == [GroupState.FRESH]
    assert await test.train(1, step=1) == ["a"]


async def test_list_tables_shows_all_tables_or_those_of_a_run(make_table: MakeTable) -> None:
    """Sorted by run, then by table, with their state."""
    first, second = await make_table("b"), await make_table("a")
    await first.client.create_table(run="zz-other", table="x")
    await first.insert(*effective("g"))
    listed = await first.client.list_tables(run=first.run)
    assert listed == [await second.describe(), await first.describe()]
    everything = await first.client.list_tables()
    assert [(table.run, table.table) for table in everything] == [
        (first.run, "a"),
        (first.run, "b"),
        ("zz-other", "x"),
    ]


async def test_no_tables_at_all_is_an_empty_list(make_table: MakeTable) -> None:
    """A new service has none."""
    assert await make_table._client.list_tables() == []


async def test_a_run_or_table_that_is_not_there_is_named_by_every_call(make_table: MakeTable) -> None:
    """A typing error comes out at the first call, and says what to do."""
    table = await make_table()
    client = table.client
    missing: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"run": "no-run", "table": "train"}, UnknownRunError, "there is no run no-run; creating its first table"),
        ({"run": table.run, "table": "no-table"}, UnknownTableError, f"no table {table.run}/no-table; create it first"),
    ]
    for names, error, message in missing:
        for call in (
            client.describe_table(**names),
            client.insert(effective("a")[0], **names),
            client.next_batch(batch_size=1, timeout_s=0, **names),
            client.request_admission(producer_id="p", max_groups=1, timeout_s=0, **names),
            client.locate_groups(["a"], **names),
        ):
            with pytest.raises(error, match=message):
                await call
    with pytest.raises(UnknownRunError, match="no-run"):
        await client.list_tables(run="no-run")
    assert await client.list_tables() == [await table.describe()]


@pytest.mark.parametrize("name", ["", "a/b", "a b", "a:b", "{a}", "ä", "a\n", "x" * 129])
async def test_names_with_other_characters_are_refused(make_table: MakeTable, name: str) -> None:
    """Names become parts of keys and addresses, so their alphabet is small."""
    table = await make_table()
    keys = set(table.redis.scan_iter())
    both: list[dict[str, Any]] = [{"run": name, "table": "train"}, {"run": table.run, "table": name}]
    for names in both:
        with pytest.raises(InvalidRequestError, match=r"(run|table) .* is not 1 to 128 characters of A-Z a-z 0-9"):
            await table.client.create_table(**names)
    assert set(table.redis.scan_iter()) == keys


async def test_the_longest_names_are_taken(make_table: MakeTable) -> None:
    """128 characters, and every one of the alphabet."""
    name = "AZaz09._-" + "x" * 119
    table = await make_table(name)
    await table.insert(*effective(name))
    assert await table.train(1, step=1) == [name]
