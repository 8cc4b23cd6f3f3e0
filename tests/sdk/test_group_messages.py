"""Messages that are written and read by hand are those of the generated classes."""

import sys
import time

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from groupreplay.group_messages import (
    insert_request,
    insert_stream_requests,
    read_batch_response,
    read_groups_response,
    read_insert_request,
    read_insert_stream_request,
)
from groupreplay.parts import MESSAGE_BYTES, Part, PartAssembler, varint
from groupreplay.v1 import group_pb2
from groupreplay.v1 import replay_service_pb2 as pb

SIZES = [0, 1, 127, 128, 129, 16_383, 16_384, MESSAGE_BYTES - 1, MESSAGE_BYTES, 2 * MESSAGE_BYTES + 3]
HEADER = group_pb2.GroupHeader(group_id="g", rewards=[0.0, 1.0], payload_bytes=3, tags={"a": "é"}, priority=0.0)
DELIVERY = group_pb2.Delivery(source=group_pb2.REPLAY, staleness=-3, probability=0.25, redeliveries=7)


def window(sizes: list[int]) -> list[tuple[group_pb2.GroupHeader, bytes]]:
    """Return groups of these payload sizes."""
    return [
        (group_pb2.GroupHeader(group_id=f"g{number}", payload_bytes=size), bytes([number + 1]) * size)
        for number, size in enumerate(sizes)
    ]


def test_the_generated_classes_read_an_insert() -> None:
    """Also with empty names and payloads."""
    groups = window(SIZES[:8])
    for run, table in (("run", "table"), ("", "")):
        message = pb.InsertRequest.FromString(insert_request(run, table, groups))
        assert message == pb.InsertRequest(
            run=run,
            table=table,
            groups=[group_pb2.RolloutGroup(header=header, payload=payload) for header, payload in groups],
        )


def test_the_generated_classes_read_an_insert_stream() -> None:
    """The parts make the groups, and only the first message names the table."""
    groups = window(SIZES)
    messages = [pb.InsertStreamRequest.FromString(data) for data in insert_stream_requests("r", "t", groups)]
    assert [(message.run, message.table) for message in messages] == [("r", "t")] + [("", "")] * (len(messages) - 1)
    assembler = PartAssembler()
    parts = [Part.from_proto(part) for message in messages for part in message.parts]
    found = [whole for part in parts if (whole := assembler.add(part))]
    assembler.check_complete()
    assert [(each.header, each.payload) for each in found] == [(header, payload or None) for header, payload in groups]


def test_what_the_generated_classes_wrote_is_read() -> None:
    """All fields of parts and groups, those that are absent, and empty ones."""
    first = group_pb2.GroupPart(header=HEADER, delivery=DELIVERY, payload=b"abc")
    later = group_pb2.GroupPart(payload=b"d")
    left_out = group_pb2.GroupPart(header=group_pb2.GroupHeader(), header_only=True)
    parts = [first, later, left_out]
    expected = [Part.from_proto(part) for part in parts]
    streamed = read_insert_stream_request(pb.InsertStreamRequest(run="r", parts=parts).SerializeToString())
    assert (streamed.run, streamed.table, streamed.parts) == ("r", "", expected)
    batch = pb.BatchHeader(lease_id="lease", groups=3)
    read = read_batch_response(pb.NextBatchResponse(batch=batch, parts=parts).SerializeToString())
    assert (read.batch, read.parts) == (batch, expected)
    assert read_batch_response(pb.NextBatchResponse(parts=parts).SerializeToString()).batch is None
    assert read_batch_response(pb.NextBatchResponse(batch=pb.BatchHeader()).SerializeToString()).batch is not None
    for response in (pb.GetGroupsResponse(parts=parts), pb.ReadLeaseResponse(parts=parts)):
        assert read_groups_response(response.SerializeToString()).parts == expected
    groups = [group_pb2.RolloutGroup(header=HEADER, payload=b"abc"), group_pb2.RolloutGroup(header=HEADER)]
    inserted = read_insert_request(pb.InsertRequest(run="r", table="té", groups=groups).SerializeToString())
    assert (inserted.run, inserted.table) == ("r", "té")
    assert [(group.header, group.payload) for group in inserted.groups] == [(HEADER, b"abc"), (HEADER, None)]


def test_fields_that_come_twice_are_merged_and_unknown_ones_skipped() -> None:
    """As the encoding of protobuf wants it of every reader."""
    twice = b"".join(
        group_pb2.RolloutGroup(header=header).SerializeToString()
        for header in (group_pb2.GroupHeader(group_id="g"), group_pb2.GroupHeader(prompt_id="p"))
    )
    # Field 15, each wire type; then what would be the run, as a number.
    unknown = b"\x79" + bytes(8) + b"\x7d" + bytes(4) + b"\x78\x05" + b"\x7a\x02ab" + b"\x7b\x78\x05\x7c"
    data = b"\x1a" + bytes([len(twice)]) + twice + unknown + b"\x08\x05"
    [group] = read_insert_request(data).groups
    assert group.header == group_pb2.GroupHeader(group_id="g", prompt_id="p")
    assert pb.InsertRequest.FromString(data).groups[0].header == group.header


def test_a_header_in_many_pieces_costs_no_more_than_its_bytes() -> None:
    """Merging piece by piece would copy 130 GB here, while every other caller of the server waits."""
    pieces = group_pb2.RolloutGroup(header=group_pb2.GroupHeader(group_id="g" * 60)).SerializeToString() * 65_000
    data = b"\x1a" + varint(len(pieces)) + pieces
    began = time.process_time()
    [group] = read_insert_request(data).groups
    assert time.process_time() - began < 5
    assert group.header.group_id == "g" * 60


@pytest.mark.parametrize("payload", [b"", b"x"])
def test_a_group_that_is_not_whole_yet_keeps_no_messages(payload: bytes) -> None:
    """Or a stream of messages with next to no payload in them would fill the server's memory."""
    assembler = PartAssembler(max_group_bytes=1000)
    header = group_pb2.GroupHeader(group_id="g", payload_bytes=1000)
    first = pb.InsertStreamRequest(parts=[group_pb2.GroupPart(header=header)]).SerializeToString()
    part = b"\x1a" + varint(len(payload)) + payload
    data = b"\x1a" + varint(len(part)) + part + b"\x7a" + varint(1000) + bytes(1000)  # field 15 is unknown
    before = sys.getrefcount(data)
    for message in (first, data, data):
        for each in read_insert_stream_request(message).parts:
            assert assembler.add(each) is None
    del each, message
    assert sys.getrefcount(data) == before


@given(st.binary(max_size=40))
@settings(max_examples=300)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    """Bytes that mean nothing end in DecodeError, as with the generated classes, and never in another error."""
    try:
        pb.InsertStreamRequest.FromString(data)
    except DecodeError:
        with pytest.raises(DecodeError):
            read_insert_stream_request(data)
        return
    read_insert_stream_request(data)


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_message_that_was_cut_short_is_refused(cut: int) -> None:
    """A payload is not taken for a shorter one."""
    data = insert_request("r", "t", [(HEADER, bytes(100))])
    with pytest.raises(DecodeError):
        read_insert_request(data[:-cut])
