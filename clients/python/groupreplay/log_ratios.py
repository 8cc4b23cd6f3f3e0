"""What a trainer feeds back of each token of a group: how far the policy has moved from the behaviour policy."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from groupreplay.errors import InvalidRequestError

MAX_LOG_RATIO_BYTES = 2 * 2**20
"""Of all log ratios in one call, 2 for each token: a group of 16 x 64k tokens."""
_LARGEST = float(np.finfo(np.float16).max)
_DTYPE = np.dtype("<f2")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LogRatios:
    """The log ratios of a group, as they were fed back last."""

    values: npt.NDArray[np.float16]
    """[N tokens of all responses, one response after the other] proximal less behaviour log probability, nats; NaN
    where the step did not score the token."""
    policy_version: int
    """Of the proximal policy: the policy clock when the batch was handed out, or when update_priorities was called."""
    step: int | None
    """The training step whose commit brought them; None = update_priorities did."""


def as_log_ratios(group_id: str, values: npt.ArrayLike) -> npt.NDArray[np.float16]:
    """Return log ratios as they travel: float16, [N tokens].

    Raises:
        InvalidRequestError: they are no numbers in one dimension, or one of them is beyond float16. NaN may be.
    """
    given = np.asarray(values)
    if given.ndim != 1 or given.dtype.kind not in "fiu":
        raise InvalidRequestError(
            f"group {group_id}: log_ratios are {given.dtype} of shape {given.shape}, not numbers in one dimension; "
            "concatenate those of all responses, in their order"
        )
    beyond = np.abs(given) > _LARGEST
    if beyond.any():
        index = int(np.argmax(beyond))
        raise InvalidRequestError(
            f"group {group_id}: log_ratios[{index}] is {given[index]}, at most {_LARGEST:.0f} either way; send NaN for "
            "a token that has no finite log probability"
        )
    return given.astype(_DTYPE)


def log_ratios_to_bytes(values: npt.ArrayLike) -> bytes:
    """Return log ratios as the protocol has them."""
    return np.asarray(values, _DTYPE).tobytes()


def log_ratios_from_bytes(group_id: str, data: bytes) -> npt.NDArray[np.float16]:
    """Return the log ratios of a group, read-only.

    Raises:
        InvalidRequestError: the bytes are no whole number of float16.
    """
    if len(data) % _DTYPE.itemsize:
        raise InvalidRequestError(
            f"group {group_id}: log_ratios are {len(data)} bytes, not a multiple of {_DTYPE.itemsize}; send "
            "little-endian float16, one for each token of the responses"
        )
    values: npt.NDArray[Any] = np.frombuffer(data, _DTYPE)
    return values
