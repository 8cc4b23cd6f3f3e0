"""Protocol messages <-> the dataclasses of pieces of partial groups; convert.py has whole groups."""

from groupreplay.convert import (
    durability_of,
    error_from_proto,
    group_to_wire,
    insert_result_from_proto,
    insert_result_to_proto,
    meaning_of,
)
from groupreplay.errors import InternalError
from groupreplay.types import PushOutcome, PushResult, RolloutPiece
from groupreplay.v1 import error_pb2, group_pb2
from groupreplay.v1 import replay_service_pb2 as pb

OUTCOMES = {
    PushOutcome.PENDING: pb.PIECE_PENDING,
    PushOutcome.CLOSED: pb.PIECE_CLOSED,
    PushOutcome.DUPLICATE: pb.PIECE_DUPLICATE,
    PushOutcome.REFUSED: pb.PIECE_REFUSED,
}
_OUTCOME_OF = {number: outcome for outcome, number in OUTCOMES.items()}


def piece_to_wire(piece: RolloutPiece) -> tuple[pb.RolloutPiece, group_pb2.GroupHeader, bytes]:
    """Return what a piece says of its group, and the header and payload of its rollouts."""
    terms = pb.RolloutPiece(
        piece_id=piece.piece_id,
        group_size=piece.group_size,
        min_rollouts=piece.min_rollouts or 0,
        close_after_s=piece.close_after_s,
    )
    return (terms, *group_to_wire(piece.group))


def push_result_to_proto(result: PushResult) -> pb.PushResult:
    """Return the message of what became of a piece."""
    message = pb.PushResult(
        group_id=result.group_id,
        piece_id=result.piece_id,
        outcome=OUTCOMES[result.outcome],
        rollouts=result.rollouts,
        group_size=result.group_size,
    )
    if result.insert is not None:
        message.insert.CopyFrom(insert_result_to_proto(result.insert))
    if result.error is not None:
        message.reason = error_pb2.ErrorReason.Value(result.error.reason)
        message.message = str(result.error)
    return message


def push_result_from_proto(message: pb.PushResult, durability: int = 0) -> PushResult:
    """Return what became of a piece, its error as an exception, and the durability that the response stated."""
    outcome = meaning_of(_OUTCOME_OF, message.outcome, f"piece {message.piece_id}: push outcome", InternalError)
    refused = outcome is PushOutcome.REFUSED
    return PushResult(
        group_id=message.group_id,
        piece_id=message.piece_id,
        outcome=outcome,
        rollouts=message.rollouts,
        group_size=message.group_size,
        insert=insert_result_from_proto(message.insert, durability) if message.HasField("insert") else None,
        error=error_from_proto(message.reason, message.message) if refused else None,
        durability=durability_of(durability),
    )
