"""Messages of groups that are read by hand: whatever bytes come, they are what the generated classes make of them."""

from typing import Any

import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import given
from hypothesis import strategies as st
from security.any_message import messages
from security.fuzzing import fuzz

from groupreplay.group_messages import MAX_REQUEST_FIELDS, read_insert_request, read_insert_stream_request
from groupreplay.parts import Part
from groupreplay.v1 import replay_service_pb2 as pb

READERS = {pb.InsertRequest: read_insert_request, pb.InsertStreamRequest: read_insert_stream_request}
# Tags of fields that there are, of groups, and of others; lengths; numbers that go on.
_TELLING = st.sampled_from(
    [bytes([it]) for it in b"\x00\x01\x02\x08\x09\x0a\x0b\x0c\x0d\x12\x18\x1a\x20\x7f\x80\x81\xff"]
)
_TELLING_BYTES = st.lists(_TELLING | st.binary(min_size=1, max_size=1), max_size=24).map(b"".join)


def within(data: bytes) -> bytes:
    """Return a message with one group, or part, of these bytes."""
    return b"\x1a" + bytes([len(data)]) + data


EDGES = {
    **{f"a tag of {more + 2} bytes": b"\x8a" + b"\x80" * more + b"\x00\x01a" for more in range(10)},
    **{f"a length of {more + 2} bytes": b"\x0a\x81" + b"\x80" * more + b"\x00a" for more in range(10)},
    **{f"a number that ends in {last}": b"\x20" + b"\x80" * 9 + bytes([last]) for last in (0, 1, 2, 127)},
    **{f"{depth} groups": b"\x7b" * depth + b"\x7c" * depth for depth in (1, 100, 101)},
    "a name that is not UTF-8": b"\x0a\x01\xff",
    "field 0": b"\x02\x00",
}


def said_by_hand(cls: type[Message], data: bytes) -> Any:
    """Return what the reader finds, comparable also where there is NaN in it; None = no message."""
    try:
        message = READERS[cls](data)
    except DecodeError:
        return None
    groups = [(written(it.header), bytes(it.payload or b"")) for it in message.groups]
    return message.run, message.table, groups, [said_of(part) for part in message.parts]


def said_by_protobuf(cls: type[Message], data: bytes) -> Any:
    """Return the same of the generated class."""
    try:
        message: Any = cls.FromString(data)
    except DecodeError:
        return None
    groups = [(written(it.header), it.payload) for it in getattr(message, "groups", ())]
    return message.run, message.table, groups, [said_of(Part.from_proto(it)) for it in getattr(message, "parts", ())]


def said_of(part: Part) -> tuple[bytes | None, bytes | None, bytes, bool]:
    """Return all of a part."""
    return written(part.header), written(part.delivery), bytes(part.payload), part.header_only


def written(message: Message | None) -> bytes | None:
    """Return the bytes of a message that may be absent."""
    return None if message is None else message.SerializeToString(deterministic=True)


@pytest.mark.parametrize("cls", READERS)
def test_any_bytes_are_what_the_generated_classes_make_of_them(
    cls: type[Message], request: pytest.FixtureRequest
) -> None:
    """The same fields, or no message for either; and no other error."""

    @fuzz(request, 500)
    @given(messages(cls) | _TELLING_BYTES | _TELLING_BYTES.map(within))
    def compare(data: bytes) -> None:
        assert said_by_hand(cls, data) == said_by_protobuf(cls, data)

    compare()


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("cls", READERS)
def test_the_edges_of_the_encoding_are_where_the_generated_classes_have_them(cls: type[Message], edge: str) -> None:
    """Of the message, and of what is in it."""
    data = EDGES[edge]
    assert said_by_hand(cls, data) == said_by_protobuf(cls, data)
    if len(data) < 128 and not edge.endswith("groups"):  # these go less deep within
        assert said_by_hand(cls, within(data)) == said_by_protobuf(cls, within(data))


@pytest.mark.parametrize("fields", [b"\x1a\x00", b"\x78\x01", within(b"\x1a\x00" * 60)])
@pytest.mark.parametrize("cls", READERS)
def test_a_message_of_too_many_fields_is_refused(cls: type[Message], fields: bytes) -> None:
    """Their number, not their bytes, is what reading takes time for, and all callers would wait meanwhile."""
    with pytest.raises(DecodeError, match=f"more than {MAX_REQUEST_FIELDS} fields; send fewer groups"):
        READERS[cls](fields * (MAX_REQUEST_FIELDS + 1))
