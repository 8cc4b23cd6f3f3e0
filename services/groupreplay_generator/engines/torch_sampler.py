"""Batched sampling from a TinyLM: every rollout of every prompt advances by one token per step.

Shape legend: B rows still in the batch, R rollouts asked for, T response tokens, V vocabulary, N prompts; H, W, C of an
image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from groupreplay_generator.engines.base import Sampling
from groupreplay_tinylm import CharTokenizer, KVCache, TinyLM

COMPACT_BELOW: Final = 0.6
"""Ended rows are dropped once less than this share still runs: dropping copies the cache, which costs a step or so."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampledRows:
    """The rollouts of all prompts, those of one prompt together.

    Attributes:
        token_ids: int64 [R, T]; what follows a row's length means nothing.
        logprobs: float32 [R, T], natural log, of the distribution that was sampled from.
        lengths: int64 [R], in [1, T], EOS included.
        stopped: bool [R], whether the row ended in EOS.
    """

    token_ids: Tensor
    logprobs: Tensor
    lengths: Tensor
    stopped: Tensor


@torch.inference_mode()
def sample_rows(
    model: TinyLM,
    prompts: Sequence[Sequence[int]],
    *,
    images_NHWC: Tensor | None = None,
    rollouts_per_prompt: int,
    sampling: Sampling,
) -> SampledRows:
    """Sample `rollouts_per_prompt` responses to each of `prompts`, which are token ids, none of them empty.

    A model that sees gets images_NHWC, uint8, one for each prompt.

    All random numbers are drawn beforehand, so that dropping ended rows does not change what the others get.
    """
    rows, steps = len(prompts) * rollouts_per_prompt, sampling.max_response_tokens
    uniform_TR = _draw_uniform(rows, steps, sampling)
    token_ids_TR = torch.full((steps, rows), CharTokenizer.eos_id)
    logprobs_TR = torch.zeros((steps, rows))
    logits_BV, cache = _read_prompts(model, prompts, images_NHWC, rollouts_per_prompt, steps)
    row_B = torch.arange(rows)
    running_B = torch.ones(rows, dtype=torch.bool)
    for step in range(steps):
        token_B, logprob_B = _pick(logits_BV, uniform_TR[step, row_B], sampling.temperature)
        token_ids_TR[step, row_B] = token_B
        logprobs_TR[step, row_B] = logprob_B
        running_B &= token_B != CharTokenizer.eos_id
        running = int(running_B.sum())
        if not running or step == steps - 1:
            break
        if running < COMPACT_BELOW * cache.rows:
            kept_B = running_B.nonzero().squeeze(1)
            cache, row_B, token_B, running_B = cache.select(kept_B), row_B[kept_B], token_B[kept_B], running_B[kept_B]
        logits_BV = model.decode_step(token_B, cache)
    return _measure(token_ids_TR.T, logprobs_TR.T)


def _read_prompts(
    model: TinyLM, prompts: Sequence[Sequence[int]], images_NHWC: Tensor | None, copies: int, max_new_tokens: int
) -> tuple[Tensor, KVCache]:
    """Run each prompt through the model once; return the first logits_RV and the cache of all its copies."""
    tokens = max(len(prompt) for prompt in prompts)
    pad = CharTokenizer.pad_id
    padded_NT = torch.tensor([[pad] * (tokens - len(prompt)) + list(prompt) for prompt in prompts])
    logits_NV, cache = model.prefill(
        padded_NT, padded_NT != pad, max_new_tokens=max_new_tokens, images_BHWC=images_NHWC
    )
    copy_R = torch.arange(len(prompts)).repeat_interleave(copies)
    return logits_NV[copy_R], cache.select(copy_R)


def _draw_uniform(rows: int, steps: int, sampling: Sampling) -> Tensor:
    generator = torch.Generator()
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)
    return torch.rand((steps, rows), generator=generator, dtype=torch.float64)


def _pick(logits_BV: Tensor, uniform_B: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the next token_B and its logprob_B, by inverting the cumulative distribution at uniform_B."""
    if temperature == 0:
        token_B = logits_BV.argmax(dim=-1)
        return token_B, torch.zeros(token_B.shape)
    logprobs_BV = (logits_BV / temperature).log_softmax(dim=-1)
    cumulative_BV = logprobs_BV.double().exp().cumsum(dim=-1)
    # Scaled by the last entry, which rounding leaves a little off 1; right=True passes over tokens of probability 0.
    threshold_B1 = (uniform_B * cumulative_BV[:, -1]).unsqueeze(1)
    token_B1 = torch.searchsorted(cumulative_BV, threshold_B1, right=True).clamp(max=logits_BV.shape[1] - 1)
    return token_B1.squeeze(1), logprobs_BV.gather(1, token_B1).squeeze(1)


def _measure(token_ids_RT: Tensor, logprobs_RT: Tensor) -> SampledRows:
    """Find where each row ends: at its first EOS, else at the limit."""
    is_eos_RT = token_ids_RT == CharTokenizer.eos_id
    stopped_R = is_eos_RT.any(dim=1)
    first_eos_R = is_eos_RT.int().argmax(dim=1)
    limit = token_ids_RT.shape[1]
    return SampledRows(
        token_ids=token_ids_RT,
        logprobs=logprobs_RT,
        lengths=torch.where(stopped_R, first_eos_R + 1, limit),
        stopped=stopped_R,
    )
