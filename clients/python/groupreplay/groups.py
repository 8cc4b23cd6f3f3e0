"""A rollout group: one prompt with its G scored rollouts.

Shapes: G rollouts of a group, P prompt tokens, T tokens of all responses of a group one after the other.
Arrays are little-endian and C-contiguous; those of a delivered group are read-only views of the bytes that came.
"""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from groupreplay.errors import InvalidGroupError, InvalidRequestError

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]

MAX_POLICY_VERSION = 2**20 - 1
"""Largest policy version; recency scores stay exact in the doubles of a sorted set."""
LOGPROB_ROUNDING = 1e-4
"""A log probability may exceed 0 by this much, which is what bfloat16 softmax rounds."""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")


def check_name(value: str, what: str) -> str:
    """Return value if it can name a run, table, group, lease or producer; raise InvalidRequestError otherwise."""
    if not _NAME.fullmatch(value):
        raise InvalidRequestError(f"{what} {value[:200]!r} is not 1 to 128 characters of A-Z a-z 0-9 . _ -")
    return value


def now_ms() -> int:
    """Return the wall clock in milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000


class FinishReason(StrEnum):
    """Why a response ended: the model stopped, the token limit cut it, or the engine gave up."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rollout:
    """One response to a prompt, scored."""

    token_ids: Sequence[int] | Int32
    """Response tokens, EOS included when the model emitted it. At least one."""
    behaviour_logprobs: Sequence[float] | Float32
    """Natural log of each token's probability under the distribution it was sampled from."""
    reward: float
    finish_reason: FinishReason | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RolloutGroup:
    """One prompt with its G scored rollouts.

    Raises:
        InvalidGroupError: lengths disagree, the group is empty, a reward or log probability is not finite,
            a log probability is above 0, or a policy version is out of range.
    """

    group_id: str
    """Unique in its table; the same id again is the same group, so a retry is safe."""
    prompt_id: str
    """Groups of one prompt share it. At most 256 bytes."""
    prompt_token_ids: Int32
    """[P]"""
    response_token_ids: Int32
    """[T] all responses one after the other, EOS included."""
    response_lengths: Int32
    """[G] tokens of each response, at least 1 each; they sum to T."""
    behaviour_logprobs: Float32
    """[T] natural log, under the distribution each token was sampled from (temperature and truncation applied)."""
    rewards: Float32
    """[G]"""
    policy_version_min: int
    """Version of the oldest policy that sampled any token, in [0, 2^20)."""
    policy_version_max: int
    """Version of the newest policy that sampled any token."""
    loss_mask: npt.NDArray[np.bool_] | None = None
    """[T] which tokens are trained on; None = all."""
    version_spans: Int32 | None = None
    """[S, 2] (first index into T, policy version), ascending from index 0; None = one version throughout."""
    finish_reasons: tuple[FinishReason, ...] = ()
    """[G], or empty where the producer does not know."""
    task: str = ""
    producer_id: str = ""
    created_at_ms: int = field(default_factory=now_ms)
    tags: Mapping[str, str] = field(default_factory=dict)
    prompt_text: str | None = None
    response_texts: tuple[str, ...] | None = None
    """[G]"""
    columns: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    """Anything else by name: reference_logprobs, routed_experts, pixel_values ... Numeric, any shape."""
    priority: float | None = None
    """The producer's priority, finite and at least 0; read where the table's priority is `caller`."""

    def __post_init__(self) -> None:
        _check_identity(self)
        _check_lengths(self)
        _check_values(self)

    @classmethod
    def from_rollouts(
        cls,
        rollouts: Sequence[Rollout],
        *,
        group_id: str,
        prompt_id: str,
        prompt_token_ids: Sequence[int] | Int32,
        policy_version: int,
        **other: Any,
    ) -> Self:
        """Return the group of rollouts that were all sampled with one policy version."""
        for index, rollout in enumerate(rollouts):
            if len(rollout.token_ids) != len(rollout.behaviour_logprobs):
                raise InvalidGroupError(
                    f"group {group_id}: rollout {index} has {len(rollout.token_ids)} token_ids "
                    f"and {len(rollout.behaviour_logprobs)} behaviour_logprobs; they must be as many"
                )
        reasons = tuple(r.finish_reason for r in rollouts if r.finish_reason is not None)
        texts = tuple(r.text for r in rollouts if r.text is not None)
        return cls(
            group_id=group_id,
            prompt_id=prompt_id,
            prompt_token_ids=np.asarray(prompt_token_ids, np.int32),
            response_token_ids=_concatenate([r.token_ids for r in rollouts], np.int32),
            response_lengths=np.array([len(r.token_ids) for r in rollouts], np.int32),
            behaviour_logprobs=_concatenate([r.behaviour_logprobs for r in rollouts], np.float32),
            rewards=np.array([r.reward for r in rollouts], np.float32),
            policy_version_min=policy_version,
            policy_version_max=policy_version,
            finish_reasons=reasons,
            response_texts=texts or None,
            **other,
        )

    def __len__(self) -> int:
        """Return G, the number of rollouts."""
        return len(self.rewards)

    @property
    def reward_std(self) -> float:
        """Population standard deviation of the rewards; 0 means no gradient."""
        return float(np.std(self.rewards, dtype=np.float64))

    def response_slices(self) -> Iterator[slice]:
        """Yield each rollout's slice of the [T] arrays."""
        end = 0
        for length in self.response_lengths.tolist():
            start, end = end, end + length
            yield slice(start, end)


