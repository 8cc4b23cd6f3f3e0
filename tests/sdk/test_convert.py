"""Messages to dataclasses and back."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import make_group, same, table_configs

from groupreplay import (
    FinishReason,
    GroupState,
    InsertOutcome,
    InsertResult,
    InternalError,
    InvalidGroupError,
    Policy,
    RolloutGroup,
    Table,
    TableConfig,
    TableFullError,
    convert,
    convert_tables,
)
from groupreplay.groups import MAX_POLICY_VERSION
from groupreplay.types import GroupSource
from groupreplay.v1 import group_pb2, replay_service_pb2, table_pb2

names = st.from_regex(r"\A[A-Za-z0-9._-]{1,128}\Z")


@st.composite
def groups(draw: st.DrawFn) -> RolloutGroup:
    """Any valid group."""
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    tokens, rollouts = sum(lengths), len(lengths)
    low = draw(st.integers(0, MAX_POLICY_VERSION))
    floats = st.floats(max_value=0, allow_infinity=False, width=32)

    def maybe(strategy: st.SearchStrategy[Any]) -> Any:
        return draw(st.none() | strategy)

    return RolloutGroup(
        group_id=draw(names),
        prompt_id=draw(st.text(min_size=1, max_size=60)),
        prompt_token_ids=np.array(draw(st.lists(st.integers(0, 2**31 - 1), max_size=5)), np.int32),
        response_token_ids=np.array(
            draw(st.lists(st.integers(0, 2**31 - 1), min_size=tokens, max_size=tokens)), np.int32
        ),
        response_lengths=np.array(lengths, np.int32),
        behaviour_logprobs=np.array(draw(st.lists(floats, min_size=tokens, max_size=tokens)), np.float32),
        rewards=np.array(draw(st.lists(floats, min_size=rollouts, max_size=rollouts)), np.float32),
        policy_version_min=low,
        policy_version_max=low,
        loss_mask=maybe(st.lists(st.booleans(), min_size=tokens, max_size=tokens).map(np.array)),
        version_spans=maybe(st.just(np.array([[0, low]], np.int32))),
        finish_reasons=tuple(
            maybe(st.lists(st.sampled_from(FinishReason), min_size=rollouts, max_size=rollouts)) or ()
        ),
        task=draw(st.text(max_size=30)),
        producer_id=draw(st.just("") | names),
        created_at_ms=draw(st.integers(0, 2**62)),
        tags=draw(st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=4)),
        prompt_text=maybe(st.text()),
        response_texts=maybe(st.lists(st.text(), min_size=rollouts, max_size=rollouts).map(tuple)),
        columns=draw(st.dictionaries(st.just("extra"), st.just(np.ones((2, 3), np.float16)))),
    )


@given(groups())
@settings(max_examples=60)
def test_groups_survive_their_way_through_the_wire(group: RolloutGroup) -> None:
    """Header and payload hold everything."""
    header, payload = convert.group_to_wire(group)
    same(convert.group_from_wire(group_pb2.GroupHeader.FromString(header.SerializeToString()), payload), group)


def rich_wire() -> tuple[group_pb2.GroupHeader, bytes]:
    """Return a group with every column."""
    return convert.group_to_wire(
        make_group(
            "rich",
            loss_mask=np.array([1, 1, 0, 1, 1, 1], np.bool_),
            version_spans=np.array([[0, 0]], np.int32),
            finish_reasons=(FinishReason.STOP, FinishReason.STOP),
            prompt_text="?",
            response_texts=("a", "b"),
            columns={"x": np.zeros((2, 3), np.float32)},
        )
    )


def complaint(header: group_pb2.GroupHeader, payload: bytes) -> str:
    """Return what is wrong with a group, or that nothing is; any error but InvalidGroupError comes out."""
    try:
        convert.group_from_wire(header, payload)
    except InvalidGroupError as error:
        return str(error)
    return "group rich: nothing is wrong"


extents = st.sampled_from([0, 1, 2, 3, 6, 7, 12, 2**31, 2**40, 2**63])


@given(st.data())
@settings(max_examples=300)
def test_a_damaged_header_is_an_invalid_group_and_no_other_error(data: st.DataObject) -> None:
    """Whatever dtype, shape, name or number a header claims, the answer is a group or InvalidGroupError."""
    header, payload = rich_wire()
    for _ in range(data.draw(st.integers(1, 2))):
        column = header.columns[data.draw(st.integers(0, len(header.columns) - 1))]
        damage = data.draw(st.sampled_from(["dtype", "shape", "name", "lengths", "reasons", "rewards", "version"]))
        if damage == "dtype":
            column.dtype = data.draw(st.integers(0, 9))  # type: ignore[assignment]  # numbers of no dtype, too
        elif damage == "shape":
            column.shape[:] = data.draw(st.lists(extents, max_size=4))
        elif damage == "name":
            column.name = data.draw(st.sampled_from(["", "x", "y", *(each.name for each in header.columns)]))
        elif damage == "lengths":
            header.response_lengths[:] = data.draw(st.lists(st.integers(0, 2**32 - 1), max_size=3))
        elif damage == "reasons":
            header.finish_reasons[:] = data.draw(st.lists(st.integers(0, 9), max_size=3))  # type: ignore[arg-type]
        elif damage == "rewards":
            header.rewards[:] = data.draw(st.lists(st.floats(width=32), max_size=3))
        else:
            header.policy_version_max = data.draw(st.integers(-(2**63), 2**63 - 1))
    assert complaint(header, payload).startswith("group rich: ")


@given(st.data())
@settings(max_examples=300)
def test_a_damaged_payload_is_an_invalid_group_and_no_other_error(data: st.DataObject) -> None:
    """Run lengths, text lengths, spans and values are checked before they are used."""
    header, payload = rich_wire()
    damaged = bytearray(payload)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) // 4 - 1)) * 4
        damaged[at : at + 4] = data.draw(st.binary(min_size=4, max_size=4))
    assert complaint(header, bytes(damaged)).startswith("group rich: ")


@pytest.mark.parametrize("size", range(0, 136, 24))
def test_a_truncated_payload_is_an_invalid_group(size: int) -> None:
    """However short."""
    header, payload = rich_wire()
    assert size < len(payload)
    with pytest.raises(InvalidGroupError, match=f"group rich: its payload is {size} bytes"):
        convert.group_from_wire(header, payload[:size])


@pytest.mark.parametrize(
    "missing",
    ["prompt_token_ids", "response_token_ids", "behaviour_logprobs", "response_text_lengths", "response_texts"],
)
def test_a_payload_without_a_needed_column_is_an_invalid_group(missing: str) -> None:
    """Never a KeyError."""
    header, payload = rich_wire()
    next(column for column in header.columns if column.name == missing).name = "something-else"
    with pytest.raises(InvalidGroupError, match=f"group rich: .*{missing}"):
        convert.group_from_wire(header, payload)


@given(table_configs())
def test_configurations_survive_the_wire(config: TableConfig) -> None:
    """Zero and absent are different where both mean something."""
    message = convert_tables.config_to_proto(config)
    assert convert_tables.config_from_proto(table_pb2.TableConfig.FromString(message.SerializeToString())) == config


def test_an_empty_configuration_is_the_default() -> None:
    """The defaults in table.proto are those of TableConfig."""
    assert convert_tables.config_from_proto(table_pb2.TableConfig()) == TableConfig()


def test_tables_policies_and_results_survive_the_wire() -> None:
    """Every field, counters and errors included."""
    table = Table(
        run="r", table="t", config=TableConfig(), fresh=1, fresh_effective=2, replay=3, leased=4, leases=5,
        payload_bytes=6, policy_version=7, last_insert_ms=8, missing=9, counters={"inserted": 10},
        task_counters={"gone_stale:addition": 11},
    )  # fmt: skip
    assert convert_tables.table_from_proto(convert_tables.table_to_proto(table)) == table
    policy = Policy(run="r", version=1, weights_uri="u", weights_sha256="s", published_at_ms=2, label="l", rewinds=3)
    assert convert_tables.policy_from_proto(convert_tables.policy_to_proto(policy)) == policy
    refused = InsertResult(group_id="g", outcome=InsertOutcome.REFUSED, error=TableFullError("full"))
    back = convert.insert_result_from_proto(convert.insert_result_to_proto(refused))
    assert (back.group_id, back.outcome, type(back.error), str(back.error)) == (
        "g", InsertOutcome.REFUSED, TableFullError, "full",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("names_of", "enum", "words"),
    [
        (convert.FINISH_REASONS, group_pb2.FinishReason, FinishReason),
        (convert.SOURCES, group_pb2.GroupSource, GroupSource),
        (convert.STATES, table_pb2.GroupState, GroupState),
        *((convert_tables.NUMBERS[name], enum, words) for name, (words, enum, _) in convert_tables.ENUMS.items()),
        (convert.OUTCOMES, replay_service_pb2.InsertOutcome, InsertOutcome),
    ],
)
def test_every_word_has_its_number_and_every_number_its_word(names_of: Any, enum: Any, words: Any) -> None:
    """An enum that grows on one side only fails here."""
    assert set(names_of) == set(words)
    assert sorted(names_of.values()) == [number for number in enum.values() if number != 0]


def test_an_answer_of_a_newer_service_is_an_internal_error_that_says_so() -> None:
    """Numbers this version does not know never come out as KeyError."""
    header, payload = convert.group_to_wire(make_group("g"))
    delivery, result = group_pb2.Delivery(), replay_service_pb2.InsertResult()
    delivery.source = result.outcome = 77  # type: ignore[assignment]
    calls: list[Callable[[], object]] = [
        lambda: convert.delivered_from_wire(header, delivery, payload),
        lambda: convert.insert_result_from_proto(result),
        lambda: convert.states_from_proto([77]),  # type: ignore[list-item]
    ]
    for call in calls:
        with pytest.raises(InternalError, match="77 is unknown; this version knows"):
            call()
    refused = replay_service_pb2.InsertResult(outcome=replay_service_pb2.REFUSED, message="why")
    refused.reason = 77  # type: ignore[assignment]
    assert str(convert.insert_result_from_proto(refused).error) == "77: why"
