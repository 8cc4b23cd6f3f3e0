"""Groups in pieces."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groupreplay import GroupTooLargeError, InvalidGroupError
from groupreplay.parts import MESSAGE_BYTES, AssembledGroup, Part, PartAssembler, pack_parts, split_group
from groupreplay.v1 import group_pb2
from groupreplay.v1 import replay_service_pb2 as pb

GRPC_LIMIT = 4 * 2**20
sizes = st.lists(
    st.one_of(st.integers(0, 300), st.integers(-9, 9).map(lambda n: MESSAGE_BYTES + n), st.just(3 * MESSAGE_BYTES + 1)),
    max_size=6,
)


def header(name: str, size: int, note: str = "") -> group_pb2.GroupHeader:
    """Return a header of a payload of this size."""
    return group_pb2.GroupHeader(group_id=name, payload_bytes=size, tags={"note": note})


def assemble(assembler: PartAssembler, parts: list[group_pb2.GroupPart]) -> list[AssembledGroup]:
    """Return the groups that the parts make."""
    return [group for part in parts if (group := assembler.add(Part.from_proto(part))) is not None]


@given(sizes)
@settings(max_examples=30)
def test_groups_of_any_size_survive_being_cut_packed_and_put_together(payload_sizes: list[int]) -> None:
    """In order, byte by byte, an empty payload included."""
    groups = [(header(f"g{n}", size), bytes([n]) * size) for n, size in enumerate(payload_sizes)]
    packed = list(pack_parts(part for each in groups for part in split_group(*each)))
    assembler = PartAssembler()
    whole = assemble(assembler, [part for parts in packed for part in parts])
    assembler.check_complete()
    assert [(group.header.group_id, group.payload or b"") for group in whole] == [
        (each.group_id, payload) for each, payload in groups
    ]
    assert all(group.error is None for group in whole)


@given(sizes, st.sampled_from([0, 2_000, 200_000]))
@settings(max_examples=8)
def test_no_message_exceeds_the_limit_of_grpc(payload_sizes: list[int], note_bytes: int) -> None:
    """However the bytes are shared between headers and payloads."""
    groups = [(header("g", size, "n" * note_bytes), bytes(size)) for size in payload_sizes for _ in range(9)]
    for parts in pack_parts(part for each in groups for part in split_group(*each)):
        assert pb.InsertStreamRequest(run="r" * 128, table="t" * 128, parts=parts).ByteSize() < GRPC_LIMIT


@pytest.mark.parametrize(("count", "note_bytes"), [(5000, 900), (100, 250_000)])
def test_headers_count_towards_the_size_of_a_message(count: int, note_bytes: int) -> None:
    """Annotations may outweigh tokens."""
    groups = [(header(f"g{n}", 50, "n" * note_bytes), bytes(50)) for n in range(count)]
    packed = list(pack_parts(part for each in groups for part in split_group(*each)))
    assert max(pb.InsertStreamRequest(parts=parts).ByteSize() for parts in packed) < GRPC_LIMIT
    assert sum(map(len, packed)) == count


def test_small_groups_share_a_message() -> None:
    """A thousand groups are not a thousand messages."""
    packed = list(pack_parts(part for n in range(1000) for part in split_group(header(f"g{n}", 100), bytes(100))))
    assert len(packed) == 1


def test_a_payload_above_the_limit_is_thrown_away_as_it_comes() -> None:
    """A group that is refused costs no memory, and its successor is whole."""
    assembler = PartAssembler(max_group_bytes=100)
    large, small = header("large", 3 * MESSAGE_BYTES), header("small", 100)
    parts = [*split_group(large, bytes(3 * MESSAGE_BYTES)), *split_group(small, bytes(100))]
    [refused, taken] = assemble(assembler, parts)
    assert refused.payload is None
    assert isinstance(refused.error, GroupTooLargeError)
    assert f"group large: its payload is {3 * MESSAGE_BYTES} bytes, the table takes at most 100" in str(refused.error)
    assert (taken.payload, taken.error) == (bytes(100), None)


def test_a_group_at_the_limit_is_taken() -> None:
    """The limit is inclusive."""
    [group] = assemble(PartAssembler(max_group_bytes=100), list(split_group(header("g", 100), bytes(100))))
    assert group.error is None


def test_a_payload_that_was_left_out_on_purpose_is_none() -> None:
    """Not the same as an empty one."""
    part = group_pb2.GroupPart(header=header("g", 100), header_only=True)
    [group] = assemble(PartAssembler(), [part])
    assert group.payload is None


def test_a_stream_that_ends_in_the_middle_is_found() -> None:
    """The message says how much is missing."""
    assembler = PartAssembler()
    assemble(assembler, list(split_group(header("g", MESSAGE_BYTES + 5), bytes(MESSAGE_BYTES + 5)))[:1])
    with pytest.raises(InvalidGroupError, match="group g: the stream ended with 5 payload bytes missing"):
        assembler.check_complete()
