"""Protocol messages <-> the dataclasses of groups, batches and inserts; convert_tables.py has the others."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from groupreplay import layout
from groupreplay.errors import (
    GroupReplayError,
    InternalError,
    InvalidGroupError,
    error_from_reason,
)
from groupreplay.groups import FinishReason, RolloutGroup
from groupreplay.log_ratios import LogRatios, log_ratios_from_bytes, log_ratios_to_bytes
from groupreplay.payload import (
    Column,
    decode_mask,
    decode_payload,
    decode_texts,
    encode_mask,
    encode_payload,
    encode_texts,
)
from groupreplay.table_config import Durability
from groupreplay.tracing import tags_of
from groupreplay.types import (
    Batch,
    BatchOutline,
    DeliveredGroup,
    Delivery,
    GroupFeedback,
    GroupOutline,
    GroupSource,
    GroupState,
    InsertOutcome,
    InsertResult,
    StoredGroup,
)
from groupreplay.v1 import error_pb2, group_pb2, replay_service_pb2, table_pb2

FINISH_REASONS = {
    FinishReason.STOP: group_pb2.STOP,
    FinishReason.LENGTH: group_pb2.LENGTH,
    FinishReason.ABORT: group_pb2.ABORT,
}
SOURCES = {GroupSource.FRESH: group_pb2.FRESH, GroupSource.REPLAY: group_pb2.REPLAY}
STATES = {
    GroupState.UNKNOWN: table_pb2.GROUP_UNKNOWN,
    GroupState.FRESH: table_pb2.GROUP_FRESH,
    GroupState.LEASED: table_pb2.GROUP_LEASED,
    GroupState.REPLAY: table_pb2.GROUP_REPLAY,
    GroupState.GONE: table_pb2.GROUP_GONE,
}
OUTCOMES = {
    InsertOutcome.INSERTED: replay_service_pb2.INSERTED,
    InsertOutcome.DUPLICATE: replay_service_pb2.DUPLICATE,
    InsertOutcome.REFUSED: replay_service_pb2.REFUSED,
}
DURABILITIES = {item: table_pb2.Durability.Value(f"DURABILITY_{item.name}") for item in Durability}
_DURABILITY_OF: dict[int, Durability] = {number: item for item, number in DURABILITIES.items()}
_FINISH_REASON_OF = {number: reason for reason, number in FINISH_REASONS.items()}
_SOURCE_OF = {number: source for source, number in SOURCES.items()}
_STATE_OF = {number: state for state, number in STATES.items()}
_OUTCOME_OF = {number: outcome for outcome, number in OUTCOMES.items()}


_Known = TypeVar("_Known")


def meaning_of(names: Mapping[Any, _Known], number: int, what: str, error: type[GroupReplayError]) -> _Known:
    """Return what an enum's number means; raise the error for a number of a newer, or no, version of the protocol."""
    if number not in names:
        raise error(f"{what} {number} is unknown; this version knows {sorted(names)}: upgrade it, or send one of these")
    return names[number]


def group_to_wire(group: RolloutGroup) -> tuple[group_pb2.GroupHeader, bytes]:
    """Return the header and the payload of a group."""
    columns, payload = encode_payload(group.group_id, _arrays(group))
    header = group_pb2.GroupHeader(
        group_id=group.group_id,
        prompt_id=group.prompt_id,
        task=group.task,
        producer_id=group.producer_id,
        policy_version_min=group.policy_version_min,
        policy_version_max=group.policy_version_max,
        rewards=group.rewards.tolist(),
        response_lengths=group.response_lengths.tolist(),
        finish_reasons=[FINISH_REASONS[reason] for reason in group.finish_reasons],
        prompt_length=len(group.prompt_token_ids),
        columns=[_column_to_proto(column) for column in columns],
        payload_bytes=len(payload),
        created_at_ms=group.created_at_ms,
        tags=tags_of(group.tags),
        priority=group.priority,
    )
    return header, payload


