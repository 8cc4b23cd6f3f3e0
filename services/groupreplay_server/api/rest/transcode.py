"""Messages of the protocol <-> plain JSON, by their descriptors; groups.py has rollout groups, which are plainer still.

The rules: a field keeps its name; numbers are numbers, 64-bit ones too; bytes are base64; an enum's value is the SDK's
word for it (`FILL_REPLAY` is "replay"); what is absent is null. A number that is not finite is the string "NaN",
"Infinity" or "-Infinity". On the way in a field that is left out, or null, is absent, and one that the message does not
have is refused.
"""

import base64
import binascii
import json
import math
from collections.abc import Mapping
from functools import cache
from typing import Any, cast

import numpy as np
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from groupreplay.errors import InvalidRequestError
from groupreplay.payload import Array
from groupreplay.v1 import error_pb2, table_pb2

Json = Any
"""What orjson reads and writes."""

INTEGERS = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
}
COLUMNS = {table_pb2.GroupFeedback.DESCRIPTOR.fields_by_name["log_ratios"].full_name: "float16"}
"""Fields of bytes that are numbers, and their dtype: an array of numbers, or base64 of their little-endian bytes."""
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_LARGEST_FLOAT = 3.4028235677973366e38
"""The first number that rounds to infinity in 32 bits."""


@cache
def words_of(enum: EnumDescriptor) -> dict[int, str]:
    """Return number -> word: without the prefix that all names share, in lower case; reasons of errors as they are."""
    names = {value.number: value.name for value in enum.values if value.number}
    if enum.full_name == error_pb2.ErrorReason.DESCRIPTOR.full_name:
        return names
    first = next(iter(names.values()))
    prefix = max(
        (first[: end + 1] for end, letter in enumerate(first) if letter == "_"),
        key=lambda it: len(it) if all(name.startswith(it) for name in names.values()) else 0,
        default="",
    )
    shared = prefix if all(name.startswith(prefix) for name in names.values()) else ""
    return {number: name.removeprefix(shared).lower() for number, name in names.items()}


@cache
def _numbers_of(enum: EnumDescriptor) -> dict[str, int]:
    return {word: number for number, word in words_of(enum).items()}


def fields_of(message: Message) -> dict[str, FieldDescriptor]:
    """Return the fields of a message's type by name; protobuf's C and Python classes of them are one to us."""
    return cast(dict[str, FieldDescriptor], message.DESCRIPTOR.fields_by_name)


def is_map(field: FieldDescriptor) -> bool:
    """Whether a field is a map."""
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _map_value(field: FieldDescriptor) -> FieldDescriptor:
    return cast(Any, field).message_type.fields_by_name["value"]  # type: ignore[no-any-return]


# Out


def to_json(message: Message) -> dict[str, Json]:
    """Return a message as JSON, with every field of its type."""
    return {name: _field_to_json(message, field) for name, field in fields_of(message).items()}


def _field_to_json(message: Message, field: FieldDescriptor) -> Json:
    value = getattr(message, field.name)
    if is_map(field):
        of = _map_value(field)
        return {str(key): _value_to_json(of, item) for key, item in value.items()}
    if field.is_repeated:
        return [_value_to_json(field, item) for item in value]
    if field.has_presence and not message.HasField(field.name):
        return None
    return _value_to_json(field, value)


def _value_to_json(field: FieldDescriptor, value: Any) -> Json:
    if field.message_type is not None:
        return to_json(value)
    if field.enum_type is not None:
        return words_of(field.enum_type).get(value, value or None)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return base64.b64encode(value).decode()
    if field.type == FieldDescriptor.TYPE_FLOAT:
        return number_to_json(float(str(np.float32(value))))  # the shortest digits that are this number in 32 bits
    return number_to_json(value) if isinstance(value, float) else value


