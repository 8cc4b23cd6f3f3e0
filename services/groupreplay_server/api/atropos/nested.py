"""Lists in lists of numbers <-> flat columns: one of numbers, and one of lengths for each level above them."""

from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from groupreplay.errors import InvalidGroupError

Array = npt.NDArray[Any]
_INT32 = np.iinfo(np.int32)


def pack_nested(name: str, nested: list[Any], *, depth: int, dtype: str) -> dict[str, Array]:
    """Return the columns of lists that hold numbers at this depth (1 = a plain list).

    Raises:
        InvalidGroupError: a number is not finite, or is too large for the dtype.
    """
    columns: dict[str, Array] = {}
    for level in range(depth - 1):
        columns[f"{name}.lengths{level}"] = np.array([len(inner) for inner in nested], np.int32)
        nested = list(chain.from_iterable(nested))
    return columns | {name: flat_array(name, nested, dtype)}


def unpack_nested(name: str, columns: Mapping[str, Array], *, depth: int) -> list[Any] | None:
    """Return the lists that pack_nested packed; None where there are none."""
    if name not in columns:
        return None
    values: list[Any] = columns[name].tolist()
    for level in reversed(range(depth - 1)):
        rest = iter(values)
        values = [[next(rest) for _ in range(length)] for length in columns[f"{name}.lengths{level}"].tolist()]
    return values


def flat_array(name: str, values: list[Any], dtype: str) -> Array:
    """Return numbers as an array of int32 or float32.

    Raises:
        InvalidGroupError: a number is not finite, or is too large for the dtype.
    """
    if dtype == "int32":
        if values and not (_INT32.min <= min(values) and max(values) <= _INT32.max):
            raise InvalidGroupError(f"{name} reach from {min(values)} to {max(values)}; they are kept as int32")
        return np.array(values, np.int32)
    with np.errstate(over="ignore"):
        array = np.array(values, np.float64).astype(np.float32)
    if not np.isfinite(array).all():
        raise InvalidGroupError(f"{name} has numbers that are not finite as float32; leave the field out or mend them")
    return array
