"""Rollout groups as plain JSON: what the header says, and the columns of the payload as arrays beside it.

The same names as groupreplay.RolloutGroup. Numbers of a column are an array, or a string: base64 of their little-endian
bytes, which is what `?columns=base64` asks for and what every column takes.
"""

import base64
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from groupreplay import layout
from groupreplay.convert import group_to_wire
from groupreplay.errors import GroupReplayError, InvalidGroupError, InvalidRequestError
from groupreplay.groups import FinishReason, RolloutGroup
from groupreplay.parts import AssembledGroup
from groupreplay.payload import DTYPES, Array, decode_mask, decode_payload, decode_texts
from groupreplay.v1 import group_pb2
from groupreplay_server.api.rest.transcode import (
    Json,
    check_known,
    column_from_json,
    fill_message,
    mismatch,
    number_to_json,
    to_json,
)

LAYOUT_FIELDS = ("columns", "payload_bytes")
"""Fields of GroupHeader that say how the payload's bytes lie; in JSON the columns speak for themselves."""
TOKEN_COLUMNS = {layout.PROMPT: "int32", layout.RESPONSE: "int32", layout.LOGPROBS: "float32"}
"""Columns that every group with a payload has, and their dtype."""
OTHER_FIELDS = ("loss_mask", layout.SPANS, layout.PROMPT_TEXT, layout.TEXTS, "columns")
"""What else there may be beside the header's fields."""
HEADER_FIELDS = [f.name for f in group_pb2.GroupHeader.DESCRIPTOR.fields if f.name not in LAYOUT_FIELDS]
GROUP_FIELDS = [*HEADER_FIELDS, *TOKEN_COLUMNS, *OTHER_FIELDS]
_COLUMN_FIELDS = ["dtype", "shape", "values"]


# Out


def group_to_json(
    header: group_pb2.GroupHeader, payload: bytes | memoryview | None, *, as_base64: bool
) -> dict[str, Json]:
    """Return a group; without a payload only what its header says.

    Raises:
        InvalidGroupError: the payload is not what its header says.
    """
    group = {name: value for name, value in to_json(header).items() if name not in LAYOUT_FIELDS}
    if payload is None:
        return group
    name = header.group_id
    arrays = decode_payload(name, layout.columns_from_header(header), payload)
    for column in (*TOKEN_COLUMNS, layout.SPANS):
        if column in arrays:
            group[column] = _column_to_json(arrays[column], as_base64=as_base64)
    if layout.MASK_RUNS in arrays:
        mask = decode_mask(name, arrays[layout.MASK_RUNS], sum(header.response_lengths))
        group["loss_mask"] = _column_to_json(mask.view(np.uint8), as_base64=as_base64)
    if layout.PROMPT_TEXT in arrays:
        group[layout.PROMPT_TEXT] = arrays[layout.PROMPT_TEXT].tobytes().decode(errors="replace")
    if layout.TEXTS in arrays:
        group[layout.TEXTS] = list(decode_texts(name, arrays[layout.TEXT_LENGTHS], arrays[layout.TEXTS]))
    group["columns"] = {
        column: {
            "dtype": array.dtype.name,
            "shape": list(array.shape),
            "values": _column_to_json(array.reshape(-1), as_base64=as_base64),
        }
        for column, array in arrays.items()
        if column not in layout.RESERVED
    }
    return group


def log_ratios_to_json(ratios: group_pb2.LogRatios, *, as_base64: bool) -> dict[str, Json]:
    """Return log ratios with their values as a column."""
    values = np.frombuffer(ratios.values, "<f2")
    return {**to_json(ratios), "values": _column_to_json(values, as_base64=as_base64)}


def _column_to_json(array: Array, *, as_base64: bool) -> Json:
    if as_base64:
        return base64.b64encode(array.tobytes()).decode()
    native = np.ascontiguousarray(array, array.dtype.newbyteorder("="))  # orjson writes it as numbers
    if array.dtype.kind != "f" or np.isfinite(native).all():
        return native
    values = orjson.loads(orjson.dumps(native, option=orjson.OPT_SERIALIZE_NUMPY))
    for index in np.flatnonzero(~np.isfinite(native)).tolist():
        values[index] = number_to_json(float(native[index]))
    return values


# In


def group_from_json(value: Json, where: str) -> AssembledGroup:
    """Return a group as it goes into the service; one that contradicts itself comes with its error.

    A group without any of the token columns is one whose payload is left out on purpose.

    Raises:
        InvalidRequestError: a field is unknown, or its value is of another type.
    """
    if not isinstance(value, dict):
        raise mismatch(where, value, "an object")
    check_known(value, GROUP_FIELDS, where)
    header = group_pb2.GroupHeader()
    fill_message(header, {name: value[name] for name in HEADER_FIELDS if name in value}, where)
    given = {name: value[name] for name in (*TOKEN_COLUMNS, *OTHER_FIELDS) if value.get(name) is not None}
    if not given:
        return AssembledGroup(header, None)
    fields = _payload_fields(given, where)
    try:
        return AssembledGroup(*_wire(header, fields, "prompt_length" in value))
    except GroupReplayError as error:
        return AssembledGroup(header, None, error=error)


