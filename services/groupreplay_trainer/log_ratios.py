"""Log ratios of tokens for people to look at, in the feedback of a step.

Shape legend: B rollouts, T tokens, N tokens of all responses of a group.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from groupreplay import GroupFeedback
from groupreplay.log_ratios import MAX_LOG_RATIO_BYTES
from groupreplay.torch.collate import TrainingBatch
from groupreplay_trainer.sections import LogRatioGroups

_LARGEST = float(np.finfo(np.float16).max)


def with_log_ratios(
    feedback: Sequence[GroupFeedback],
    group_ids: Sequence[str],
    rollouts: TrainingBatch,
    proximal_logprobs_BT: Tensor,
    *,
    which: LogRatioGroups,
) -> list[GroupFeedback]:
    """Return feedback with the log ratios of some groups: proximal less behaviour log probability of each token.

    Args:
        feedback: what the step found out about groups of the batch.
        group_ids: those of the batch, in its order.
        rollouts: the batch, collated.
        proximal_logprobs_BT: natural log, under the weights before the step; anything outside the response mask.
        which: none; the one group that the policy has moved furthest from, by its KL; or all, in the order of the
            batch. Never more than one call takes (MAX_LOG_RATIO_BYTES): groups that do not fit go without.
    """
    if which == "off":
        return list(feedback)
    tokens = dict.fromkeys(group_ids, 0)
    for index, length in zip(rollouts.group_index_B.tolist(), rollouts.response_lengths_B.tolist(), strict=True):
        tokens[group_ids[index]] += length
    chosen = _that_fit(_by_kl(feedback) if which == "sample" else feedback, tokens, 1 if which == "sample" else None)
    return [
        replace(item, log_ratios=_of_group(group_ids.index(item.group_id), rollouts, proximal_logprobs_BT))
        if item.group_id in chosen
        else item
        for item in feedback
    ]


def _by_kl(feedback: Iterable[GroupFeedback]) -> list[GroupFeedback]:
    return sorted(feedback, key=lambda item: item.kl or 0.0, reverse=True)


def _that_fit(wanted: Iterable[GroupFeedback], tokens: dict[str, int], most: int | None) -> set[str]:
    chosen: set[str] = set()
    left = MAX_LOG_RATIO_BYTES // np.dtype(np.float16).itemsize
    for item in wanted:
        if tokens[item.group_id] <= left and (most is None or len(chosen) < most):
            chosen.add(item.group_id)
            left -= tokens[item.group_id]
    return chosen


def _of_group(index: int, rollouts: TrainingBatch, proximal_logprobs_BT: Tensor) -> npt.NDArray[np.float32]:
    """Return the log ratios of a group's responses, one after the other, float32 [N]; NaN outside the mask."""
    pieces = []
    for row in (rollouts.group_index_B == index).nonzero().flatten().tolist():
        end = int(rollouts.lengths_B[row])
        response = slice(end - int(rollouts.response_lengths_B[row]), end)
        d = (proximal_logprobs_BT[row, response].detach() - rollouts.behaviour_logprobs_BT[row, response]).numpy()
        pieces.append(np.where(rollouts.response_mask_BT[row, response].numpy(), d.clip(-_LARGEST, _LARGEST), np.nan))
    return np.concatenate(pieces).astype(np.float32)
