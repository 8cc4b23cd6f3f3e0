"""Bad input is refused with a typed error that says what was tried, the value, the limit, the fix; nothing changes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from samples import effective, make_group
from table_user import MakeTable, TableUser
from unchanged import unchanged

from groupreplay import (
    AsyncClient,
    FinishReason,
    GroupReplayError,
    InvalidGroupError,
    InvalidRequestError,
    Policy,
    Rollout,
    RolloutGroup,
    TableConfig,
)

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"response_lengths": np.array([3], np.int32)}, "group bad: 1 response_lengths for 2 rewards"),
        ({"response_lengths": np.array([2, 3], np.int32)}, r"response_lengths \[2, 3\] .* sum to the 6 response_token"),
        ({"response_lengths": np.array([6, 0], np.int32)}, r"response_lengths \[6, 0\] must be at least 1 each"),
        ({"behaviour_logprobs": np.zeros(5, np.float32)}, "5 behaviour_logprobs for 6 response_token_ids"),
        ({"behaviour_logprobs": np.full(6, 0.1, np.float32)}, r"lie in \[0.1.*finite and at most 0"),
        ({"behaviour_logprobs": np.full(6, NAN, np.float32)}, r"lie in \[nan, nan\].*finite and at most 0"),
        ({"behaviour_logprobs": np.full(6, -INF, np.float32)}, r"lie in \[-inf.*finite and at most 0"),
        ({"rewards": np.array([0, NAN], np.float32)}, r"rewards \[0.0, nan\] are not all finite"),
        ({"rewards": np.array([INF, 0], np.float32)}, r"rewards \[inf, 0.0\] are not all finite"),
        ({"rewards": np.zeros(0, np.float32)}, "no rollouts; a group has at least one"),
        ({"loss_mask": np.ones(5, np.bool_)}, "5 loss_mask for 6 response_token_ids"),
        ({"finish_reasons": (FinishReason.STOP,)}, "1 finish_reasons for 2 rewards"),
        ({"response_texts": ("a", "b", "c")}, "3 response_texts for 2 rewards"),
        (
            {"version_spans": np.array([[1, 0]], np.int32)},
            r"version_spans must be \[S, 2\] with starts ascending from 0",
        ),
        ({"version_spans": np.array([[0, 0], [6, 0]], np.int32)}, "starts ascending from 0 below 6"),
        ({"version_spans": np.array([[0, 3]], np.int32)}, "cover versions 3 to 3, the group says 0 to 0"),
        ({"policy_version_max": 2**20}, "policy versions 0 to 1048576 are not ascending in 0 to 1048575"),
        ({"policy_version_min": -1}, "policy versions -1 to 0 are not ascending"),
        ({"prompt_id": "p" * 257}, "prompt_id 'ppp.* is not 1 to 256 bytes long"),
        ({"task": "t" * 129}, "task 'ttt.* is not 1 to 128 bytes long"),
        ({"producer_id": "a/b"}, "producer_id 'a/b' is not 1 to 128 characters of A-Z"),
        ({"prompt_token_ids": np.zeros((2, 2), np.int32)}, r"prompt_token_ids has shape \(2, 2\)"),
    ],
)
def test_a_group_that_contradicts_itself_cannot_be_made(fields: dict[str, Any], message: str) -> None:
    """Mistakes come out where they are made, before anything is sent."""
    with pytest.raises(InvalidGroupError, match=message):
        make_group("bad", **fields)


@pytest.mark.parametrize("group_id", ["", "a b", "x" * 129, "a/b"])
def test_a_group_id_has_a_small_alphabet(group_id: str) -> None:
    """Ids become parts of keys."""
    with pytest.raises(InvalidGroupError, match=r"group_id .* is not 1 to 128 characters of A-Z a-z 0-9"):
        make_group(group_id, prompt_id="p")


@pytest.mark.parametrize(
    ("rollouts", "message"),
    [
        ([], "group bad: no rollouts; a group has at least one"),
        (
            [Rollout(token_ids=[1, 2], behaviour_logprobs=[-1.0], reward=1.0)],
            "rollout 0 has 2 token_ids and 1 behaviour",
        ),
        ([Rollout(token_ids=[], behaviour_logprobs=[], reward=1.0)], r"response_lengths \[0\] must be at least 1 each"),
    ],
)
def test_rollouts_that_make_no_group_are_refused(rollouts: list[Rollout], message: str) -> None:
    """An empty group, an empty response, and lists of unequal length."""
    with pytest.raises(InvalidGroupError, match=message):
        RolloutGroup.from_rollouts(rollouts, group_id="bad", prompt_id="p", prompt_token_ids=[1], policy_version=0)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"x": np.zeros(2, np.complex128)}, r"group bad: column 'x' has dtype complex128; a payload holds \['float16'"),
        ({"prompt_text": np.zeros(2, np.uint8)}, r"column names \['prompt_text'\] are reserved; rename them"),
    ],
)
async def test_a_group_with_columns_that_cannot_travel_is_refused_before_it_does(
    make_table: MakeTable, columns: dict[str, Any], message: str
) -> None:
    """The columns that groupreplay uses itself, and dtypes that it does not carry."""
    table = await make_table()
    async with unchanged(table):
        with pytest.raises(InvalidGroupError, match=message):
            await table.insert(make_group("bad", columns=columns))


@pytest.mark.parametrize(
    ("group", "error", "message"),
    [
        (make_group("old", version=1), "StalePolicyVersionError", "group old: policy version 1 is 4 behind 5, table"),
        (make_group("new", version=6), "FuturePolicyVersionError", "group new: policy version 6 was never published"),
        (make_group("big", version=5, tokens=9000), "GroupTooLargeError", "group big: its payload is .* takes at most"),
        (make_group("tags", version=5, tags={str(n): "" for n in range(65)}), "InvalidGroupError", "65 tags, at most"),
        (
            make_group("head", version=5, tags={"x": "y" * 2**18}),
            "InvalidGroupError",
            "its header has 26.* bytes and 1",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_group_that_the_table_does_not_take_changes_nothing(
    make_table: MakeTable, group: RolloutGroup, error: str, message: str
) -> None:
    """Refused at the door, with the reason; neither index nor payload stays behind."""
    table = await make_table(max_staleness=3, max_group_bytes=100_000)
    await table.advance(5)
    await table.insert(*effective("a", version=5))
    async with unchanged(table):
        with pytest.raises(GroupReplayError, match=message) as raised:
            await table.insert(group)
    assert type(raised.value).__name__ == error


Call = Callable[[AsyncClient, dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c, t: c.next_batch(batch_size=0, timeout_s=0, **t), "batch_size 0 is not in 1 to 65536"),
        (lambda c, t: c.next_batch(batch_size=65537, timeout_s=0, **t), "batch_size 65537 is not in 1 to 65536"),
        (lambda c, t: c.next_batch(batch_size=1, lease_s=0.5, timeout_s=0, **t), "lease_s 0.5 is not in 1 to 86400"),
        (lambda c, t: c.next_batch(batch_size=1, lease_s=NAN, timeout_s=0, **t), "lease_s nan is not in 1 to 86400"),
        (lambda c, t: c.next_batch(batch_size=1, lease_s=INF, timeout_s=0, **t), "lease_s inf is not in 1 to 86400"),
        (lambda c, t: c.next_batch(batch_size=1, timeout_s=1e6, **t), "timeout_s .* is not in 0 to 86400"),
        (lambda c, t: c.next_batch(batch_size=1, lease_id="a b", timeout_s=0, **t), "lease_id 'a b' is not 1 to 128"),
        (lambda c, t: c.commit(lease_id="lease", step=-1, **t), "step -1 is not in 0 to"),
        (lambda c, t: c.commit(lease_id="lease", step=2**53, **t), "step 9007199254740992 is not in 0 to"),
        (lambda c, t: c.commit(lease_id="", step=1, **t), "lease_id '' is not 1 to 128 characters"),
        (lambda c, t: c.release(lease_id="a/b", **t), "lease_id 'a/b' is not 1 to 128 characters"),
        (lambda c, t: c.extend_lease(lease_id="lease", lease_s=0, **t), "lease_s 0.* is not in 1 to 86400"),
        (lambda c, t: c.locate_groups(["a b"], **t), "group_id 'a b' is not 1 to 128 characters"),
        (lambda c, t: c.locate_groups(["a"] * 10_001, **t), "10001 group_ids in one call, at most 10000; ask in pages"),
        (lambda c, t: c.request_admission(producer_id="", max_groups=1, **t), "producer_id '' is not 1 to 128"),
        (lambda c, t: c.request_admission(producer_id="p", max_groups=0, **t), "max_groups 0 is not in 1 to 65536"),
        (
            lambda c, t: c.request_admission(producer_id="p", max_groups=1, admission_s=0.1, **t),
            "admission_s 0.1 is not in 1 to 86400",
        ),
        (lambda c, t: c.advance_policy(Policy(run=t["run"], version=-1)), "version -1 is not in 0 to 1048575"),
        (
            lambda c, t: c.advance_policy(Policy(run=t["run"], version=1, weights_uri="u" * 4097)),
            "weights_uri is 4097 characters long, at most 4096",
        ),
        (
            lambda c, t: c.advance_policy(Policy(run=t["run"], version=1, weights_sha256="a" * 65)),
            "sha256 is 65 characters long, at most 64",
        ),
        (lambda c, t: c.get_policy(run="a b"), "run 'a b' is not 1 to 128 characters"),
        (lambda c, t: c.list_tables(run="a b"), "run 'a b' is not 1 to 128 characters"),
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
    ("config", "message"),
    [
        ({"replay_capacity": 0}, r"replay_capacity 0 is not in 1 to 2\^40"),
        ({"fresh_capacity": 2**40}, r"fresh_capacity 1099511627776 is not in 1 to 2\^40"),
        ({"max_group_bytes": -1}, "max_group_bytes -1 is not in 1"),
        ({"max_staleness": -1}, "max_staleness -1 is not in 0"),
        ({"max_times_sampled": 0}, "max_times_sampled 0 is not in 1"),
        ({"ahead_groups": -1}, "ahead_groups -1 is not in 0"),
        ({"min_reward_std": NAN}, "min_reward_std nan is not a finite number of at least 0"),
        ({"min_reward_std": -0.5}, "min_reward_std -0.5 is not a finite number of at least 0"),
    ],
)
def test_a_configuration_out_of_range_cannot_be_made(config: dict[str, Any], message: str) -> None:
    """A table is not made with limits that mean nothing."""
    with pytest.raises(InvalidRequestError, match=message):
        TableConfig(**config)


async def test_the_errors_of_a_lease_change_nothing(make_table: MakeTable) -> None:
    """A commit that comes too late, of a batch that somebody else has."""
    table: TableUser = await make_table()
    await table.insert(*effective("a", "b"))
    late = await table.take(1)
    table.expire_leases()
    other = await table.take(2)
    async with unchanged(table):
        with pytest.raises(GroupReplayError, match="1 of its 1 fresh groups were taken again or left since; discard"):
            await table.commit(late, step=1)
    await table.commit(other, step=1)
    async with unchanged(table):
        with pytest.raises(GroupReplayError, match="1 of its 1 fresh groups were taken again or left since; discard"):
            await table.commit(late, step=2)
