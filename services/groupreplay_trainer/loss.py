"""The decoupled importance-sampling objective, and the arms it is compared with. Pure functions of tensors.

Three policies meet in it: behaviour (mu) sampled the tokens, proximal is the policy at the start of this training
step, current is being optimised. The trust region is centred on proximal; proximal / behaviour only reweights.

Nothing here knows of models, batches or services, so that any trainer can call it.

Shape legend: B rollouts, T tokens of prompt and response, right-padded.
"""
# ruff: noqa: N815 - tensor shapes as suffixes

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from groupreplay_trainer.loss_config import LossConfig, Objective, WeightLevel

__all__ = [
    "BehaviourWeights", "LossConfig", "LossMetrics", "Objective", "WeightLevel", "behaviour_weights", "decoupled_loss",
    "entropy_bonus", "kl_to_reference", "token_mean",
]  # fmt: skip

MAX_LOG_RATIO: Final = 20.0
"""Log ratios are clamped to +-20, a ratio of 4.9e8, so that one absurd token cannot make the loss infinite."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BehaviourWeights:
    """The weights of a batch's tokens, without gradient.

    Attributes:
        weights_BT: after the cap; 0 where rejected, 1 outside the response mask.
        capped_BT, rejected_BT: bool, of response tokens.
    """

    weights_BT: Tensor
    capped_BT: Tensor
    rejected_BT: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LossMetrics:
    """What the loss did to each token, detached; the booleans are False outside the response mask.

    Attributes:
        ratio_BT: current / the centre of the trust region.
        weights_BT: as in BehaviourWeights.
        clipped_low_BT: the trust region's lower end took the gradient away (A < 0).
        clipped_high_BT: its upper end did (A > 0).
        dual_clipped_BT: the dual clip did (A < 0).
        capped_BT, rejected_BT: as in BehaviourWeights.
        response_mask_BT: the mask that was given.
    """

    ratio_BT: Tensor
    weights_BT: Tensor
    clipped_low_BT: Tensor
    clipped_high_BT: Tensor
    dual_clipped_BT: Tensor
    capped_BT: Tensor
    rejected_BT: Tensor
    response_mask_BT: Tensor

    def shares(self) -> dict[str, float]:
        """Return the share of response tokens that was clipped, capped or rejected; 0 for a mask without tokens."""
        tokens = max(int(self.response_mask_BT.sum()), 1)
        names = ("clipped_low", "clipped_high", "dual_clipped", "capped", "rejected")
        return {name: float(getattr(self, f"{name}_BT").sum()) / tokens for name in names}


def decoupled_loss(
    current_logprobs_BT: Tensor,
    proximal_logprobs_BT: Tensor,
    behaviour_logprobs_BT: Tensor,
    advantages_B: Tensor,
    response_mask_BT: Tensor,
    *,
    config: LossConfig,
    denominator: float | None = None,
) -> tuple[Tensor, LossMetrics]:
    """Return the token-mean decoupled PPO loss (a scalar to minimise) and what it did to each token.

        -1/N sum_t w_t min(rho_t A, clip(rho_t, 1 - clip_low, 1 + clip_high) A)

    The trust region is centred on the proximal policy; proximal/behaviour only reweights and carries no gradient.
    Rejected tokens still count in N, so that rejecting some does not enlarge the step along the others.

    Args:
        current_logprobs_BT: natural log, floating point, requires grad. The others are constants.
        proximal_logprobs_BT: under the weights at the start of this training step.
        behaviour_logprobs_BT: under the distribution each token was sampled from. All three must be at one
            temperature; values outside the mask are not read.
        advantages_B: one for each rollout.
        response_mask_BT: bool, the tokens to train on: EOS included where the model wrote it, no prompt, no padding.
        config: see LossConfig.
        denominator: N, by default the number of tokens in the mask. Give the count of the whole batch, and the losses
            of its pieces add up to the loss of the batch.

    Raises:
        ValueError: shapes differ, the denominator is not above 0, or without one the mask selects no token.

    Source: Hilton et al. 2021 (arXiv 2110.00641), decoupled objective; POPO (arXiv 2606.01281); DAPO (arXiv
        2503.14476), asymmetric clip and token mean; Ye et al. 2020 (arXiv 1912.09729), dual clip.
    """
    mask = response_mask_BT
    _check_shapes(mask, current_logprobs_BT, proximal_logprobs_BT, behaviour_logprobs_BT)
    if advantages_B.shape != mask.shape[:1]:
        raise ValueError(f"advantages_B {tuple(advantages_B.shape)} must hold one number for each row {mask.shape[0]}")
    centre_BT = behaviour_logprobs_BT if config.objective is Objective.COUPLED else proximal_logprobs_BT
    ratio_BT = _log_ratio(current_logprobs_BT, centre_BT.detach(), mask).exp()
    advantages_B1 = advantages_B.detach()[:, None]
    low, high = 1 - config.clip_low, 1 + config.clip_high
    surrogate_BT = torch.minimum(ratio_BT * advantages_B1, ratio_BT.clamp(low, high) * advantages_B1)
    dual_clipped_BT = torch.zeros_like(mask)
    if config.dual_clip is not None:
        dual_clipped_BT = mask & (advantages_B1 < 0) & (ratio_BT.detach() > config.dual_clip)
        surrogate_BT = torch.where(dual_clipped_BT, config.dual_clip * advantages_B1, surrogate_BT)
    weights = behaviour_weights(proximal_logprobs_BT, behaviour_logprobs_BT, mask, config=config)
    loss = -token_mean(weights.weights_BT * surrogate_BT, mask, denominator=denominator)
    ratio_BT = ratio_BT.detach()
    return loss, LossMetrics(
        ratio_BT=ratio_BT,
        weights_BT=weights.weights_BT,
        clipped_low_BT=mask & (advantages_B1 < 0) & (ratio_BT < low),
        clipped_high_BT=mask & (advantages_B1 > 0) & (ratio_BT > high),
        dual_clipped_BT=dual_clipped_BT,
        capped_BT=weights.capped_BT,
        rejected_BT=weights.rejected_BT,
        response_mask_BT=mask,
    )


@torch.no_grad()
def behaviour_weights(
    proximal_logprobs_BT: Tensor, behaviour_logprobs_BT: Tensor, response_mask_BT: Tensor, *, config: LossConfig
) -> BehaviourWeights:
    """Return w = proximal / behaviour for each response token, limited as `config` says; 1 for other objectives.

    Args:
        proximal_logprobs_BT, behaviour_logprobs_BT: natural log; not read outside the mask.
        response_mask_BT: bool.
        config: its objective, weight_level, weight_cap, weight_bounds and veto_below are read.

    Source: verl, docs/algo/rollout_corr.md (truncation, levels, veto); IcePop (masking on both sides).
    """
    mask = response_mask_BT
    if config.objective is not Objective.DECOUPLED:
        nothing_BT = torch.zeros_like(mask)
        return BehaviourWeights(
            weights_BT=torch.ones_like(proximal_logprobs_BT), capped_BT=nothing_BT, rejected_BT=nothing_BT
        )
    token_log_ratio_BT = _log_ratio(proximal_logprobs_BT, behaviour_logprobs_BT, mask)
    weights_BT = _at_level(token_log_ratio_BT, mask, config.weight_level).exp()
    rejected_BT = torch.zeros_like(mask)
    if config.weight_bounds is not None:
        lowest, highest = config.weight_bounds
        rejected_BT = mask & ((weights_BT < lowest) | (weights_BT > highest))
    if config.veto_below is not None:
        vetoed_B1 = (token_log_ratio_BT < math.log(config.veto_below)).any(dim=1, keepdim=True)
        rejected_BT = rejected_BT | (mask & vetoed_B1)
    capped_BT = torch.zeros_like(mask)
    if config.weight_cap is not None:
        capped_BT = mask & ~rejected_BT & (weights_BT > config.weight_cap)
        weights_BT = weights_BT.clamp(max=config.weight_cap)
    weights_BT = weights_BT.masked_fill(rejected_BT, 0.0).masked_fill(~mask, 1.0)
    return BehaviourWeights(weights_BT=weights_BT, capped_BT=capped_BT, rejected_BT=rejected_BT)


def entropy_bonus(entropy_BT: Tensor, response_mask_BT: Tensor, *, denominator: float | None = None) -> Tensor:
    """Return the token-mean entropy in nats, a scalar: subtract it, times its coefficient, from the loss.

    Args:
        entropy_BT: of the current policy's distribution at each token, with gradient.
        response_mask_BT, denominator: as in `decoupled_loss`.
    """
    _check_shapes(response_mask_BT, entropy_BT)
    return token_mean(entropy_BT, response_mask_BT, denominator=denominator)


def kl_to_reference(
    current_logprobs_BT: Tensor,
    reference_logprobs_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    denominator: float | None = None,
) -> Tensor:
    """Return the token-mean k3 estimate of KL(current || reference) in nats, a scalar.

    Add it, times its coefficient, to the loss.

    k3 = exp(d) - 1 - d with d = reference - current: never negative, and of little variance. Its expectation is the KL
    when the tokens are the current policy's own; on replayed tokens it is a penalty on distance all the same.

    Args:
        current_logprobs_BT: natural log, with gradient.
        reference_logprobs_BT: natural log, constant.
        response_mask_BT, denominator: as in `decoupled_loss`.

    Source: Schulman, Approximating KL divergence (2020); GRPO (arXiv 2402.03300).
    """
    _check_shapes(response_mask_BT, current_logprobs_BT, reference_logprobs_BT)
    difference_BT = -_log_ratio(current_logprobs_BT, reference_logprobs_BT.detach(), response_mask_BT)
    return token_mean(difference_BT.expm1() - difference_BT, response_mask_BT, denominator=denominator)


def token_mean(values_BT: Tensor, response_mask_BT: Tensor, *, denominator: float | None = None) -> Tensor:
    """Return the sum of the values in the mask over `denominator`, by default their number.

    Raises:
        ValueError: the denominator is not finite and above 0, or without one the mask selects no token.
    """
    if denominator is None:
        denominator = int(response_mask_BT.sum())
        if denominator == 0:
            raise ValueError("the response mask selects no token, so there is no mean; leave such a batch out")
    if not 0 < denominator < math.inf:
        raise ValueError(f"denominator {denominator!r} must be finite and above 0")
    # where, not a product with the mask: 0 * nan would carry what lies outside the mask into the sum.
    return torch.where(response_mask_BT, values_BT, 0.0).sum() / denominator


def _log_ratio(numerator_BT: Tensor, denominator_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Return the clamped difference of two log probabilities, 0 outside the mask."""
    return torch.where(mask_BT, numerator_BT - denominator_BT, 0.0).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def _at_level(log_ratio_BT: Tensor, mask_BT: Tensor, level: WeightLevel) -> Tensor:
    if level is WeightLevel.TOKEN:
        return log_ratio_BT
    total_B1 = log_ratio_BT.sum(dim=1, keepdim=True)
    if level is WeightLevel.SEQUENCE_MEAN:
        total_B1 = total_B1 / mask_BT.sum(dim=1, keepdim=True).clamp(min=1)
    return total_B1.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).expand_as(log_ratio_BT)


def _check_shapes(mask_BT: Tensor, *others: Tensor) -> None:
    if mask_BT.dtype != torch.bool or mask_BT.ndim != 2:
        raise ValueError(f"response_mask_BT must be bool [B, T], got {mask_BT.dtype} {tuple(mask_BT.shape)}")
    for other in others:
        if other.shape != mask_BT.shape:
            raise ValueError(f"shape {tuple(other.shape)} differs from response_mask_BT's {tuple(mask_BT.shape)}")