def _arrays(group: RolloutGroup) -> dict[str, npt.NDArray[Any]]:
    if clash := layout.RESERVED & group.columns.keys():
        raise InvalidGroupError(f"group {group.group_id}: column names {sorted(clash)} are reserved; rename them")
    arrays: dict[str, npt.NDArray[Any]] = {
        layout.PROMPT: np.asarray(group.prompt_token_ids, np.int32),
        layout.RESPONSE: np.asarray(group.response_token_ids, np.int32),
        layout.LOGPROBS: np.asarray(group.behaviour_logprobs, np.float32),
    }
    if group.loss_mask is not None:
        arrays[layout.MASK_RUNS] = encode_mask(group.loss_mask)
    if group.version_spans is not None:
        arrays[layout.SPANS] = np.asarray(group.version_spans, np.int32)
    if group.prompt_text is not None:
        arrays[layout.PROMPT_TEXT] = np.frombuffer(group.prompt_text.encode(), np.uint8)
    if group.response_texts is not None:
        arrays[layout.TEXT_LENGTHS], arrays[layout.TEXTS] = encode_texts(group.response_texts)
    return arrays | dict(group.columns)


def _column_to_proto(column: Column) -> group_pb2.Column:
    return group_pb2.Column(name=column.name, dtype=group_pb2.DType.Value(column.dtype.upper()), shape=column.shape)


def group_from_wire(header: group_pb2.GroupHeader, payload: bytes | memoryview) -> RolloutGroup:
    """Return the group; its arrays are read-only views of payload.

    Raises:
        InvalidGroupError: the payload is truncated or foreign, or the group contradicts itself.
    """
    columns = layout.columns_from_header(header)
    layout.check_layout(header, columns)
    name = header.group_id
    arrays = decode_payload(name, columns, payload)
    prompt, texts, runs = (arrays.get(column) for column in (layout.PROMPT_TEXT, layout.TEXTS, layout.MASK_RUNS))
    return RolloutGroup(
        group_id=name,
        prompt_id=header.prompt_id,
        prompt_token_ids=arrays[layout.PROMPT],
        response_token_ids=arrays[layout.RESPONSE],
        response_lengths=np.array(header.response_lengths, np.int32),
        behaviour_logprobs=arrays[layout.LOGPROBS],
        rewards=np.array(header.rewards, np.float32),
        policy_version_min=header.policy_version_min,
        policy_version_max=header.policy_version_max,
        loss_mask=decode_mask(name, runs, sum(header.response_lengths)) if runs is not None else None,
        version_spans=arrays.get(layout.SPANS),
        finish_reasons=finish_reasons_from_proto(header),
        task=header.task,
        producer_id=header.producer_id,
        created_at_ms=header.created_at_ms,
        tags=dict(header.tags),
        prompt_text=prompt.tobytes().decode(errors="replace") if prompt is not None else None,
        response_texts=decode_texts(name, arrays[layout.TEXT_LENGTHS], texts) if texts is not None else None,
        columns={column: array for column, array in arrays.items() if column not in layout.RESERVED},
        priority=header.priority if header.HasField("priority") else None,
    )


def finish_reasons_from_proto(header: group_pb2.GroupHeader) -> tuple[FinishReason, ...]:
    """Return why each response of a group ended.

    Raises:
        InvalidGroupError: for a reason that this version does not know.
    """
    what = f"group {header.group_id}: finish reason"
    return tuple(meaning_of(_FINISH_REASON_OF, it, what, InvalidGroupError) for it in header.finish_reasons)


def delivered_from_wire(
    header: group_pb2.GroupHeader, delivery: group_pb2.Delivery, payload: bytes | memoryview
) -> DeliveredGroup:
    """Return a delivered group; its arrays are read-only views of payload."""
    return DeliveredGroup(
        group=group_from_wire(header, payload),
        source=meaning_of(_SOURCE_OF, delivery.source, f"group {header.group_id}: source", InternalError),
        staleness=delivery.staleness,
        times_sampled=delivery.times_sampled,
        probability=delivery.probability,
        redeliveries=delivery.redeliveries,
        importance_weight=delivery.importance_weight,
    )


def stored_from_wire(
    header: group_pb2.GroupHeader,
    delivery: group_pb2.Delivery,
    payload: bytes | memoryview,
    log_ratios: group_pb2.LogRatios | None = None,
) -> StoredGroup:
    """Return a group that was read without being taken; its arrays are read-only views of payload."""
    return StoredGroup(
        group=group_from_wire(header, payload),
        staleness=delivery.staleness,
        times_sampled=delivery.times_sampled,
        log_ratios=None if log_ratios is None else _log_ratios(header.group_id, log_ratios),
    )


def _log_ratios(group_id: str, message: group_pb2.LogRatios) -> LogRatios:
    return LogRatios(
        values=log_ratios_from_bytes(group_id, message.values),
        policy_version=message.policy_version,
        step=message.step if message.HasField("step") else None,
    )


