"""Protocol messages <-> the dataclasses of groups.py and types.py; the only place that knows both."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from groupreplay import layout
from groupreplay.errors import (
    GroupReplayError,
    InternalError,
    InvalidGroupError,
    InvalidRequestError,
    error_from_reason,
)
from groupreplay.groups import FinishReason, RolloutGroup
from groupreplay.payload import (
    Column,
    decode_mask,
    decode_payload,
    decode_texts,
    encode_mask,
    encode_payload,
    encode_texts,
)
from groupreplay.types import (
    Batch,
    DeliveredGroup,
    Fill,
    GroupSource,
    GroupState,
    InsertOutcome,
    InsertResult,
    Policy,
    Refill,
    Table,
    TableConfig,
)
from groupreplay.v1 import error_pb2, group_pb2, policy_pb2, replay_service_pb2, table_pb2

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
FILLS = {
    Fill.REPLAY: table_pb2.FILL_REPLAY,
    Fill.NONE: table_pb2.FILL_NONE,
    Fill.RESAMPLE: table_pb2.FILL_RESAMPLE,
    Fill.KEEP: table_pb2.FILL_KEEP,
}
REFILLS = {Refill.RECENCY: table_pb2.REFILL_RECENCY}
_FINISH_REASON_OF = {number: reason for reason, number in FINISH_REASONS.items()}
_SOURCE_OF = {number: source for source, number in SOURCES.items()}
_STATE_OF = {number: state for state, number in STATES.items()}
_OUTCOME_OF = {number: outcome for outcome, number in OUTCOMES.items()}
_FILL_OF = {number: fill for fill, number in FILLS.items()} | {table_pb2.FILL_UNSPECIFIED: Fill.REPLAY}
_REFILL_OF = {number: refill for refill, number in REFILLS.items()} | {table_pb2.REFILL_UNSPECIFIED: Refill.RECENCY}


_Known = TypeVar("_Known")


def _known(names: Mapping[Any, _Known], number: int, what: str, error: type[GroupReplayError]) -> _Known:
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
        tags=group.tags,
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


def group_from_wire(header: group_pb2.GroupHeader, payload: bytes) -> RolloutGroup:
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
        finish_reasons=tuple(
            _known(_FINISH_REASON_OF, reason, f"group {name}: finish reason", InvalidGroupError)
            for reason in header.finish_reasons
        ),
        task=header.task,
        producer_id=header.producer_id,
        created_at_ms=header.created_at_ms,
        tags=dict(header.tags),
        prompt_text=prompt.tobytes().decode(errors="replace") if prompt is not None else None,
        response_texts=decode_texts(name, arrays[layout.TEXT_LENGTHS], texts) if texts is not None else None,
        columns={column: array for column, array in arrays.items() if column not in layout.RESERVED},
    )


def delivered_from_wire(header: group_pb2.GroupHeader, delivery: group_pb2.Delivery, payload: bytes) -> DeliveredGroup:
    """Return a delivered group; its arrays are read-only views of payload."""
    return DeliveredGroup(
        group=group_from_wire(header, payload),
        source=_known(_SOURCE_OF, delivery.source, f"group {header.group_id}: source", InternalError),
        staleness=delivery.staleness,
        times_sampled=delivery.times_sampled,
        probability=delivery.probability,
        redeliveries=delivery.redeliveries,
    )


def batch_from_wire(header: replay_service_pb2.BatchHeader, groups: Sequence[DeliveredGroup]) -> Batch:
    """Return a batch whose groups have all come."""
    return Batch(
        lease_id=header.lease_id,
        lease_deadline_ms=header.lease_deadline_ms,
        policy_version=header.policy_version,
        batch_size=header.batch_size,
        fresh=header.fresh,
        fresh_effective=header.fresh_effective,
        refilled=header.refilled,
        shortfall=header.shortfall,
        groups=tuple(groups),
    )


def insert_result_to_proto(result: InsertResult) -> replay_service_pb2.InsertResult:
    """Return the message of an insert's result."""
    message = replay_service_pb2.InsertResult(group_id=result.group_id, outcome=OUTCOMES[result.outcome])
    if result.error is not None:
        message.reason = error_pb2.ErrorReason.Value(result.error.reason)
        message.message = str(result.error)
    return message


