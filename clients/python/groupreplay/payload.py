"""The payload of a group: 8 bytes of magic, then raw little-endian columns, each padded to 8 bytes.

The layout (names, dtypes, shapes) travels in the group's header, so the payload itself is never parsed: the service
stores it as it came, and reading makes numpy views of it without a copy.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from groupreplay.errors import InvalidGroupError

MAGIC = b"GRPLAY\x00\x01"
ALIGNMENT = 8
DTYPES = frozenset({"uint8", "int32", "int64", "float16", "float32", "float64"})
_ITEM_BYTES = {name: np.dtype(name).itemsize for name in DTYPES}
_NAMES = {np.dtype(name): name for name in DTYPES}
MAX_DIMENSIONS = 32
MAX_ELEMENTS = 2**40

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Column:
    """Name, dtype and shape of one array in a payload."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes without padding."""
        return _ITEM_BYTES[self.dtype] * math.prod(self.shape)

    @property
    def elements_bound(self) -> int:
        """Elements, an empty dimension counted as 1: numpy refuses a shape that overflows, though it holds nothing."""
        return math.prod(max(extent, 1) for extent in self.shape)


def _padding(size: int) -> int:
    return -size % ALIGNMENT


def payload_size(columns: Sequence[Column]) -> int:
    """Return the length in bytes of the payload of these columns."""
    return len(MAGIC) + sum(c.size_bytes + _padding(c.size_bytes) for c in columns)


def encode_payload(group_id: str, arrays: Mapping[str, Array]) -> tuple[list[Column], bytes]:
    """Return the columns and the bytes of these arrays.

    Raises:
        InvalidGroupError: an array's dtype is not one of DTYPES.
    """
    columns: list[Column] = []
    pieces: list[bytes | memoryview] = [MAGIC]
    for name, array in arrays.items():
        dtype = _NAMES.get(array.dtype) or array.dtype.name  # numpy takes its time to make up a name
        if dtype not in DTYPES:
            raise InvalidGroupError(
                f"group {group_id}: column {name!r} has dtype {array.dtype}; a payload holds {sorted(DTYPES)}"
            )
        data = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        columns.append(Column(name, dtype, array.shape))
        pieces += [data.reshape(-1).view(np.uint8).data, bytes(_padding(data.nbytes))]
    return columns, b"".join(pieces)


def check_payload(group_id: str, columns: Sequence[Column], size: int, start: bytes | memoryview) -> None:
    """Raise InvalidGroupError unless a payload of `size` bytes beginning with `start` can hold these columns."""
    if size != payload_size(columns):
        raise InvalidGroupError(
            f"group {group_id}: its payload is {size} bytes, its {len(columns)} columns need {payload_size(columns)}: "
            "it is truncated, or the header belongs to another payload"
        )
    if start[: len(MAGIC)] != MAGIC:
        raise InvalidGroupError(
            f"group {group_id}: its payload begins with {bytes(start[:8])!r}, not {MAGIC!r}: "
            "it was not made by groupreplay"
        )


def decode_payload(group_id: str, columns: Sequence[Column], payload: bytes | memoryview) -> dict[str, Array]:
    """Return read-only views of the payload's columns by name.

    Raises:
        InvalidGroupError: the payload is truncated or foreign.
    """
    check_payload(group_id, columns, len(payload), payload)
    arrays: dict[str, Array] = {}
    offset = len(MAGIC)
    for column in columns:
        dtype = np.dtype(column.dtype).newbyteorder("<")
        count = column.size_bytes // dtype.itemsize
        arrays[column.name] = np.frombuffer(payload, dtype, count, offset).reshape(column.shape)
        offset += column.size_bytes + _padding(column.size_bytes)
    return arrays


def encode_mask(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """Return the run lengths of a mask, beginning with a (possibly empty) run of True."""
    edges = np.flatnonzero(np.diff(mask)) + 1
    bounds = np.concatenate([[0], edges, [len(mask)]])
    runs = np.diff(bounds).astype(np.int32)
    return runs if len(mask) == 0 or mask[0] else np.concatenate([np.zeros(1, np.int32), runs])


def decode_mask(group_id: str, runs: npt.NDArray[np.int32], tokens: int) -> npt.NDArray[np.bool_]:
    """Return the mask of encode_mask's run lengths.

    Raises:
        InvalidGroupError: the runs do not cover `tokens`.
    """
    _check_partition(group_id, "loss_mask_runs", runs, tokens)
    return np.repeat(np.arange(len(runs)) % 2 == 0, runs)


def encode_texts(texts: Sequence[str]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """Return byte lengths and concatenated UTF-8 of texts."""
    encoded = [text.encode() for text in texts]
    return np.array([len(e) for e in encoded], np.int32), np.frombuffer(b"".join(encoded), np.uint8)


def decode_texts(group_id: str, lengths: npt.NDArray[np.int32], utf8: npt.NDArray[np.uint8]) -> tuple[str, ...]:
    """Return the texts of encode_texts; bytes that are not UTF-8 become U+FFFD.

    Raises:
        InvalidGroupError: the lengths do not cover the bytes.
    """
    _check_partition(group_id, "response_text_lengths", lengths, len(utf8))
    data = utf8.tobytes()
    ends = np.cumsum(lengths, dtype=np.int64).tolist()
    return tuple(
        data[end - length : end].decode(errors="replace") for end, length in zip(ends, lengths.tolist(), strict=True)
    )


def _check_partition(group_id: str, name: str, lengths: npt.NDArray[np.int32], total: int) -> None:
    if (lengths < 0).any() or int(lengths.sum(dtype=np.int64)) != total:
        raise InvalidGroupError(
            f"group {group_id}: {name} {lengths[:32].tolist()} must be at least 0 each and sum to {total}"
        )
