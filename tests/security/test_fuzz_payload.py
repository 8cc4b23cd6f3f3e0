"""What reads groups, on either side, takes any bytes: an error of ours, or a group, in memory of their own size."""

import tracemalloc
from contextlib import suppress
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from samples import make_group
from security.any_message import fields_of

from groupreplay import GroupReplayError
from groupreplay.convert import group_from_wire, group_to_wire
from groupreplay.parts import Part, PartAssembler
from groupreplay.payload import MAGIC
from groupreplay.table_config import TableConfig
from groupreplay.v1 import group_pb2
from groupreplay_server.headers import read_group

HEADER: Any = group_pb2.GroupHeader.DESCRIPTOR
PART: Any = group_pb2.GroupPart.DESCRIPTOR
PEAK_BYTES = 4 * 2**20
"""For groups of at most some kilobytes, whatever their headers claim."""
CHANGES = st.dictionaries(
    st.sampled_from(["prompt_length", "payload_bytes", "policy_version_min", "policy_version_max"]),
    st.integers(0, 2**31 - 1),
)
SHAPES = st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 4), max_size=40)


def read_both(header: group_pb2.GroupHeader, payload: bytes) -> None:
    """Read a group as the server does and as a client does."""
    tracemalloc.start()
    try:
        for read in (lambda: read_group(header, payload, TableConfig()), lambda: group_from_wire(header, payload)):
            with suppress(GroupReplayError):
                read()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < PEAK_BYTES


@settings(max_examples=200)
@given(fields_of(HEADER), st.binary(max_size=256), st.booleans())
def test_any_header_with_any_bytes(fields: dict[str, Any], data: bytes, begins_well: bool) -> None:
    """Nothing fits nothing."""
    read_both(group_pb2.GroupHeader(**fields), (MAGIC if begins_well else b"") + data)


@settings(max_examples=200)
@given(CHANGES, st.integers(0, 5), SHAPES, st.integers(0, 4000), st.integers(0, 255))
def test_a_real_group_with_a_lie_in_it(
    changes: dict[str, int], column: int, shape: list[int], at: int, byte: int
) -> None:
    """A length, a shape and a byte are other than they should be."""
    header, payload = group_to_wire(make_group("lie", prompt_text="?", response_texts=("a", "b")))
    for name, value in changes.items():
        setattr(header, name, value)
    header.columns[column % len(header.columns)].shape[:] = shape
    at %= len(payload)
    read_both(header, payload[:at] + bytes([byte]) + payload[at + 1 :])


@settings(max_examples=200)
@given(st.lists(fields_of(PART), max_size=6))
def test_any_parts_in_any_order(parts: list[dict[str, Any]]) -> None:
    """A stream that begins in the middle, says it is longer than it is, or never ends."""
    assembler = PartAssembler(4096)
    with suppress(GroupReplayError):
        for fields in parts:
            assembler.add(Part.from_proto(group_pb2.GroupPart(**fields)))
        assembler.check_complete()
