"""Checks pieces of partial groups as they come in.

Unlike whole groups they are read to the last column: a piece that could not be put together later is refused now.
"""

from dataclasses import dataclass

from groupreplay import layout
from groupreplay.convert import group_from_wire
from groupreplay.errors import InvalidGroupError, InvalidRequestError
from groupreplay.groups import RolloutGroup, check_name
from groupreplay.merge import terms_of
from groupreplay.parts import AssembledGroup, Part, PartAssembler
from groupreplay.payload import MAGIC, Column, payload_size
from groupreplay.table_config import TableConfig
from groupreplay.types import MAX_CLOSE_AFTER_S, MAX_GROUP_SIZE, MIN_CLOSE_AFTER_S
from groupreplay.v1 import group_pb2, replay_service_pb2
from groupreplay_server.headers import MAX_HEADER_BYTES, read_group
from groupreplay_server.limits import check_range
from groupreplay_server.store.records import IncomingPiece

DEFAULT_CLOSE_AFTER_S = 600.0
_HEADER_BYTES_OF_A_ROLLOUT = 16
"""What a rollout adds to the header of its group, at most."""


@dataclass(frozen=True, slots=True)
class ArrivedPiece:
    """A piece whose parts have all come."""

    piece: replay_service_pb2.RolloutPiece
    rollouts: AssembledGroup


class PieceAssembler:
    """Puts pieces together from their parts."""

    def __init__(self, max_group_bytes: int) -> None:
        """Throw payloads above max_group_bytes away as they come, with an error in their place."""
        self._parts = PartAssembler(max_group_bytes)
        self._piece: replay_service_pb2.RolloutPiece | None = None

    def add(self, part: replay_service_pb2.PiecePart) -> ArrivedPiece | None:
        """Take the next part; return the piece if it was its last.

        Raises:
            InvalidGroupError: a part that belongs to no piece, or more bytes than its header says.
            InvalidRequestError: a first part without its piece.
        """
        if part.part.HasField("header"):
            if not part.HasField("piece"):
                raise InvalidRequestError(
                    f"group {part.part.header.group_id}: the first part of a piece says no piece_id and group_size"
                )
            self._piece = part.piece
        rollouts = self._parts.add(Part.from_proto(part.part))
        return ArrivedPiece(self._piece, rollouts) if rollouts is not None and self._piece is not None else None

    def check_complete(self) -> None:
        """Raise InvalidGroupError when the stream ended in the middle of a piece."""
        self._parts.check_complete()


def read_piece(arrived: ArrivedPiece, config: TableConfig) -> IncomingPiece:
    """Return the piece as the store takes it.

    Raises:
        InvalidGroupError: it contradicts itself, or cannot be put together with others.
        InvalidRequestError: one of its numbers is out of range.
        GroupTooLargeError: its payload alone is above the table's limit.
    """
    piece, header, payload = arrived.piece, arrived.rollouts.header, arrived.rollouts.payload
    if arrived.rollouts.error is not None:
        raise arrived.rollouts.error
    check_name(piece.piece_id, "piece_id")
    check_range("group_size", piece.group_size, 1, MAX_GROUP_SIZE)
    check_range("min_rollouts", piece.min_rollouts or piece.group_size, 1, piece.group_size)
    close_after_s = piece.close_after_s or DEFAULT_CLOSE_AFTER_S
    check_range("close_after_s", close_after_s, MIN_CLOSE_AFTER_S, MAX_CLOSE_AFTER_S)
    read_group(header, payload, config)
    if payload is None:
        raise InvalidGroupError(
            f"group {header.group_id}: the payload of piece {piece.piece_id} was left out; whether the group will need "
            "it is known only when all its rollouts have come"
        )
    group = group_from_wire(header, payload)
    _check_fit(piece, header, group)
    return IncomingPiece(
        group_id=header.group_id,
        piece_id=piece.piece_id,
        header=header.SerializeToString(),
        payload=bytes(payload),
        merged_bytes=len(payload) - _prompt_bytes(header),
        rollouts=len(group),
        policy_version_min=header.policy_version_min,
        policy_version_max=header.policy_version_max,
        producer_id=header.producer_id,
        terms=terms_of(group),
        group_size=piece.group_size,
        min_rollouts=piece.min_rollouts or piece.group_size,
        close_after_ms=max(round(close_after_s * 1000), 1),
    )


def _check_fit(piece: replay_service_pb2.RolloutPiece, header: group_pb2.GroupHeader, group: RolloutGroup) -> None:
    if len(group) > piece.group_size:
        raise InvalidGroupError(
            f"group {group.group_id}: piece {piece.piece_id} has {len(group)} rollouts, group_size is "
            f"{piece.group_size}; push as many as group_size says"
        )
    whole_bytes = header.ByteSize() + _HEADER_BYTES_OF_A_ROLLOUT * piece.group_size
    if whole_bytes > MAX_HEADER_BYTES:
        raise InvalidGroupError(
            f"group {group.group_id}: the header of piece {piece.piece_id} has {header.ByteSize()} bytes, with those "
            f"of {piece.group_size} rollouts {whole_bytes}, at most {MAX_HEADER_BYTES} are taken; move annotations "
            "into payload columns"
        )


def _prompt_bytes(header: group_pb2.GroupHeader) -> int:
    """Bytes of a payload that are the same in all pieces."""
    prompt = [Column(layout.PROMPT, "int32", (header.prompt_length,))]
    prompt += [c for c in layout.columns_from_header(header) if c.name == layout.PROMPT_TEXT]
    return payload_size(prompt) if header.columns else len(MAGIC)
