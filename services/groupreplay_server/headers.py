"""Checks group headers as they come in; payloads are compared with them by length and magic, never parsed."""

import math
import statistics
from collections.abc import Sequence

from groupreplay.errors import GroupReplayError, InvalidGroupError, InvalidRequestError
from groupreplay.groups import MAX_POLICY_VERSION, check_name
from groupreplay.layout import check_layout, columns_from_header
from groupreplay.parts import AssembledGroup, too_large
from groupreplay.payload import check_payload
from groupreplay.table_config import Fill, PrioritySource, TableConfig
from groupreplay.types import InsertOutcome, InsertResult
from groupreplay.v1 import group_pb2
from groupreplay_server.store.records import IncomingGroup

MAX_HEADER_BYTES = 256 * 1024
MAX_TAGS = 64
_FINISH_REASONS = frozenset(group_pb2.FinishReason.values()) - {group_pb2.FINISH_REASON_UNSPECIFIED}


def read_group(header: group_pb2.GroupHeader, payload: bytes | memoryview | None, config: TableConfig) -> IncomingGroup:
    """Return the group as the store takes it, without the payload when the table will never deliver it.

    Raises:
        InvalidGroupError: the header contradicts itself or the payload.
        GroupTooLargeError: the payload is above the table's limit, whether it would be kept or not.
    """
    _check_identity(header)
    _check_rollouts(header)
    reward_std = _deviation(header.rewards)
    needed = reward_std > config.min_reward_std or config.fill == Fill.KEEP or config.replay_ineffective
    _check_payload(header, payload, needed)
    if payload is not None and len(payload) > config.max_group_bytes:
        raise too_large(header.group_id, len(payload), config.max_group_bytes)
    return IncomingGroup(
        group_id=header.group_id,
        prompt_id=header.prompt_id,
        producer_id=header.producer_id,
        policy_version_min=header.policy_version_min,
        policy_version_max=header.policy_version_max,
        reward_std=reward_std,
        task=header.task,
        priority=_priority(header, reward_std, config.priority),
        reward_mean=statistics.fmean(header.rewards),
        header=header.SerializeToString(),
        payload=payload if needed or config.keep_ineffective_payload else None,
    )


class CheckedGroups:
    """Groups that came together, held to what their table takes."""

    def __init__(self, run: str, table: str, groups: Sequence[AssembledGroup], config: TableConfig) -> None:
        self.run, self.table, self.durability = run, table, config.durability
        self.accepted: dict[int, IncomingGroup] = {}
        """By their place among the groups."""
        self.refused: dict[int, InsertResult] = {}
        self.payload_bytes = sum(len(group.payload or b"") for group in groups)
        """Of all, as they came."""
        for index, group in enumerate(groups):
            try:
                if group.error is not None:
                    raise group.error
                self.accepted[index] = read_group(group.header, group.payload, config)
            except GroupReplayError as error:
                self.refused[index] = InsertResult(
                    group_id=group.header.group_id[:128], outcome=InsertOutcome.REFUSED, error=error
                )

    def __len__(self) -> int:
        return len(self.accepted) + len(self.refused)


def _deviation(rewards: Sequence[float]) -> float:
    """Return the standard deviation of finite numbers, exactly 0 where all are alike; pstdev goes through fractions."""
    if min(rewards) == max(rewards):
        return 0.0
    mean = math.fsum(rewards) / len(rewards)
    return math.sqrt(math.fsum((reward - mean) ** 2 for reward in rewards) / len(rewards))


def _priority(header: group_pb2.GroupHeader, reward_std: float, source: PrioritySource) -> float:
    match source:
        case PrioritySource.REWARD_VARIANCE:
            return reward_std**2
        case PrioritySource.ADVANTAGE:
            mean = statistics.fmean(header.rewards)
            return statistics.fmean(abs(reward - mean) for reward in header.rewards)
        case PrioritySource.CALLER:
            return header.priority if header.HasField("priority") else 1.0


def _check_identity(header: group_pb2.GroupHeader) -> None:
    try:
        check_name(header.group_id, "group_id")
        if header.producer_id:
            check_name(header.producer_id, "producer_id")
    except InvalidRequestError as error:
        raise InvalidGroupError(str(error)) from None
    name = header.group_id
    if not 1 <= len(header.prompt_id.encode()) <= 256:
        raise InvalidGroupError(f"group {name}: prompt_id {header.prompt_id[:40]!r} is not 1 to 256 bytes long")
    if len(header.task.encode()) > 128:
        raise InvalidGroupError(f"group {name}: task {header.task[:40]!r} is longer than 128 bytes")
    low, high = header.policy_version_min, header.policy_version_max
    if not 0 <= low <= high <= MAX_POLICY_VERSION:
        raise InvalidGroupError(
            f"group {name}: policy versions {low} to {high} are not ascending in 0 to {MAX_POLICY_VERSION}"
        )
    if header.HasField("priority") and not 0 <= header.priority < math.inf:
        raise InvalidGroupError(f"group {name}: priority {header.priority} is not a finite number of at least 0")
    if header.ByteSize() > MAX_HEADER_BYTES or len(header.tags) > MAX_TAGS:
        raise InvalidGroupError(
            f"group {name}: its header has {header.ByteSize()} bytes and {len(header.tags)} tags, "
            f"at most {MAX_HEADER_BYTES} and {MAX_TAGS} are taken; move annotations into payload columns"
        )


def _check_rollouts(header: group_pb2.GroupHeader) -> None:
    rollouts = len(header.rewards)
    if rollouts == 0:
        raise InvalidGroupError(f"group {header.group_id}: no rollouts; a group has at least one")
    if len(header.response_lengths) != rollouts or len(header.finish_reasons) not in {0, rollouts}:
        raise InvalidGroupError(
            f"group {header.group_id}: {len(header.response_lengths)} response_lengths and "
            f"{len(header.finish_reasons)} finish_reasons for {rollouts} rewards"
        )
    if min(header.response_lengths) < 1:
        raise InvalidGroupError(f"group {header.group_id}: an empty response; every response has at least one token")
    if not all(map(math.isfinite, header.rewards)):
        raise InvalidGroupError(f"group {header.group_id}: rewards {list(header.rewards)[:32]} are not all finite")
    if not _FINISH_REASONS.issuperset(header.finish_reasons):
        raise InvalidGroupError(f"group {header.group_id}: finish_reasons {list(header.finish_reasons)[:32]} not known")


def _check_payload(header: group_pb2.GroupHeader, payload: bytes | memoryview | None, needed: bool) -> None:
    if payload is not None:
        columns = columns_from_header(header)
        check_layout(header, columns)
        check_payload(header.group_id, columns, len(payload), payload[:8])
        if header.payload_bytes != len(payload):
            raise InvalidGroupError(
                f"group {header.group_id}: payload_bytes {header.payload_bytes} in the header, {len(payload)} came"
            )
    elif needed:
        raise InvalidGroupError(
            f"group {header.group_id}: its payload was left out, but the table will deliver it: it is effective, "
            "or the fill rule keeps all"
        )
