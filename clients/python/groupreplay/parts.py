"""Groups in pieces: a stream carries groups of any size in messages that stay below gRPC's 4 MiB."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from groupreplay.errors import GroupReplayError, GroupTooLargeError, InvalidGroupError, InvalidRequestError
from groupreplay.v1 import group_pb2, replay_service_pb2

MESSAGE_BYTES = 7 * 2**19
"""Bytes of parts that are put together in one message; a part alone may have as many of payload, and its header.

Near to the 4 MiB that gRPC takes, for each message costs both sides most of a millisecond, whatever is in it.
"""

PartT = TypeVar("PartT", group_pb2.GroupPart, replay_service_pb2.PiecePart)


def split_group(header: group_pb2.GroupHeader, payload: bytes) -> Iterator[group_pb2.GroupPart]:
    """Yield the parts of a group."""
    first = group_pb2.GroupPart(header=header, payload=payload[:MESSAGE_BYTES], header_only=not payload)
    yield first
    for start in range(MESSAGE_BYTES, len(payload), MESSAGE_BYTES):
        yield group_pb2.GroupPart(payload=payload[start : start + MESSAGE_BYTES])


def pack_parts(parts: Iterable[PartT]) -> Iterator[list[PartT]]:
    """Yield the parts in lists that fit one message each."""
    pending: list[PartT] = []
    size = 0
    for part in parts:
        part_bytes = part.ByteSize()
        if pending and size + part_bytes > MESSAGE_BYTES:
            yield pending
            pending, size = [], 0
        pending.append(part)
        size += part_bytes
    if pending:
        yield pending


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A piece of a group on its way."""

    header: group_pb2.GroupHeader | None
    """On the first part of a group only."""
    delivery: group_pb2.Delivery | None
    payload: bytes | memoryview
    header_only: bool
    log_ratios: group_pb2.LogRatios | None = None
    """On the first part of a group only, where they were asked for."""

    @classmethod
    def from_proto(cls, message: group_pb2.GroupPart) -> "Part":
        """Return the part that a message is."""
        return cls(
            header=message.header if message.HasField("header") else None,
            delivery=message.delivery if message.HasField("delivery") else None,
            payload=message.payload,
            header_only=message.header_only,
            log_ratios=message.log_ratios if message.HasField("log_ratios") else None,
        )


@dataclass(frozen=True, slots=True)
class AssembledGroup:
    """A group whose parts have all come."""

    header: group_pb2.GroupHeader
    payload: bytes | memoryview | None
    """None = the sender left it out on purpose."""
    delivery: group_pb2.Delivery | None = None
    """On delivery only."""
    error: GroupReplayError | None = None
    """Why it is refused: its payload was above the limit, and has been thrown away, or it contradicts itself."""
    log_ratios: group_pb2.LogRatios | None = None
    """Where they were asked for, and the table has some."""