def outline_from_wire(header: group_pb2.GroupHeader, delivery: group_pb2.Delivery) -> GroupOutline:
    """Return what is known of a delivered group without its payload."""
    return GroupOutline(
        delivery=delivery_from_wire(header.group_id, delivery),
        rewards=tuple(header.rewards),
        prompt_length=header.prompt_length,
        response_lengths=tuple(header.response_lengths),
    )


def delivery_from_wire(group_id: str, delivery: group_pb2.Delivery) -> Delivery:
    """Return how a group came into a batch."""
    return Delivery(
        group_id=group_id,
        source=meaning_of(_SOURCE_OF, delivery.source, f"group {group_id}: source", InternalError),
        staleness=delivery.staleness,
        times_sampled=delivery.times_sampled,
        probability=delivery.probability,
        redeliveries=delivery.redeliveries,
        importance_weight=delivery.importance_weight,
    )


def batch_from_wire(header: replay_service_pb2.BatchHeader, groups: Sequence[DeliveredGroup]) -> Batch:
    """Return a batch whose groups have all come."""
    return Batch(groups=tuple(groups), **_batch_fields(header))


def batch_outline_from_wire(header: replay_service_pb2.BatchHeader, groups: Sequence[GroupOutline]) -> BatchOutline:
    """Return a batch that came without payloads."""
    return BatchOutline(groups=tuple(groups), **_batch_fields(header))


def _batch_fields(header: replay_service_pb2.BatchHeader) -> dict[str, Any]:
    return {
        "lease_id": header.lease_id,
        "lease_deadline_ms": header.lease_deadline_ms,
        "policy_version": header.policy_version,
        "batch_size": header.batch_size,
        "fresh": header.fresh,
        "fresh_effective": header.fresh_effective,
        "refilled": header.refilled,
        "shortfall": header.shortfall,
    }


def insert_result_to_proto(result: InsertResult) -> replay_service_pb2.InsertResult:
    """Return the message of an insert's result."""
    message = replay_service_pb2.InsertResult(group_id=result.group_id, outcome=OUTCOMES[result.outcome])
    if result.error is not None:
        message.reason = error_pb2.ErrorReason.Value(result.error.reason)
        message.message = str(result.error)
    return message


def insert_result_from_proto(message: replay_service_pb2.InsertResult, durability: int = 0) -> InsertResult:
    """Return an insert's result with its error as an exception, and the durability that the response stated."""
    outcome = meaning_of(_OUTCOME_OF, message.outcome, f"group {message.group_id}: insert outcome", InternalError)
    error = None
    if outcome is InsertOutcome.REFUSED:
        error = error_from_proto(message.reason, message.message)
    return InsertResult(group_id=message.group_id, outcome=outcome, error=error, durability=durability_of(durability))


def error_from_proto(number: int, message: str) -> GroupReplayError:
    """Return the exception of a refusal inside an answer."""
    known = number in error_pb2.ErrorReason.values()
    reason = error_pb2.ErrorReason.Name(cast(error_pb2.ErrorReason.ValueType, number)) if known else str(number)
    return error_from_reason(reason, message)


def durability_of(number: int) -> Durability:
    """Return the durability that a response states; one that this version does not know counts as memory."""
    return _DURABILITY_OF.get(number, Durability.MEMORY)


def states_from_proto(states: Sequence[table_pb2.GroupState.ValueType]) -> list[GroupState]:
    """Return the states of LocateGroups."""
    return [meaning_of(_STATE_OF, state, "group state", InternalError) for state in states]


def feedback_to_proto(feedback: GroupFeedback) -> table_pb2.GroupFeedback:
    """Return the message of what a caller found out about a group."""
    log_ratios = feedback.log_ratios
    return table_pb2.GroupFeedback(
        group_id=feedback.group_id,
        priority=feedback.priority,
        kl=feedback.kl,
        ess=feedback.ess,
        log_ratios=None if log_ratios is None else log_ratios_to_bytes(log_ratios),
    )


def feedback_from_proto(message: table_pb2.GroupFeedback) -> GroupFeedback:
    """Return what a caller found out about a group.

    Raises:
        InvalidRequestError: a value is out of its range.
    """
    return GroupFeedback(
        group_id=message.group_id,
        priority=message.priority if message.HasField("priority") else None,
        kl=message.kl if message.HasField("kl") else None,
        ess=message.ess if message.HasField("ess") else None,
        log_ratios=(
            log_ratios_from_bytes(message.group_id, message.log_ratios) if message.HasField("log_ratios") else None
        ),
    )
