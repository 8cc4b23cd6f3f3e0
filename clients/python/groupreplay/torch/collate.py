"""A batch of rollout groups as padded tensors, and how it is cut into minibatches.

Each row is one rollout: its prompt, its response, padding on the right. Everything about a token stands at that token's
own column, so behaviour_logprobs_BT[b, t] belongs to token_ids_BT[b, t].

Shape legend: B rollouts of all groups in the batch's order, T tokens of the longest row, N rows selected; G groups, and
H, W, C of the image of one.
"""
# ruff: noqa: N815 - tensor shapes as suffixes

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from groupreplay import Batch, DeliveredGroup, GroupSource
from groupreplay.torch.advantages import AdvantageEstimator, group_advantages


class MinibatchUnit(StrEnum):
    """What stays together when a batch is cut into minibatches."""

    GROUP = "group"
    ROLLOUT = "rollout"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingBatch:
    """The rollouts of a batch, one row each.

    Attributes:
        token_ids_BT: int64, pad_token_id at padding.
        attention_mask_BT: bool, true at prompt and response, false at padding.
        response_mask_BT: bool, the tokens to train on: the response, EOS included where there is one, less what the
            group's loss mask leaves out.
        behaviour_logprobs_BT: float32, natural log at the sampling temperature; 0 outside the response.
        advantages_B: float32.
        rewards_B: float32.
        group_index_B: int64, position of the rollout's group in the batch.
        is_replay_B: bool, whether an earlier step trained on the group.
        staleness_B: int64, policy versions between the group's oldest token and the draw.
        lengths_B: int64, tokens of prompt and response.
        response_lengths_B: int64, tokens of the response, those left out by the loss mask included.
        images_GHWC: uint8, the column `image` of every group; empty where the groups have none. One for each group of
            the whole batch, also after `select`; `row_images` gives one for each row.
    """

    token_ids_BT: Tensor
    attention_mask_BT: Tensor
    response_mask_BT: Tensor
    behaviour_logprobs_BT: Tensor
    advantages_B: Tensor
    rewards_B: Tensor
    group_index_B: Tensor
    is_replay_B: Tensor
    staleness_B: Tensor
    lengths_B: Tensor
    response_lengths_B: Tensor
    images_GHWC: Tensor = field(default_factory=lambda: torch.empty((0, 0, 0, 0), dtype=torch.uint8))

    def __len__(self) -> int:
        """Return B, the number of rollouts."""
        return self.token_ids_BT.shape[0]

    @property
    def trained_tokens(self) -> int:
        """Number of tokens in the response mask."""
        return int(self.response_mask_BT.sum())

    def row_images(self) -> Tensor | None:
        """Return images_BHWC, the image that stands before each row's prompt; None where there are none."""
        return self.images_GHWC[self.group_index_B] if self.images_GHWC.numel() else None

    def select(self, rows_N: Tensor) -> Self:
        """Return the given rows (int64, at least one) in this order, no wider than the longest of them."""
        width = int(self.lengths_B[rows_N].max())
        return type(self)(
            token_ids_BT=self.token_ids_BT[rows_N, :width],
            attention_mask_BT=self.attention_mask_BT[rows_N, :width],
            response_mask_BT=self.response_mask_BT[rows_N, :width],
            behaviour_logprobs_BT=self.behaviour_logprobs_BT[rows_N, :width],
            advantages_B=self.advantages_B[rows_N],
            rewards_B=self.rewards_B[rows_N],
            group_index_B=self.group_index_B[rows_N],
            is_replay_B=self.is_replay_B[rows_N],
            staleness_B=self.staleness_B[rows_N],
            lengths_B=self.lengths_B[rows_N],
            response_lengths_B=self.response_lengths_B[rows_N],
            images_GHWC=self.images_GHWC,
        )