class PartAssembler:
    """Puts groups together from their parts."""

    def __init__(self, max_group_bytes: int | None = None) -> None:
        """Throw payloads above max_group_bytes away as they come, with an error in their place."""
        self._max_group_bytes = max_group_bytes
        self._header: group_pb2.GroupHeader | None = None
        self._first: Part | None = None
        self._pieces: list[bytes | memoryview] = []
        self._missing = 0

    def add(self, part: Part) -> AssembledGroup | None:
        """Take the next part; return the group if it was its last.

        Raises:
            InvalidGroupError: a part that belongs to no group, or more bytes than its header says.
        """
        if part.header is not None:
            if self._header is not None:
                raise InvalidGroupError(
                    f"group {self._header.group_id}: {self._missing} payload bytes are missing "
                    f"when group {part.header.group_id} begins"
                )
            self._first, self._header, self._pieces = part, part.header, []
            self._missing = 0 if part.header_only else part.header.payload_bytes
        if self._first is None or self._header is None:
            raise InvalidGroupError("the stream continues a group that never began: its first part has no header")
        return self._add_payload(self._first, self._header, part.payload)

    def check_complete(self) -> None:
        """Raise InvalidGroupError when the stream ended in the middle of a group."""
        if self._header is not None:
            raise InvalidGroupError(
                f"group {self._header.group_id}: the stream ended with {self._missing} payload bytes missing"
            )

    def _add_payload(
        self, first: Part, header: group_pb2.GroupHeader, payload: bytes | memoryview
    ) -> AssembledGroup | None:
        self._missing -= len(payload)
        if self._missing < 0:
            raise InvalidGroupError(
                f"group {header.group_id}: {-self._missing} bytes more than its payload_bytes {header.payload_bytes}"
            )
        error = self._limit_error(header)
        if error is None and payload:
            self._pieces.append(payload if self._missing == 0 else _to_be_kept(payload))
        if self._missing > 0:
            return None
        self._first = self._header = None
        whole = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        return AssembledGroup(
            header=header,
            payload=None if first.header_only or error else whole,
            delivery=first.delivery,
            log_ratios=first.log_ratios,
            error=error,
        )

    def _limit_error(self, header: group_pb2.GroupHeader) -> GroupTooLargeError | None:
        if self._max_group_bytes is None or header.payload_bytes <= self._max_group_bytes:
            return None
        return too_large(header.group_id, header.payload_bytes, self._max_group_bytes)


def _to_be_kept(piece: bytes | memoryview) -> bytes | memoryview:
    """Return a piece that waits for others: a view would keep the whole message, however little of it is payload."""
    return bytes(piece) if len(piece) < MESSAGE_BYTES // 2 else piece


@dataclass(frozen=True, slots=True)
class AssembledSnapshotGroup:
    """A group of a snapshot whose parts have all come."""

    entry: replay_service_pb2.SnapshotEntry
    header: bytes
    """A serialized GroupHeader."""
    payload: bytes
    """Empty where the table keeps none."""


class SnapshotAssembler:
    """Puts the groups of a snapshot together from their parts."""

    def __init__(self) -> None:
        self._first: replay_service_pb2.SnapshotGroup | None = None
        self._pieces: list[bytes] = []
        self._missing = 0

    def add(self, part: replay_service_pb2.SnapshotGroup) -> AssembledSnapshotGroup | None:
        """Take the next part; return the group if it was its last.

        Raises:
            InvalidRequestError: a part that belongs to no group, or more or fewer bytes than its entry says.
        """
        if part.HasField("entry"):
            self.check_complete()
            self._first, self._pieces, self._missing = part, [], part.entry.payload_bytes
        if self._first is None:
            raise InvalidRequestError("the snapshot continues a group that never began: its first part has no entry")
        first = self._first
        self._pieces.append(part.payload)
        self._missing -= len(part.payload)
        if self._missing < 0:
            raise InvalidRequestError(
                f"group {first.entry.group_id} of the snapshot: {-self._missing} bytes more than its payload_bytes "
                f"{first.entry.payload_bytes}"
            )
        if self._missing:
            return None
        self._first = None
        whole = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        return AssembledSnapshotGroup(first.entry, first.header, whole)

    def check_complete(self) -> None:
        """Raise InvalidRequestError when a group is not yet whole."""
        if self._first is not None:
            raise InvalidRequestError(
                f"group {self._first.entry.group_id} of the snapshot: {self._missing} payload bytes are missing"
            )


def too_large(group_id: str, size: int, limit: int) -> GroupTooLargeError:
    """Return the error of a payload of `size` bytes in a table that takes at most `limit`."""
    return GroupTooLargeError(
        f"group {group_id}: its payload is {size} bytes, the table takes at most {limit}; "
        "shorten the responses or raise max_group_bytes"
    )


def varint(value: int) -> bytes:
    """Return a number, or the length of what follows, as protobuf has it on the wire."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