def number_to_json(value: float) -> float | str:
    """Return a number, or the string for one that is not finite, for which JSON has no number."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


# In


def fill_message(message: Message, values: Json, where: str = "") -> None:
    """Set the fields of a message from JSON; `where` names the place in messages to people.

    Raises:
        InvalidRequestError: a field is unknown, or its value is of another type or range.
    """
    if not isinstance(values, dict):
        raise mismatch(where or "the body", values, "an object")
    check_known(values, list(fields_of(message)), where)
    for name, value in values.items():
        if value is not None:
            set_field(message, fields_of(message)[name], value, f"{where}.{name}" if where else name)


def check_known(values: Mapping[str, Json], known: list[str], where: str) -> None:
    """Raise InvalidRequestError for a field that nobody knows, or it would be ignored in silence."""
    if unknown := values.keys() - set(known):
        raise InvalidRequestError(
            f"{where or 'the request'} has no field {sorted(unknown)[0][:100]!r}; it has {', '.join(known)}"
        )


def set_field(message: Message, field: FieldDescriptor, value: Json, where: str) -> None:
    """Set one field from JSON."""
    if is_map(field):
        if not isinstance(value, dict):
            raise mismatch(where, value, "an object")
        of = _map_value(field)
        for key, item in value.items():
            getattr(message, field.name)[key] = scalar(of, item, f"{where}[{key[:40]!r}]")
    elif field.is_repeated:
        _extend(getattr(message, field.name), field, value, where)
    elif field.message_type is not None:
        fill_message(getattr(message, field.name), value, where)
        getattr(message, field.name).SetInParent()
    else:
        setattr(message, field.name, scalar(field, value, where))


def _extend(items: Any, field: FieldDescriptor, value: Json, where: str) -> None:
    if not isinstance(value, list):
        raise mismatch(where, value, "an array")
    for index, item in enumerate(value):
        if field.message_type is not None:
            fill_message(items.add(), item, f"{where}[{index}]")
        else:
            items.append(scalar(field, item, f"{where}[{index}]"))


def scalar(field: FieldDescriptor, value: Json, where: str) -> Any:
    """Return a JSON value as the Python value of a scalar field."""
    if field.enum_type is not None:
        numbers = _numbers_of(field.enum_type)
        if not isinstance(value, str) or value not in numbers:
            raise mismatch(where, value, f"one of {', '.join(numbers)}")
        return numbers[value]
    if field.type in INTEGERS:
        return _integer(value, *INTEGERS[field.type], where)
    if field.type in {FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT}:
        number = real(value, where)
        if field.type == FieldDescriptor.TYPE_FLOAT and _LARGEST_FLOAT <= abs(number) < math.inf:
            raise mismatch(where, value, "a number that fits 32 bits")
        return number
    if field.full_name in COLUMNS:
        dtype = np.dtype(COLUMNS[field.full_name])
        return column_from_json(value, dtype.name, where).astype(dtype.newbyteorder("<"), copy=False).tobytes()
    if field.type == FieldDescriptor.TYPE_BYTES:
        return from_base64(value, where)
    expected, name = (bool, "true or false") if field.type == FieldDescriptor.TYPE_BOOL else (str, "a string")
    if not isinstance(value, expected):
        raise mismatch(where, value, name)
    return value


def _integer(value: Json, low: int, high: int, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise mismatch(where, value, f"an integer in {low} to {high}")
    return value


def real(value: Json, where: str) -> float:
    """Return a JSON number, or one of the strings for those that are not finite."""
    if isinstance(value, str) and value in _NOT_FINITE:
        return _NOT_FINITE[value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise mismatch(where, value, "a number")
    return float(value)


def from_base64(value: Json, where: str) -> bytes:
    """Return the bytes of a base64 string."""
    if not isinstance(value, str):
        raise mismatch(where, value, "a string of base64")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:  # ValueError: characters beyond ASCII
        raise InvalidRequestError(f"{where} is not base64: {error}") from None


def column_from_json(value: Json, dtype: str, where: str) -> Array:
    """Return the one-dimensional array of a column: an array of numbers, or base64 of their bytes."""
    kind = np.dtype(dtype)
    if isinstance(value, str):
        data = from_base64(value, where)
        if len(data) % kind.itemsize:
            raise InvalidRequestError(f"{where} is {len(data)} bytes of base64, not a multiple of {dtype}'s size")
        return np.frombuffer(data, kind.newbyteorder("<")).astype(kind, copy=False)
    if not isinstance(value, list):
        raise mismatch(where, value, f"an array of numbers, or base64 of {dtype}s")
    return _numbers(value, kind, where)


def _numbers(value: list[Json], kind: "np.dtype[Any]", where: str) -> Array:
    types = set(map(type, value))
    if kind.kind == "f":
        if not types <= {int, float}:
            value = [real(item, f"{where}[{index}]") for index, item in enumerate(value)]
        wide = np.array(value, np.float64)
        with np.errstate(over="ignore"):
            narrow = wide.astype(kind)
        lost = np.isfinite(wide) & ~np.isfinite(narrow)
    else:
        if not types <= {int}:
            index = next(index for index, item in enumerate(value) if type(item) is not int)
            raise mismatch(f"{where}[{index}]", value[index], "an integer")
        limits = np.iinfo(kind)
        wide = np.array(value, object if any(not -(2**63) <= item < 2**63 for item in value) else np.int64)
        lost = (wide < limits.min) | (wide > limits.max)
        narrow = wide if lost.any() else wide.astype(kind)
    if lost.any():
        index = int(np.argmax(lost))
        raise mismatch(f"{where}[{index}]", value[index], f"a number that fits {kind.name}")
    return narrow


def mismatch(where: str, value: Json, expected: str) -> InvalidRequestError:
    """Return the error of a value that is not what its place takes."""
    return InvalidRequestError(f"{where} is {_shown(value)}, not {expected}")


def _shown(value: Json) -> str:
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "an array"
    return json.dumps(value, ensure_ascii=False)[:100]  # not orjson, which has no integers beyond 64 bits
