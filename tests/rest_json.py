"""Plain JSON of the REST door, written and read without the door's own code: what a foreign client would do."""

import base64
from typing import Any, cast

import numpy as np
from google.protobuf.message import Message

from groupreplay import RolloutGroup, convert
from groupreplay.groups import FinishReason
from groupreplay.v1 import group_pb2

PREFIXES = ("FILL_", "SAMPLER_", "REMOVER_", "PRIORITY_", "STALENESS_", "DURABILITY_", "GROUP_", "PIECE_")
ARRAYS = {
    "prompt_token_ids": np.int32,
    "response_token_ids": np.int32,
    "behaviour_logprobs": np.float32,
    "loss_mask": np.uint8,
    "version_spans": np.int32,
}
SCALARS = ("group_id", "prompt_id", "policy_version_min", "policy_version_max", "task", "producer_id", "created_at_ms",
           "tags", "prompt_text", "response_texts", "priority")  # fmt: skip
NOT_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def word(enum: Any, number: int) -> str:
    """Return the word of an enum's value."""
    name = str(enum.values_by_number[number].name)
    if enum.name == "ErrorReason":
        return name
    return next((name.removeprefix(it) for it in PREFIXES if name.startswith(it)), name).lower()


def write_message(message: Message) -> dict[str, Any]:
    """Return the fields that a message has set."""
    return {field.name: _write(field, value) for field, value in message.ListFields()}


def _write(field: Any, value: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return dict(value)
    if field.is_repeated:
        return [_write_one(field, item) for item in value]
    return _write_one(field, value)


def _write_one(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return write_message(value)
    if field.enum_type is not None:
        return word(field.enum_type, value) if value in field.enum_type.values_by_number else str(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return NOT_FINITE.get(str(value), value) if isinstance(value, float) else value


def read_message(message: Message, values: dict[str, Any]) -> Any:
    """Fill a message from its JSON; it must name every field, and no other."""
    for name, value in values.items():
        field = cast(Any, message.DESCRIPTOR.fields_by_name[name])
        if value is None:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            getattr(message, name).update(value)
        elif field.is_repeated:
            for item in value:
                if field.message_type is not None:
                    read_message(getattr(message, name).add(), item)
                else:
                    getattr(message, name).append(_read_one(field, item))
        elif field.message_type is not None:
            getattr(message, name).SetInParent()
            read_message(getattr(message, name), value)
        else:
            setattr(message, name, _read_one(field, value))
    return message


def _read_one(field: Any, value: Any) -> Any:
    if field.enum_type is not None:
        return next(number for number in field.enum_type.values_by_number if word(field.enum_type, number) == value)
    if field.type == field.TYPE_BYTES:
        return base64.b64decode(value)
    return float(value) if isinstance(value, str) and field.type == field.TYPE_DOUBLE else value


def write_group(header: group_pb2.GroupHeader, payload: bytes, *, as_base64: bool = False) -> dict[str, Any]:
    """Return the JSON of a group; without a payload only its header."""
    if not payload:
        fields = write_message(header)
        return {name: value for name, value in fields.items() if name not in {"columns", "payload_bytes"}}
    group = convert.group_from_wire(header, payload)
    values: dict[str, Any] = {name: getattr(group, name) for name in SCALARS}
    values |= {"rewards": group.rewards.tolist(), "response_lengths": group.response_lengths.tolist()}
    values["finish_reasons"] = [reason.value for reason in group.finish_reasons]
    for name, dtype in ARRAYS.items():
        if getattr(group, name) is not None:
            values[name] = _write_array(np.asarray(getattr(group, name), dtype), as_base64)
    values["columns"] = {
        name: {
            "dtype": array.dtype.name,
            "shape": list(array.shape),
            "values": _write_array(array.reshape(-1), as_base64),
        }
        for name, array in group.columns.items()
    }
    return values


def _write_array(array: Any, as_base64: bool) -> Any:
    if as_base64:
        return base64.b64encode(array.tobytes()).decode()
    values = array.tolist()
    return values if array.ndim > 1 else [NOT_FINITE.get(str(value), value) for value in values]


def read_group(values: dict[str, Any]) -> RolloutGroup:
    """Return the group of its JSON."""
    fields: dict[str, Any] = {name: values[name] for name in SCALARS if name in values}
    fields |= {name: _read_array(values[name], dtype) for name, dtype in ARRAYS.items() if name in values}
    fields["rewards"] = np.array(values["rewards"], np.float32)
    fields["response_lengths"] = np.array(values["response_lengths"], np.int32)
    fields["finish_reasons"] = tuple(FinishReason(reason) for reason in values["finish_reasons"])
    if "response_texts" in fields:
        fields["response_texts"] = tuple(fields["response_texts"])
    if "loss_mask" in fields:
        fields["loss_mask"] = fields["loss_mask"].astype(np.bool_)
    if "version_spans" in fields:
        fields["version_spans"] = fields["version_spans"].reshape(-1, 2)
    fields["columns"] = {
        name: _read_array(column["values"], np.dtype(column["dtype"])).reshape(column["shape"])
        for name, column in values["columns"].items()
    }
    return RolloutGroup(**fields)


def read_log_ratios(values: dict[str, Any]) -> group_pb2.LogRatios:
    """Return the message of its JSON."""
    column = _read_array(values["values"], np.dtype("<f2"))
    return group_pb2.LogRatios(**values | {"values": column.tobytes()})


def _read_array(values: Any, dtype: Any) -> Any:
    if isinstance(values, str):
        return np.frombuffer(base64.b64decode(values), dtype)
    return np.array([float(it) if isinstance(it, str) else it for it in values], dtype)
