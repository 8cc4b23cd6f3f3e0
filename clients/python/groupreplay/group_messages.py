"""Messages that carry groups, written and read by hand: payloads are copied once on the way out, and not on the way in.

The bytes are those of the generated classes, which would copy each payload three or four times; tests hold the two
against each other.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from groupreplay.parts import MESSAGE_BYTES, AssembledGroup, Part, varint
from groupreplay.v1 import group_pb2
from groupreplay.v1 import replay_service_pb2 as pb

BATCH_PARTS = b"\x12"  # NextBatchResponse.parts = 2
READ_PARTS = b"\x0a"  # GetGroupsResponse.parts = 1, ReadLeaseResponse.parts = 1
HEADER_ONLY = b"\x20\x01"  # GroupPart.header_only = 4, true
HEADER, DELIVERY, _PAYLOAD = b"\x0a", b"\x12", b"\x1a"  # GroupPart.header = 1, .delivery = 2, .payload = 3
LOG_RATIOS = b"\x2a"  # GroupPart.log_ratios = 5
_INSERTED = b"\x1a"  # InsertRequest.groups = 3, InsertStreamRequest.parts = 3
_GROUP_PAYLOAD = b"\x12"  # RolloutGroup.payload = 2, beside .header = 1
_VARINT, _FIXED64, _BYTES, _GROUP, _GROUP_END, _FIXED32 = range(6)
_LONGEST_VARINT, _LONGEST_TAG = 10, 5
_LARGE_FIELDS_BYTES = 2**18
_DEEPEST_GROUP = 100  # the generated classes stop there too
MAX_REQUEST_FIELDS = 65_536
"""Of an InsertRequest or InsertStreamRequest, with those of its groups and parts. Python takes microseconds for each,
and one message has room for two million."""
# Tags as numbers; what the fields of each message are stands in the protocol.
_FIELD_1, _FIELD_2, _FIELD_3, _FIELD_5 = (number << 3 | _BYTES for number in (1, 2, 3, 5))
_FLAG_4 = 4 << 3 | _VARINT
_SERVICE = f"/{pb.DESCRIPTOR.services_by_name['ReplayService'].full_name}/"

Window = Sequence[tuple[group_pb2.GroupHeader, bytes]]


@dataclass(slots=True)
class _Budget:
    """Fields that are still read."""

    fields_left: int

    def spend(self) -> None:
        self.fields_left -= 1
        if self.fields_left < 0:
            raise DecodeError(f"it has more than {MAX_REQUEST_FIELDS} fields; send fewer groups in one message")


class MessagePacker:
    """Packs groups into messages of about MESSAGE_BYTES; a group's header may take one past that.

    Fields that are large themselves, as log ratios can make them, go ahead of the payload in a part of their own, or
    both would take a message past gRPC's limit.
    """

    def __init__(self, first: bytes, tag: bytes) -> None:
        """Begin the first message with these fields; tag is that of parts."""
        self._pending: list[bytes | memoryview] = [first]
        self._tag = tag
        self._size = 0

    def add(self, fields: bytes, payload: bytes | memoryview) -> Iterator[bytes]:
        """Add a group: its fields with the first piece of its payload, then the other pieces; yield full messages."""
        view = memoryview(payload)
        pieces = [view[start : start + MESSAGE_BYTES] for start in range(0, max(len(view), 1), MESSAGE_BYTES)]
        if len(fields) > _LARGE_FIELDS_BYTES and view:
            pieces.insert(0, view[:0])
        for index, piece in enumerate(pieces):
            before = (fields if index == 0 else b"") + _PAYLOAD + varint(len(piece))
            length = varint(len(before) + len(piece))
            part_bytes = len(self._tag) + len(length) + len(before) + len(piece)
            if self._size and self._size + part_bytes > MESSAGE_BYTES:
                yield self.finish()
            self._pending += [self._tag, length, before, piece]
            self._size += part_bytes

    def finish(self) -> bytes:
        """Return the message so far, and begin the next."""
        message = b"".join(self._pending)
        self._pending, self._size = [], 0
        return message


def delimited(tag: bytes, content: bytes) -> bytes:
    """Return a field of bytes."""
    return b"".join((tag, varint(len(content)), content))


def insert_request(run: str, table: str, window: Window) -> bytes:
    """Return an InsertRequest of groups."""
    pieces = [pb.InsertRequest(run=run, table=table).SerializeToString()]
    for header, payload in window:
        before = delimited(HEADER, header.SerializeToString()) + _GROUP_PAYLOAD + varint(len(payload))
        pieces += [_INSERTED, varint(len(before) + len(payload)), before, payload]
    return b"".join(pieces)


def insert_stream_requests(run: str, table: str, window: Window) -> Iterator[bytes]:
    """Yield the InsertStreamRequests of groups."""
    packer = MessagePacker(pb.InsertStreamRequest(run=run, table=table).SerializeToString(), _INSERTED)
    for header, payload in window:
        yield from packer.add(
            delimited(HEADER, header.SerializeToString()) + (b"" if payload else HEADER_ONLY), payload
        )
    yield packer.finish()


@dataclass(frozen=True, slots=True)
class InsertMessage:
    """An InsertRequest, or an InsertStreamRequest; payloads are views of the bytes that came."""

    run: str
    table: str
    size_bytes: int
    """As it came."""
    groups: Sequence[AssembledGroup] = ()
    """Of an InsertRequest."""
    parts: Sequence[Part] = ()
    """Of an InsertStreamRequest."""


@dataclass(frozen=True, slots=True)
class GroupsMessage:
    """A response that carries groups; payloads are views of the bytes that came."""

    parts: Sequence[Part]
    batch: pb.BatchHeader | None = None
    """On the first message of a batch."""


def read_insert_request(data: bytes) -> InsertMessage:
    """Read an InsertRequest.

    Raises:
        DecodeError: it is none, or has more than MAX_REQUEST_FIELDS.
    """
    budget = _Budget(MAX_REQUEST_FIELDS)
    run, table, groups = _insert_fields(data, budget)
    return InsertMessage(run, table, len(data), groups=[_read_group(group, budget) for group in groups])


def read_insert_stream_request(data: bytes) -> InsertMessage:
    """Read an InsertStreamRequest.

    Raises:
        DecodeError: it is none, or has more than MAX_REQUEST_FIELDS.
    """
    budget = _Budget(MAX_REQUEST_FIELDS)
    run, table, parts = _insert_fields(data, budget)
    return InsertMessage(run, table, len(data), parts=[_read_part(part, budget) for part in parts])


def read_batch_response(data: bytes) -> GroupsMessage:
    """Read a NextBatchResponse.

    Raises:
        DecodeError: it is none.
    """
    batch: list[memoryview] = []
    parts = []
    for tag, value in _fields(memoryview(data)):
        if tag == _FIELD_1:
            batch.append(value)
        elif tag == _FIELD_2:
            parts.append(_read_part(value))
    return GroupsMessage(parts, pb.BatchHeader.FromString(_merged(batch)) if batch else None)


def read_groups_response(data: bytes) -> GroupsMessage:
    """Read a GetGroupsResponse or a ReadLeaseResponse.

    Raises:
        DecodeError: it is none.
    """
    return GroupsMessage([_read_part(value) for tag, value in _fields(memoryview(data)) if tag == _FIELD_1])


class GroupStub:
    """The calls that carry groups, as the generated stub has them, with these messages."""

    def __init__(self, channel: Any) -> None:
        """Make calls over a channel."""

        def streamed(name: str, request: type[Any], read: Callable[[bytes], GroupsMessage]) -> Any:
            return channel.unary_stream(
                _SERVICE + name, request_serializer=request.SerializeToString, response_deserializer=read
            )

        answer = pb.InsertResponse.FromString
        self.insert = channel.unary_unary(_SERVICE + "Insert", response_deserializer=answer)
        self.insert_stream = channel.stream_stream(_SERVICE + "InsertStream", response_deserializer=answer)
        self.next_batch = streamed("NextBatch", pb.NextBatchRequest, read_batch_response)
        self.sample = streamed("Sample", pb.SampleRequest, read_batch_response)
        self.replay_step = streamed("ReplayStep", pb.ReplayStepRequest, read_batch_response)
        self.read_lease = streamed("ReadLease", pb.ReadLeaseRequest, read_groups_response)
        self.get_groups = streamed("GetGroups", pb.GetGroupsRequest, read_groups_response)


def _insert_fields(data: bytes, budget: _Budget) -> tuple[str, str, list[memoryview]]:
    run = table = ""
    groups = []
    for tag, value in _fields(memoryview(data), budget):
        if tag == _FIELD_1:
            run = _text(value)
        elif tag == _FIELD_2:
            table = _text(value)
        elif tag == _FIELD_3:
            groups.append(value)
    return run, table, groups


def _read_group(data: memoryview, budget: _Budget) -> AssembledGroup:
    header: list[memoryview] = []
    payload = memoryview(b"")
    for tag, value in _fields(data, budget):
        if tag == _FIELD_1:
            header.append(value)
        elif tag == _FIELD_2:
            payload = value
    return AssembledGroup(group_pb2.GroupHeader.FromString(_merged(header)), payload or None)


def _read_part(data: memoryview, budget: _Budget | None = None) -> Part:
    header: list[memoryview] = []
    delivery: list[memoryview] = []
    log_ratios: list[memoryview] = []
    payload, header_only = memoryview(b""), False
    for tag, value in _fields(data, budget):
        if tag == _FIELD_1:
            header.append(value)
        elif tag == _FIELD_2:
            delivery.append(value)
        elif tag == _FIELD_3:
            payload = value
        elif tag == _FLAG_4:
            header_only = _read_varint(value, 0)[0] % 2**64 != 0
        elif tag == _FIELD_5:
            log_ratios.append(value)
    return Part(
        header=group_pb2.GroupHeader.FromString(_merged(header)) if header else None,
        delivery=group_pb2.Delivery.FromString(_merged(delivery)) if delivery else None,
        payload=payload,
        header_only=header_only,
        log_ratios=group_pb2.LogRatios.FromString(_merged(log_ratios)) if log_ratios else None,
    )


def _merged(times: Sequence[memoryview]) -> bytes:
    """Return a message that came so many times as one: the encoding wants them merged, field by field."""
    return b"".join(times)


def _text(value: memoryview) -> str:
    try:
        return str(value, "utf-8")
    except UnicodeDecodeError as error:
        raise DecodeError(f"a name is not UTF-8: {error}") from None


def _fields(data: memoryview, budget: _Budget | None = None) -> Iterator[tuple[int, memoryview]]:
    """Yield tag and content of each field of a message, of a number its encoding; those inside of groups are left out.

    Whoever compares tags with those that it knows skips unknown fields, and fields of another type, as it should.
    """
    position, end = 0, len(data)
    groups: list[int] = []
    while position < end:
        if budget is not None:
            budget.spend()
        tag, position = _read_varint(data, position, _LONGEST_TAG)
        kind = tag & 7
        if not 8 <= tag < 2**32:
            raise DecodeError(f"field {tag >> 3} cannot be")
        start = position
        if kind == _BYTES:
            size, start = _read_varint(data, position)
            position = start + size
        elif kind == _VARINT:
            _, position = _read_varint(data, position)
        elif kind == _FIXED64:
            position += 8
        elif kind == _FIXED32:
            position += 4
        else:
            _begin_or_end_group(groups, tag)
        if position > end:
            raise DecodeError(f"field {tag >> 3} ends {position - end} bytes behind its message")
        if not groups and kind != _GROUP_END:
            yield tag, data[start:position]
    if groups:
        raise DecodeError(f"the group of field {groups[-1]} does not end")


def _begin_or_end_group(groups: list[int], tag: int) -> None:
    number, kind = tag >> 3, tag & 7
    if kind == _GROUP and len(groups) < _DEEPEST_GROUP:
        groups.append(number)
    elif kind != _GROUP_END or not groups or groups.pop() != number:
        raise DecodeError(f"field {number} has the wire type {kind}, out of place")


def _read_varint(data: memoryview, position: int, longest: int = _LONGEST_VARINT) -> tuple[int, int]:
    value = 0
    for shift, byte in enumerate(data[position : position + longest]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, position + shift + 1
    raise DecodeError("the message ends within a number, or the number is too long")