def collate(
    batch: Batch,
    *,
    pad_token_id: int,
    estimator: AdvantageEstimator = AdvantageEstimator.GRPO,
    max_tokens: int | None = None,
    vocab_size: int | None = None,
) -> TrainingBatch:
    """Return the rollouts of all groups of a batch, in its order, as one right-padded batch.

    Args:
        batch: at least one group.
        pad_token_id: what padding holds; nothing reads it.
        estimator: how rewards become advantages.
        max_tokens: what the model takes of prompt and response together; None = any.
        vocab_size: token ids are below this; None = any.

    Raises:
        ValueError: the batch is empty, a group has no prompt token (nothing would predict the first response token),
            a rollout is longer than max_tokens, or a token id is not below vocab_size; or some groups have an image and
            others none, or of another shape.
    """
    if not batch.groups:
        raise ValueError(f"batch {batch.lease_id} has no groups; there is nothing to collate")
    for item in batch.groups:
        _check_vocabulary(item, vocab_size)
    rows = [row for index, delivered in enumerate(batch.groups) for row in _rows(delivered, index, max_tokens)]
    shape = (len(rows), max(len(row.token_ids) for row in rows))
    token_ids_BT = np.full(shape, pad_token_id, np.int64)
    attention_mask_BT, response_mask_BT = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
    behaviour_logprobs_BT = np.zeros(shape, np.float32)
    for number, row in enumerate(rows):
        end = len(row.token_ids)
        start = end - len(row.behaviour_logprobs)
        token_ids_BT[number, :end] = row.token_ids
        attention_mask_BT[number, :end] = True
        response_mask_BT[number, start:end] = row.loss_mask
        behaviour_logprobs_BT[number, start:end] = row.behaviour_logprobs
    group_index_B = torch.tensor([row.group_index for row in rows])
    delivered = batch.groups
    return TrainingBatch(
        token_ids_BT=torch.from_numpy(token_ids_BT),
        attention_mask_BT=torch.from_numpy(attention_mask_BT),
        response_mask_BT=torch.from_numpy(response_mask_BT),
        behaviour_logprobs_BT=torch.from_numpy(behaviour_logprobs_BT),
        advantages_B=torch.from_numpy(
            np.concatenate([group_advantages(item.group.rewards, estimator=estimator) for item in delivered])
        ),
        rewards_B=torch.from_numpy(np.concatenate([item.group.rewards for item in delivered])),
        group_index_B=group_index_B,
        is_replay_B=torch.tensor([item.source is GroupSource.REPLAY for item in delivered])[group_index_B],
        staleness_B=torch.tensor([item.staleness for item in delivered])[group_index_B],
        lengths_B=torch.tensor([len(row.token_ids) for row in rows]),
        response_lengths_B=torch.tensor([len(row.behaviour_logprobs) for row in rows]),
        images_GHWC=_images(batch),
    )


def split_minibatches(
    group_index_B: Tensor, *, count: int, generator: torch.Generator, unit: MinibatchUnit = MinibatchUnit.GROUP
) -> list[Tensor]:
    """Return the rows of each minibatch: every row in exactly one, shuffled, sizes as equal as they can be.

    Args:
        group_index_B: int64, the group of each row.
        count: minibatches wanted; where there are fewer units than that, there are as many minibatches as units.
        generator: draws the order.
        unit: whether the rollouts of a group stay together. The advantages are frozen, so either is valid.

    Raises:
        ValueError: count is below 1.
    """
    if count < 1:
        raise ValueError(f"count {count} is below 1; a batch has at least one minibatch")
    rows_B = torch.arange(len(group_index_B))
    unit_B = group_index_B if unit is MinibatchUnit.GROUP else rows_B
    units = torch.unique(unit_B)
    shuffled = units[torch.randperm(len(units), generator=generator)]
    return [rows_B[torch.isin(unit_B, piece)] for piece in torch.tensor_split(shuffled, min(count, len(units)))]


