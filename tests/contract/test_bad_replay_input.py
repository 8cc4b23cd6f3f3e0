"""Bad input to what samples, weighs, limits and empties tables is refused with a typed error, and changes nothing."""

from collections.abc import Callable
from typing import Any

import pytest
from samples import effective, make_group
from table_user import MakeTable
from unchanged import unchanged

from groupreplay import (
    AsyncClient,
    GroupFeedback,
    InvalidGroupError,
    InvalidRequestError,
    Policy,
    RateLimit,
    TableConfig,
    UnknownRunError,
    UnknownTableError,
)

NAN, INF = float("nan"), float("inf")
Call = Callable[[AsyncClient, dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c, t: c.sample(batch_size=0, timeout_s=0, **t), "batch_size 0 is not in 1 to 65536"),
        (lambda c, t: c.sample(batch_size=65537, timeout_s=0, **t), "batch_size 65537 is not in 1 to 65536"),
        (lambda c, t: c.sample(batch_size=1, lease_s=0.5, timeout_s=0, **t), "lease_s 0.5 is not in 1 to 86400"),
        (lambda c, t: c.sample(batch_size=1, timeout_s=1e6, **t), "timeout_s .* is not in 0 to 86400"),
        (lambda c, t: c.sample(batch_size=1, lease_id="a b", timeout_s=0, **t), "lease_id 'a b' is not 1 to 128"),
        (lambda c, t: c.get_groups(["a b"], **t), "group_id 'a b' is not 1 to 128 characters"),
        (lambda c, t: c.get_groups(["a"] * 10_001, **t), "10001 group_ids in one call, at most 10000; ask in pages"),
        (lambda c, t: c.delete_groups(["a/b"], **t), "group_id 'a/b' is not 1 to 128 characters"),
        (lambda c, t: c.delete_groups(["a"] * 10_001, **t), "10001 group_ids in one call, at most 10000"),
        (
            lambda c, t: c.update_priorities([GroupFeedback(group_id="a")] * 65_537, **t),
            "feedback on 65537 groups in one call, at most 65536",
        ),
        (lambda c, t: c.rewind_policy(Policy(run=t["run"], version=-1), step=0), "version -1 is not in 0 to 1048575"),
        (lambda c, t: c.rewind_policy(Policy(run=t["run"], version=0), step=-1), "step -1 is not in 0 to"),
        (
            lambda c, t: c.rewind_policy(Policy(run=t["run"], version=0), step=0, rewind_id="a b"),
            "rewind_id 'a b' is not 1 to 128 characters",
        ),
        (
            lambda c, t: c.advance_policy(Policy(run=t["run"], version=1, label="l" * 257)),
            "label is 257 characters long, at most 256",
        ),
        (lambda c, t: c.resolve_policy(run="a b", label="x"), "run 'a b' is not 1 to 128 characters"),
        (lambda c, t: c.get_quota(run="a b"), "run 'a b' is not 1 to 128 characters"),
        (lambda c, t: c.set_quota(run=t["run"], max_groups=2**53), "max_groups 9007199254740992 is not in 0 to"),
        (lambda c, t: c.reset_table(run=t["run"], table="a b"), "table 'a b' is not 1 to 128 characters"),
    ],
)
async def test_a_request_out_of_range_changes_nothing(make_table: MakeTable, call: Call, message: str) -> None:
    """The message has the field, its value and its range."""
    table = await make_table()
    await table.insert(*effective("a"))
    async with unchanged(table):
        with pytest.raises(InvalidRequestError, match=message):
            await call(table.client, table.names)