def _concatenate(pieces: Sequence[Any], dtype: type) -> npt.NDArray[Any]:
    return np.concatenate([np.asarray(piece, dtype) for piece in pieces]) if pieces else np.empty(0, dtype)


def _check_identity(group: RolloutGroup) -> None:
    try:
        check_name(group.group_id, "group_id")
        if group.producer_id:
            check_name(group.producer_id, "producer_id")
    except InvalidRequestError as error:
        raise InvalidGroupError(str(error)) from None
    for what, value, limit in (("prompt_id", group.prompt_id, 256), ("task", group.task, 128)):
        if len(value.encode()) > limit or (what == "prompt_id" and not value):
            raise InvalidGroupError(f"group {group.group_id}: {what} {value[:40]!r} is not 1 to {limit} bytes long")
    low, high = group.policy_version_min, group.policy_version_max
    if not 0 <= low <= high <= MAX_POLICY_VERSION:
        raise InvalidGroupError(
            f"group {group.group_id}: policy versions {low} to {high} are not ascending in 0 to {MAX_POLICY_VERSION}"
        )


def _check_lengths(group: RolloutGroup) -> None:
    rollouts, tokens = len(group.rewards), len(group.response_token_ids)
    if rollouts == 0:
        raise InvalidGroupError(f"group {group.group_id}: no rollouts; a group has at least one")
    for name in ("prompt_token_ids", "response_token_ids", "response_lengths", "behaviour_logprobs", "rewards"):
        if getattr(group, name).ndim != 1:
            raise InvalidGroupError(f"group {group.group_id}: {name} has shape {getattr(group, name).shape}, not (n,)")
    expected = {
        "response_lengths": (group.response_lengths, rollouts, "rewards"),
        "finish_reasons": (group.finish_reasons or None, rollouts, "rewards"),
        "response_texts": (group.response_texts, rollouts, "rewards"),
        "behaviour_logprobs": (group.behaviour_logprobs, tokens, "response_token_ids"),
        "loss_mask": (group.loss_mask, tokens, "response_token_ids"),
    }
    for name, (value, length, reference) in expected.items():
        if value is not None and len(value) != length:
            raise InvalidGroupError(f"group {group.group_id}: {len(value)} {name} for {length} {reference}")
    if group.response_lengths.min() < 1 or int(group.response_lengths.sum()) != tokens:
        raise InvalidGroupError(
            f"group {group.group_id}: response_lengths {group.response_lengths.tolist()[:32]} must be at least 1 each "
            f"and sum to the {tokens} response_token_ids"
        )


def _check_values(group: RolloutGroup) -> None:
    if not np.isfinite(group.rewards).all():
        raise InvalidGroupError(f"group {group.group_id}: rewards {group.rewards.tolist()[:32]} are not all finite")
    if group.priority is not None and not 0 <= group.priority < np.inf:
        raise InvalidGroupError(
            f"group {group.group_id}: priority {group.priority} is not a finite number of at least 0"
        )
    highest, lowest = float(group.behaviour_logprobs.max()), float(group.behaviour_logprobs.min())
    # One NaN makes both extremes NaN, and every comparison with it false.
    if not (highest <= LOGPROB_ROUNDING and lowest > -np.inf):
        raise InvalidGroupError(
            f"group {group.group_id}: behaviour_logprobs lie in [{lowest}, {highest}]; "
            "a log probability is finite and at most 0"
        )
    if group.version_spans is not None:
        _check_spans(group, group.version_spans)


def _check_spans(group: RolloutGroup, spans: Int32) -> None:
    starts = spans[:, 0] if spans.ndim == 2 and spans.shape[1] == 2 else np.empty(0)
    tokens = len(group.response_token_ids)
    if len(starts) == 0 or starts[0] != 0 or (np.diff(starts) <= 0).any() or starts[-1] >= tokens:
        raise InvalidGroupError(
            f"group {group.group_id}: version_spans must be [S, 2] with starts ascending from 0 below {tokens}"
        )
    low, high = int(spans[:, 1].min()), int(spans[:, 1].max())
    if (low, high) != (group.policy_version_min, group.policy_version_max):
        raise InvalidGroupError(
            f"group {group.group_id}: version_spans cover versions {low} to {high}, "
            f"the group says {group.policy_version_min} to {group.policy_version_max}"
        )