def insert_result_from_proto(message: replay_service_pb2.InsertResult) -> InsertResult:
    """Return an insert's result with its error as an exception."""
    outcome = _known(_OUTCOME_OF, message.outcome, f"group {message.group_id}: insert outcome", InternalError)
    error = None
    if outcome is InsertOutcome.REFUSED:
        known = message.reason in error_pb2.ErrorReason.values()
        reason = error_pb2.ErrorReason.Name(message.reason) if known else str(message.reason)
        error = error_from_reason(reason, message.message)
    return InsertResult(group_id=message.group_id, outcome=outcome, error=error)


def states_from_proto(states: Sequence[table_pb2.GroupState.ValueType]) -> list[GroupState]:
    """Return the states of LocateGroups."""
    return [_known(_STATE_OF, state, "group state", InternalError) for state in states]


def policy_to_proto(policy: Policy) -> policy_pb2.Policy:
    """Return the message of a policy version."""
    return policy_pb2.Policy(
        run=policy.run,
        version=policy.version,
        weights_uri=policy.weights_uri,
        weights_sha256=policy.weights_sha256,
        published_at_ms=policy.published_at_ms,
    )


def policy_from_proto(message: policy_pb2.Policy) -> Policy:
    """Return a policy version."""
    return Policy(
        run=message.run,
        version=message.version,
        weights_uri=message.weights_uri,
        weights_sha256=message.weights_sha256,
        published_at_ms=message.published_at_ms,
    )


def config_to_proto(config: TableConfig) -> table_pb2.TableConfig:
    """Return the message of a table's configuration."""
    return table_pb2.TableConfig(
        fill=FILLS[config.fill],
        refill=REFILLS[config.refill],
        replay_capacity=config.replay_capacity,
        fresh_capacity=config.fresh_capacity,
        max_staleness=config.max_staleness,
        max_times_sampled=config.max_times_sampled,
        min_reward_std=config.min_reward_std,
        max_group_bytes=config.max_group_bytes,
        allow_repeated_prompts=config.allow_repeated_prompts,
        keep_ineffective_payload=config.keep_ineffective_payload,
        ahead_groups=config.ahead_groups,
    )


def config_from_proto(message: table_pb2.TableConfig) -> TableConfig:
    """Return a table's configuration; what the message leaves out takes its default.

    Raises:
        InvalidRequestError: a limit is out of its range.
    """
    defaults = TableConfig()
    return TableConfig(
        fill=_known(_FILL_OF, message.fill, "fill", InvalidRequestError),
        refill=_known(_REFILL_OF, message.refill, "refill", InvalidRequestError),
        replay_capacity=message.replay_capacity or defaults.replay_capacity,
        fresh_capacity=message.fresh_capacity or defaults.fresh_capacity,
        max_staleness=message.max_staleness if message.HasField("max_staleness") else None,
        max_times_sampled=message.max_times_sampled if message.HasField("max_times_sampled") else None,
        min_reward_std=message.min_reward_std if message.HasField("min_reward_std") else defaults.min_reward_std,
        max_group_bytes=message.max_group_bytes or defaults.max_group_bytes,
        allow_repeated_prompts=message.allow_repeated_prompts,
        keep_ineffective_payload=message.keep_ineffective_payload,
        ahead_groups=message.ahead_groups if message.HasField("ahead_groups") else None,
    )


def table_to_proto(table: Table) -> table_pb2.Table:
    """Return the message of a table's state."""
    return table_pb2.Table(
        run=table.run,
        table=table.table,
        config=config_to_proto(table.config),
        fresh=table.fresh,
        fresh_effective=table.fresh_effective,
        replay=table.replay,
        leased=table.leased,
        leases=table.leases,
        payload_bytes=table.payload_bytes,
        policy_version=table.policy_version,
        last_insert_ms=table.last_insert_ms,
        missing=table.missing,
        counters=table.counters,
    )


def table_from_proto(message: table_pb2.Table) -> Table:
    """Return a table's state."""
    return Table(
        run=message.run,
        table=message.table,
        config=config_from_proto(message.config),
        fresh=message.fresh,
        fresh_effective=message.fresh_effective,
        replay=message.replay,
        leased=message.leased,
        leases=message.leases,
        payload_bytes=message.payload_bytes,
        policy_version=message.policy_version,
        last_insert_ms=message.last_insert_ms,
        missing=message.missing,
        counters=dict(message.counters),
    )
