"""Limits of a table and its run count the groups that came before in the same call."""

from typing import Any

import pytest
from store_user import KEYS, StoreUser, incoming

from groupreplay.table_config import Fill, RateLimit, TableConfig


async def outcomes(store: StoreUser, count: int, **fields: Any) -> list[str]:
    """Insert so many groups of 100 bytes in one call; return the reason of each refusal, INSERTED of the others."""
    groups = [incoming(f"g{number}", payload=bytes(100), **fields) for number in range(count)]
    results = await store.insert(*groups)
    return [result.error.reason if result.error else str(result.outcome).upper() for result in results]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (TableConfig(fresh_capacity=3), "TABLE_FULL"),
        (TableConfig(capacity_bytes=399), "TABLE_FULL"),
        (TableConfig(fill=Fill.SAMPLE, rate_limit=RateLimit.queue(3)), "RATE_LIMITED"),
    ],
    ids=["groups", "bytes", "rate"],
)
async def test_a_table_takes_as_many_groups_of_a_call_as_fit(
    store: StoreUser, config: TableConfig, expected: str
) -> None:
    """The fourth of five is refused, and a later call finds the table as full."""
    store = StoreUser(store.store, store.connection, store.redis, ("limited", "train"))
    await store.make_table(config)
    assert await outcomes(store, 5) == ["INSERTED"] * 3 + [expected] * 2
    assert await outcomes(store, 5) == ["DUPLICATE"] * 3 + [expected] * 2
    state = await store.describe()
    assert (state.counters["inserted"], state.counters["inserted_effective"]) == (3, 3)


@pytest.mark.parametrize(("field", "most"), [("max_groups", 3), ("max_bytes", 399)])
async def test_a_quota_counts_the_groups_of_the_same_call(store: StoreUser, field: str, most: int) -> None:
    """In groups and in bytes."""
    store.redis.hset(KEYS.all()[1], field, most)
    assert await outcomes(store, 5) == ["INSERTED"] * 3 + ["QUOTA_EXCEEDED"] * 2


async def test_counts_of_a_call_are_those_of_its_groups(store: StoreUser) -> None:
    """By task, effective or not, with arrival in the order of the call; what was there before is not counted again."""
    groups = [incoming(f"g{n}", task="ab"[n % 2], effective=n % 3 > 0) for n in range(6)]
    await store.insert(*groups[:2])
    await store.insert(*groups, groups[5])
    state = await store.describe()
    assert {name: state.counters[name] for name in ("inserted", "inserted_effective", "inserted_ineffective")} == {
        "inserted": 6, "inserted_effective": 4, "inserted_ineffective": 2,
    }  # fmt: skip
    assert state.counters["duplicate"] == 3
    assert state.task_counters == {
        "inserted_effective:a": 2, "inserted_effective:b": 2, "inserted_ineffective:a": 1, "inserted_ineffective:b": 1,
    }  # fmt: skip
    assert (state.fresh, state.fresh_effective) == (6, 4)
    assert await store.take(6) == [f"g{n}" for n in range(6) if n % 3]
