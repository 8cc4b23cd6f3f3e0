"""Messages of the protocol with anything in them, and some of them broken."""

from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

RUN, TABLE = "fuzz", "train"
MOST_BYTES = 64
_ODD_NAMES = ["a", "", "a/b", "\x00", "ä", "x" * 300, "{fuzz}:policy", "gr1:runs", "-1", "NaN"]
_NAMES = st.sampled_from([RUN, TABLE, *_ODD_NAMES])
_SMALL = st.sampled_from([1.0] * 8 + [0.0, 5.0, -1.0, float("nan"), float("inf")])
_IDS = st.sampled_from([RUN] * 12 + _ODD_NAMES)
# What decides whether a call gets beyond its first check is mostly as it should be.
_LIKELY: dict[str, st.SearchStrategy[Any]] = {
    "run": st.sampled_from([RUN] * 20 + _ODD_NAMES),
    "table": st.sampled_from([TABLE] * 20 + _ODD_NAMES),
    "timeout_s": st.sampled_from([0.0] * 8 + [0.02, -1.0]),
    "batch_size": st.sampled_from([1] * 8 + [0, 2, 2**31]),
    "max_groups": st.sampled_from([1] * 8 + [0, 2**31]),
    **dict.fromkeys(("lease_s", "interval_s", "admission_s"), _SMALL),
    **dict.fromkeys(("lease_id", "producer_id", "group_id", "rewind_id", "piece_id", "name"), _IDS),
}
_INTEGERS = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
}


@cache
def fields_of(descriptor: Descriptor, depth: int = 0) -> st.SearchStrategy[dict[str, Any]]:
    """Return dicts that a message of this type is made from; times to wait are short, names often those of a table."""
    values: dict[str, st.SearchStrategy[Any]] = {}
    likely: dict[str, st.SearchStrategy[Any]] = {}
    for field in descriptor.fields:
        if field.message_type is not None and (depth > 3 or field.message_type.GetOptions().map_entry):
            continue
        one = _value(field, depth)
        if field.name in _LIKELY and field.message_type is None:
            likely[field.name] = _LIKELY[field.name]
            continue
        values[field.name] = st.lists(one, max_size=3) if field.is_repeated else one
    return st.fixed_dictionaries(likely, optional=values)


def _value(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        return st.deferred(lambda: fields_of(field.message_type, depth + 1))
    if field.enum_type is not None:
        return st.sampled_from([value.number for value in field.enum_type.values]) | st.integers(-(2**31), 2**31 - 1)
    if field.type in _INTEGERS:
        low, high = _INTEGERS[field.type]
        return st.integers(0, 3) | st.integers(low, high) | st.sampled_from([low, high])
    simple: dict[int, st.SearchStrategy[Any]] = {
        FieldDescriptor.TYPE_BOOL: st.booleans(),
        FieldDescriptor.TYPE_FLOAT: st.floats(width=32),
        FieldDescriptor.TYPE_DOUBLE: st.floats(),
        FieldDescriptor.TYPE_BYTES: st.binary(max_size=MOST_BYTES),
        FieldDescriptor.TYPE_STRING: _NAMES | st.text(max_size=20),
    }
    return simple[field.type]


def messages(cls: type[Message]) -> st.SearchStrategy[bytes]:
    """Return serialized messages: well-formed, cut, with bytes changed, or no message at all."""
    descriptor: Any = cls.DESCRIPTOR
    whole = fields_of(descriptor).map(lambda fields: cls(**fields).SerializeToString())
    kinds = (whole, whole.flatmap(_damaged), st.binary(max_size=256))
    return st.sampled_from([0, 0, 0, 0, 1, 2]).flatmap(kinds.__getitem__)


def _damaged(data: bytes) -> st.SearchStrategy[bytes]:
    if not data:
        return st.just(b"\xff")
    changed = st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)).map(
        lambda it: data[: it[0]] + bytes([it[1]]) + data[it[0] + 1 :]
    )
    return changed | st.integers(0, len(data) - 1).map(lambda end: data[:end])
