"""The columns of a group's payload: their names, and the dtype and shape that a header must give them.

Checked at insert, so that a malformed group is refused at the door, and again at delivery.
"""

from collections.abc import Sequence

from groupreplay.errors import InvalidGroupError
from groupreplay.payload import MAX_DIMENSIONS, MAX_ELEMENTS, Column
from groupreplay.v1 import group_pb2

# Columns with a field of their own in RolloutGroup; any other name is one of RolloutGroup.columns.
PROMPT, RESPONSE, LOGPROBS = "prompt_token_ids", "response_token_ids", "behaviour_logprobs"
MASK_RUNS, SPANS = "loss_mask_runs", "version_spans"
PROMPT_TEXT, TEXT_LENGTHS, TEXTS = "prompt_text", "response_text_lengths", "response_texts"
RESERVED = frozenset({PROMPT, RESPONSE, LOGPROBS, MASK_RUNS, SPANS, PROMPT_TEXT, TEXT_LENGTHS, TEXTS})
REQUIRED = frozenset({PROMPT, RESPONSE, LOGPROBS})
_DTYPES: dict[int, str] = {number: name.lower() for name, number in group_pb2.DType.items() if number}


def columns_from_header(header: group_pb2.GroupHeader) -> list[Column]:
    """Return the payload layout that a header describes.

    Raises:
        InvalidGroupError: a column has no known dtype.
    """
    columns = []
    for column in header.columns:
        if (dtype := _DTYPES.get(column.dtype)) is None:
            raise InvalidGroupError(f"group {header.group_id}: column {column.name!r} has no known dtype")
        columns.append(Column(column.name, dtype, tuple(column.shape)))
    return columns


def check_layout(header: group_pb2.GroupHeader, columns: Sequence[Column]) -> None:
    """Raise InvalidGroupError unless the columns are those of a group with this header."""
    names = [column.name for column in columns]
    if missing := REQUIRED - set(names):
        raise InvalidGroupError(f"group {header.group_id}: the payload has no column {sorted(missing)}")
    if len(set(names)) != len(names) or "" in names:
        raise InvalidGroupError(f"group {header.group_id}: column names {names[:32]} are not unique and non-empty")
    if (TEXTS in names) != (TEXT_LENGTHS in names):
        raise InvalidGroupError(f"group {header.group_id}: columns {TEXTS} and {TEXT_LENGTHS} come together or not")
    expected = _expected_layouts(header)
    for column in columns:
        if column.name in expected:
            _check_column(header.group_id, column, *expected[column.name])
        elif len(column.shape) > MAX_DIMENSIONS or column.elements_bound > MAX_ELEMENTS:
            raise InvalidGroupError(
                f"group {header.group_id}: column {column.name!r} has shape {column.shape[:32]}; "
                f"at most {MAX_DIMENSIONS} dimensions and {MAX_ELEMENTS} elements are taken"
            )


def _expected_layouts(header: group_pb2.GroupHeader) -> dict[str, tuple[str, tuple[int | None, ...]]]:
    """Return dtype and shape by name; None = any extent."""
    tokens, rollouts = sum(header.response_lengths), len(header.rewards)
    return {
        PROMPT: ("int32", (header.prompt_length,)),
        RESPONSE: ("int32", (tokens,)),
        LOGPROBS: ("float32", (tokens,)),
        MASK_RUNS: ("int32", (None,)),
        SPANS: ("int32", (None, 2)),
        PROMPT_TEXT: ("uint8", (None,)),
        TEXT_LENGTHS: ("int32", (rollouts,)),
        TEXTS: ("uint8", (None,)),
    }


def _check_column(group_id: str, column: Column, dtype: str, shape: tuple[int | None, ...]) -> None:
    fits = len(column.shape) == len(shape) and all(
        wanted in {None, extent} for extent, wanted in zip(column.shape, shape, strict=True)
    )
    if column.dtype != dtype or not fits:
        wanted_shape = ", ".join("any" if extent is None else str(extent) for extent in shape)
        raise InvalidGroupError(
            f"group {group_id}: column {column.name!r} is {column.dtype} of shape {list(column.shape[:32])}; "
            f"its header needs {dtype} of shape [{wanted_shape}]"
        )