@pytest.mark.parametrize(
    "call",
    [
        lambda c, t: c.sample(batch_size=1, timeout_s=0, **t),
        lambda c, t: c.get_groups(["a"], **t),
        lambda c, t: c.delete_groups(["a"], **t),
        lambda c, t: c.update_priorities([GroupFeedback(group_id="a", kl=0.1)], **t),
        lambda c, t: c.reset_table(**t),
        lambda c, t: c.update_table(config=TableConfig(), **t),
    ],
)
async def test_unknown_tables_and_runs_are_named(make_table: MakeTable, call: Call) -> None:
    """And not made by being asked for."""
    table = await make_table()
    async with unchanged(table):
        with pytest.raises(UnknownTableError, match=rf"there is no table {table.run}/none; create it first"):
            await call(table.client, {"run": table.run, "table": "none"})
        with pytest.raises(UnknownRunError, match="there is no run nobody; creating its first table makes it"):
            await call(table.client, {"run": "nobody", "table": "none"})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"alpha": -1.0}, "alpha -1.0 is not a finite number of at least 0"),
        ({"kl_decay": INF}, "kl_decay inf is not a finite number of at least 0"),
        ({"ess_alpha": NAN}, "ess_alpha nan is not a finite number of at least 0"),
        ({"recency_decay": 0.0}, r"recency_decay 0.0 is not in \(0, 1\]"),
        ({"use_decay": 1.5}, r"use_decay 1.5 is not in \(0, 1\]"),
        ({"importance_beta": 1.1}, r"importance_beta 1.1 is not in \[0, 1\]"),
        ({"min_staleness": -1}, "min_staleness -1 is not in 0 to"),
        ({"min_staleness": 3, "max_staleness": 2}, "min_staleness 3 above max_staleness 2 leaves nothing to draw"),
        ({"max_kl": -0.1}, "max_kl -0.1 is not a finite number of at least 0"),
        ({"ttl_s": 0.0}, r"ttl_s 0.0 is not in \(0, 10\^9\] seconds"),
        ({"capacity_bytes": 0}, "capacity_bytes 0 is not in 1 to"),
        ({"groups_per_version": 0, "max_staleness": 1}, "groups_per_version 0 is not in 1 to"),
        ({"groups_per_version": 2}, "groups_per_version needs max_staleness"),
        ({"rate_limit": RateLimit.queue(1)}, "rate_limit needs fill sample, not replay"),
    ],
)
def test_a_configuration_that_means_nothing_cannot_be_made(config: dict[str, Any], message: str) -> None:
    """Limits out of range, and limits that contradict each other."""
    with pytest.raises(InvalidRequestError, match=message):
        TableConfig(**config)


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({"samples_per_insert": 0.0, "error_buffer": 1.0}, "samples_per_insert 0.0 is not finite and above 0"),
        ({"samples_per_insert": NAN, "error_buffer": 1.0}, "samples_per_insert nan is not finite and above 0"),
        (
            {"samples_per_insert": 1.0, "min_size_to_sample": 0, "error_buffer": 1.0},
            "min_size_to_sample 0 is not in 1 to",
        ),
        (
            {"samples_per_insert": 4.0, "error_buffer": 1.0},
            "min_diff 3.0 and max_diff 5.0 leave no room for one insert",
        ),
        ({"samples_per_insert": 1.0, "error_buffer": INF}, "min_diff -inf and max_diff inf leave no room"),
    ],
)
def test_a_rate_limit_that_would_stop_both_sides_cannot_be_made(limit: dict[str, Any], message: str) -> None:
    """Each side must always be able to go on after the other."""
    with pytest.raises(InvalidRequestError, match=message):
        RateLimit.of(**limit)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"priority": -1.0}, "group a: priority -1.0 is not a finite number of at least 0"),
        ({"kl": NAN}, "group a: kl nan is not a finite number of at least 0"),
        ({"ess": 0.0}, r"group a: ess 0.0 is not in \(0, 1\]"),
        ({"ess": 1.1}, r"group a: ess 1.1 is not in \(0, 1\]"),
    ],
)
def test_feedback_out_of_range_cannot_be_made(values: dict[str, float], message: str) -> None:
    """Nor can a group with such a priority."""
    with pytest.raises(InvalidRequestError, match=message):
        GroupFeedback(group_id="a", **values)
    with pytest.raises(InvalidGroupError, match="priority inf is not a finite number of at least 0"):
        make_group("a", priority=INF)