def split_microbatches(
    rows_N: Tensor,
    lengths_B: Tensor,
    *,
    tokens_at_once: int,
    packed: bool = False,
    max_rollouts: int | None = None,
) -> list[Tensor]:
    """Return the given rows in pieces that fit into memory, longest first, so that like lengths pad like lengths.

    Args:
        rows_N: int64, rows of the batch.
        lengths_B: int64, tokens of each row of the batch.
        tokens_at_once: tokens of a piece, padding included. A single row that is longer is a piece of its own.
        packed: rows are not padded, so that a piece has as many tokens as its rows.
        max_rollouts: rows of a piece; None = any.

    Raises:
        ValueError: tokens_at_once or max_rollouts is below 1.
    """
    for name, limit in (("tokens_at_once", tokens_at_once), ("max_rollouts", max_rollouts)):
        if limit is not None and limit < 1:
            raise ValueError(f"{name} {limit} is below 1; a microbatch has at least one rollout")
    # Longest first: what does not fit into memory fails at once, not at the end of the step.
    by_length_N = rows_N[torch.argsort(lengths_B[rows_N], descending=True, stable=True)]
    sizes: list[int] = []
    width = tokens = 0
    for length in lengths_B[by_length_N].tolist():
        full = sizes and sizes[-1] == max_rollouts
        # The first row of a piece is its longest, and what the others are padded to.
        if not sizes or full or tokens + (length if packed else width) > tokens_at_once:
            sizes.append(0)
            width, tokens = length, 0
        sizes[-1] += 1
        tokens += length if packed else width
    return list(torch.split(by_length_N, sizes)) if sizes else []


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Row:
    """One rollout: prompt and response tokens, and the response's columns."""

    group_index: int
    token_ids: npt.NDArray[np.int32]
    behaviour_logprobs: npt.NDArray[np.float32]
    loss_mask: npt.NDArray[np.bool_]


def _images(batch: Batch) -> Tensor:
    columns = [delivered.group.columns.get("image") for delivered in batch.groups]
    images = [column for column in columns if column is not None]
    if not images:
        return torch.empty((0, 0, 0, 0), dtype=torch.uint8)
    if len(images) < len(columns) or len({(image.dtype, image.shape) for image in images}) > 1:
        shapes = sorted({"none" if column is None else f"{column.dtype} {column.shape}" for column in columns})
        raise ValueError(
            f"the groups of batch {batch.lease_id} have images of different kinds ({', '.join(shapes)}); those of one "
            "batch must be alike, so keep groups with other images in another table"
        )
    return torch.from_numpy(np.stack(images))


def _check_vocabulary(delivered: DeliveredGroup, vocab_size: int | None) -> None:
    group = delivered.group
    for what, token_ids in (("prompt", group.prompt_token_ids), ("response", group.response_token_ids)):
        highest = int(token_ids.max(initial=0))
        if vocab_size is not None and highest >= vocab_size:
            raise ValueError(
                f"group {group.group_id} has the token id {highest} in a {what}; the model's vocabulary has "
                f"{vocab_size}, so ids below that. The generator must use the tokenizer of the model that is trained"
            )


def _rows(delivered: DeliveredGroup, group_index: int, max_tokens: int | None) -> Sequence[_Row]:
    group = delivered.group
    prompt_length = len(group.prompt_token_ids)
    if prompt_length == 0:
        raise ValueError(
            f"group {group.group_id} has no prompt tokens, so nothing predicts the first response token; "
            "its producer must put at least a beginning-of-sequence token into the prompt"
        )
    longest = prompt_length + int(group.response_lengths.max())
    if max_tokens is not None and longest > max_tokens:
        raise ValueError(
            f"group {group.group_id} has a rollout of {longest} tokens (prompt {prompt_length}); the model takes "
            f"{max_tokens}. Limit prompt and response at the generator; delete_groups takes this one out of the table"
        )
    loss_mask = np.ones(len(group.response_token_ids), np.bool_) if group.loss_mask is None else group.loss_mask
    return [
        _Row(
            group_index=group_index,
            token_ids=np.concatenate([group.prompt_token_ids, group.response_token_ids[piece]]),
            behaviour_logprobs=group.behaviour_logprobs[piece],
            loss_mask=loss_mask[piece],
        )
        for piece in group.response_slices()
    ]
