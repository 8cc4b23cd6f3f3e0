"""Puts the pieces of a partial group together: rollouts of one prompt that ended at different times and places.

Shapes: G rollouts and T response tokens of a piece.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from groupreplay.errors import InvalidGroupError
from groupreplay.groups import Int32, RolloutGroup

_SHOWN = 120
"""Characters of a value that an error shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceTerms:
    """What the pieces of a group must agree on, each as text that can be compared."""

    prompt_id: str
    prompt_token_ids: str
    """Digest."""
    prompt_text: str
    """Digest; empty = none."""
    task: str
    columns: str
    """Names of what there is beside tokens and rewards; dtype and inner shape too, where a column is free in them."""
    rows: str
    """A letter for each of RolloutGroup.columns, by name: `t` = a row for each token, `r` = for each rollout, `b` =
    both are as many. Pieces agree where no letter is `t` here and `r` there."""


def terms_of(piece: RolloutGroup) -> PieceTerms:
    """Return what other pieces of the group must agree on with this one.

    Raises:
        InvalidGroupError: a column has neither a row for each token nor one for each rollout.
    """
    names = sorted(piece.columns)
    own = [
        name
        for name, value in (
            ("finish_reasons", piece.finish_reasons or None),
            ("loss_mask", piece.loss_mask),
            ("prompt_text", piece.prompt_text),
            ("response_texts", piece.response_texts),
        )
        if value is not None
    ]
    free = [f"{name} {array.dtype.name} {list(array.shape[1:])}" for name, array in sorted(piece.columns.items())]
    return PieceTerms(
        prompt_id=piece.prompt_id,
        prompt_token_ids=_digest(np.ascontiguousarray(piece.prompt_token_ids, "<i4").tobytes()),
        prompt_text=_digest(piece.prompt_text.encode()) if piece.prompt_text is not None else "",
        task=piece.task,
        columns="; ".join(own + free),
        rows="".join(_rows(piece, name) for name in names),
    )


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _rows(piece: RolloutGroup, name: str) -> str:
    shape = piece.columns[name].shape
    is_token = shape[:1] == (len(piece.response_token_ids),)
    is_rollout = shape[:1] == (len(piece),)
    if not is_token and not is_rollout:
        raise InvalidGroupError(
            f"group {piece.group_id}: column {name!r} of a piece has shape {list(shape[:32])}; pieces are put together "
            f"by rows, and it has neither one for each of the {len(piece.response_token_ids)} response tokens nor one "
            f"for each of the {len(piece)} rollouts; leave it out, or insert the whole group at once"
        )
    return "b" if is_token and is_rollout else "t" if is_token else "r"


def merge_groups(pieces: Sequence[RolloutGroup]) -> RolloutGroup:
    """Return the group of all rollouts of these pieces, in this order.

    Everything that belongs to tokens or rollouts is put one behind the other; spans of policy versions are built where
    the versions of pieces differ, unless a piece mixes versions and has none. The group has the prompt and producer_id
    of the first piece, the tags that all pieces agree on, the latest created_at_ms, and the highest priority.

    Raises:
        InvalidGroupError: there is no piece, they disagree on what all must have in common, or a column has rows
            neither for tokens nor for rollouts.
    """
    if not pieces:
        raise InvalidGroupError("no pieces; a group has at least one rollout")
    first = pieces[0]
    if len(pieces) == 1:
        return first
    _check_agreement(pieces)
    masks = [p.loss_mask for p in pieces if p.loss_mask is not None]
    texts = tuple(text for p in pieces for text in p.response_texts or ())
    priorities = [p.priority for p in pieces if p.priority is not None]
    return RolloutGroup(
        group_id=first.group_id,
        prompt_id=first.prompt_id,
        prompt_token_ids=first.prompt_token_ids,
        response_token_ids=np.concatenate([p.response_token_ids for p in pieces]),
        response_lengths=np.concatenate([p.response_lengths for p in pieces]),
        behaviour_logprobs=np.concatenate([p.behaviour_logprobs for p in pieces]),
        rewards=np.concatenate([p.rewards for p in pieces]),
        policy_version_min=min(p.policy_version_min for p in pieces),
        policy_version_max=max(p.policy_version_max for p in pieces),
        loss_mask=np.concatenate(masks) if masks else None,
        version_spans=_merge_spans(pieces),
        finish_reasons=tuple(reason for p in pieces for reason in p.finish_reasons),
        task=first.task,
        producer_id=first.producer_id,
        created_at_ms=max(p.created_at_ms for p in pieces),
        tags={k: v for k, v in first.tags.items() if all(p.tags.get(k) == v for p in pieces)},
        prompt_text=first.prompt_text,
        response_texts=texts or None,
        columns={name: _concatenate([p.columns[name] for p in pieces]) for name in first.columns},
        priority=max(priorities, default=None),
    )


def _concatenate(arrays: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return np.concatenate(arrays, dtype=arrays[0].dtype)


def _check_agreement(pieces: Sequence[RolloutGroup]) -> None:
    first, terms = pieces[0], terms_of(pieces[0])
    rows = terms.rows
    for index, piece in enumerate(pieces):
        other = terms_of(piece)
        if piece.group_id != first.group_id:
            raise InvalidGroupError(f"piece {index} is of group {piece.group_id}, the first of {first.group_id}")
        for name in ("prompt_id", "prompt_token_ids", "prompt_text", "task", "columns"):
            here, there = getattr(other, name), getattr(terms, name)
            if here != there:
                raise InvalidGroupError(
                    f"group {first.group_id}: piece {index} has {name} {here[:_SHOWN]!r}, the first "
                    f"{there[:_SHOWN]!r}; rollouts of one group have all of it in common"
                )
        both = list(zip(rows, other.rows, strict=True))
        if any({"t", "r"} == {left, right} for left, right in both):
            raise InvalidGroupError(
                f"group {first.group_id}: piece {index} has columns with a row for each token that the others have for "
                f"each rollout, or the reverse: {other.rows} after {rows}, in the order of {sorted(first.columns)[:32]}"
            )
        rows = "".join(right if left == "b" else left for left, right in both)


def _merge_spans(pieces: Sequence[RolloutGroup]) -> Int32 | None:
    """Return [S, 2] spans of all pieces; None where one version sampled everything, or a piece cannot tell."""
    spans: list[tuple[int, int]] = []
    offset = 0
    for piece in pieces:
        if piece.version_spans is None:
            if piece.policy_version_min != piece.policy_version_max:
                return None
            found = [(0, piece.policy_version_min)]
        else:
            found = [(int(start), int(version)) for start, version in piece.version_spans.tolist()]
        for start, version in found:
            if not spans or spans[-1][1] != version:
                spans.append((offset + start, version))
        offset += len(piece.response_token_ids)
    return np.array(spans, np.int32) if len(spans) > 1 else None