def _wire(
    header: group_pb2.GroupHeader, fields: Mapping[str, Any], says_prompt_length: bool
) -> tuple[group_pb2.GroupHeader, bytes]:
    if missing := TOKEN_COLUMNS.keys() - fields.keys():
        raise InvalidGroupError(f"group {header.group_id}: the payload has no column {sorted(missing)}")
    if says_prompt_length and header.prompt_length != len(fields[layout.PROMPT]):
        raise InvalidGroupError(
            f"group {header.group_id}: prompt_length is {header.prompt_length}, and there are "
            f"{len(fields[layout.PROMPT])} prompt_token_ids; leave it out, or let them agree"
        )
    group = RolloutGroup(
        group_id=header.group_id,
        prompt_id=header.prompt_id,
        task=header.task,
        producer_id=header.producer_id,
        policy_version_min=header.policy_version_min,
        policy_version_max=header.policy_version_max,
        rewards=np.array(header.rewards, np.float32),
        response_lengths=np.array(header.response_lengths, np.int64).astype(np.int32),
        finish_reasons=tuple(FinishReason[group_pb2.FinishReason.Name(it)] for it in header.finish_reasons),
        created_at_ms=header.created_at_ms,
        tags=dict(header.tags),
        priority=header.priority if header.HasField("priority") else None,
        **fields,
    )
    return group_to_wire(group)


def _payload_fields(given: Mapping[str, Json], where: str) -> dict[str, Any]:
    fields: dict[str, Any] = {
        name: column_from_json(given[name], dtype, f"{where}.{name}")
        for name, dtype in TOKEN_COLUMNS.items()
        if name in given
    }
    if "loss_mask" in given:
        fields["loss_mask"] = _mask_from_json(given["loss_mask"], f"{where}.loss_mask")
    if layout.SPANS in given:
        fields[layout.SPANS] = _spans_from_json(given[layout.SPANS], f"{where}.{layout.SPANS}")
    if layout.PROMPT_TEXT in given:
        fields[layout.PROMPT_TEXT] = _text(given[layout.PROMPT_TEXT], f"{where}.{layout.PROMPT_TEXT}")
    if layout.TEXTS in given:
        fields[layout.TEXTS] = tuple(_texts(given[layout.TEXTS], f"{where}.{layout.TEXTS}"))
    columns = given.get("columns", {})
    if not isinstance(columns, dict):
        raise mismatch(f"{where}.columns", columns, "an object")
    fields["columns"] = {
        name: _free_column(column, f"{where}.columns[{name[:40]!r}]") for name, column in columns.items()
    }
    return fields


def _mask_from_json(value: Json, where: str) -> npt.NDArray[np.bool_]:
    if isinstance(value, list):
        value = [int(item) if isinstance(item, bool) else item for item in value]
    mask = column_from_json(value, "uint8", where)
    if (mask > 1).any():
        index = int(np.argmax(mask > 1))
        raise mismatch(f"{where}[{index}]", int(mask[index]), "0 or 1")
    return mask.astype(np.bool_)


def _spans_from_json(value: Json, where: str) -> Array:
    if isinstance(value, list):
        if not all(isinstance(span, list) and len(span) == 2 for span in value):
            raise InvalidRequestError(f"{where} is not an array of pairs [index of a token, policy version]")
        value = [number for span in value for number in span]
    flat = column_from_json(value, "int32", where)
    if len(flat) % 2:
        raise InvalidRequestError(f"{where} has {len(flat)} numbers, not pairs [index of a token, policy version]")
    return flat.reshape(-1, 2)


def _free_column(value: Json, where: str) -> Array:
    if not isinstance(value, dict):
        raise mismatch(where, value, "an object with dtype, shape and values")
    check_known(value, _COLUMN_FIELDS, where)
    dtype, shape = value.get("dtype"), value.get("shape")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise mismatch(f"{where}.dtype", dtype, f"one of {', '.join(sorted(DTYPES))}")
    flat = column_from_json(value.get("values"), dtype, f"{where}.values")
    if shape is None:
        return flat
    if not isinstance(shape, list) or not all(type(extent) is int and extent >= 0 for extent in shape):
        raise mismatch(f"{where}.shape", shape, "an array of integers of at least 0")
    try:
        return flat.reshape(shape)
    except (ValueError, OverflowError):
        raise InvalidRequestError(f"{where} has {len(flat)} values for the shape {shape[:32]}") from None


def _texts(value: Json, where: str) -> Iterator[str]:
    if not isinstance(value, list):
        raise mismatch(where, value, "an array of strings")
    for index, item in enumerate(value):
        yield _text(item, f"{where}[{index}]")


def _text(value: Json, where: str) -> str:
    if not isinstance(value, str):
        raise mismatch(where, value, "a string")
    return value
