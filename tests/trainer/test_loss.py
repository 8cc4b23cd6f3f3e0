"""The decoupled objective has the properties it is chosen for.

Shape legend: B rollouts, T tokens.
"""
# ruff: noqa: N806, N815 - tensor shapes as suffixes

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from groupreplay_trainer.loss import (
    LossConfig,
    LossMetrics,
    Objective,
    WeightLevel,
    behaviour_weights,
    decoupled_loss,
    entropy_bonus,
    kl_to_reference,
    token_mean,
)

PLAIN = LossConfig(objective=Objective.PROXIMAL)


@dataclass(frozen=True)
class Case:
    """Arguments of the loss, in double precision."""

    current_BT: Tensor
    proximal_BT: Tensor
    behaviour_BT: Tensor
    advantages_B: Tensor
    mask_BT: Tensor

    def loss(self, config: LossConfig, denominator: float | None = None) -> tuple[Tensor, LossMetrics]:
        """Return the loss and its metrics."""
        arguments = (self.current_BT, self.proximal_BT, self.behaviour_BT, self.advantages_B, self.mask_BT)
        return decoupled_loss(*arguments, config=config, denominator=denominator)

    def gradient(self, config: LossConfig) -> Tensor:
        """Return d loss / d current logprobs."""
        (gradient,) = torch.autograd.grad(self.loss(config)[0], self.current_BT)
        return gradient

    def rows(self, start: int, end: int) -> "Case":
        """Return some of the rollouts."""
        return Case(*(getattr(self, name)[start:end] for name in self.__dataclass_fields__))


def make_case(*, spread: float = 0.5, off_policy: float = 0.8, rollouts: int = 12, tokens: int = 9) -> Case:
    """Return random log probabilities whose log ratios have the given standard deviations."""
    generator = torch.Generator().manual_seed(7)

    def normal() -> Tensor:
        return torch.randn(rollouts, tokens, generator=generator, dtype=torch.float64)

    proximal = -3 + 0.5 * normal()
    current = (proximal + spread * normal()).requires_grad_()
    behaviour = proximal + off_policy * normal()
    mask = torch.rand(rollouts, tokens, generator=generator) < 0.7
    return Case(current, proximal, behaviour, normal()[:, 0], mask)


def straightforward_loss(case: Case, clip_low: float, clip_high: float) -> float:
    """Return the clipped GRPO loss as one would write it down: token by token, in plain Python."""
    terms: list[float] = []
    current, proximal, mask = case.current_BT.tolist(), case.proximal_BT.tolist(), case.mask_BT.tolist()
    for row, advantage in enumerate(case.advantages_B.tolist()):
        for token, is_trained in enumerate(mask[row]):
            if is_trained:
                ratio = math.exp(current[row][token] - proximal[row][token])
                clipped = max(min(ratio, 1 + clip_high), 1 - clip_low)
                terms.append(-min(ratio * advantage, clipped * advantage))
    return sum(terms) / len(terms)


def test_without_replay_the_loss_is_clipped_grpo() -> None:
    """Where proximal is behaviour, and where w = 1 by configuration, this is DAPO's token-mean clipped loss."""
    case = make_case(off_policy=0)
    expected = straightforward_loss(case, 0.2, 0.28)
    for config in (LossConfig.faithful(), LossConfig.robust(), PLAIN, LossConfig(objective=Objective.COUPLED)):
        assert case.loss(config)[0].item() == pytest.approx(expected, rel=1e-12)
    replayed = make_case(off_policy=0.8)
    assert replayed.loss(PLAIN)[0].item() == pytest.approx(straightforward_loss(replayed, 0.2, 0.28), rel=1e-12)


def test_at_the_proximal_policy_nothing_is_clipped_and_the_gradient_is_the_weighted_policy_gradient() -> None:
    """At theta = theta_prox the gradient is 1/N sum w A grad log pi."""
    case = make_case(spread=0)
    loss, metrics = case.loss(LossConfig.faithful())
    weights_BT = (case.proximal_BT - case.behaviour_BT).exp()
    expected_BT = -torch.where(case.mask_BT, weights_BT * case.advantages_B[:, None], 0.0) / case.mask_BT.sum()
    torch.testing.assert_close(case.gradient(LossConfig.faithful()), expected_BT, rtol=1e-12, atol=0)
    assert metrics.shares() == dict.fromkeys(("clipped_low", "clipped_high", "dual_clipped", "capped", "rejected"), 0)
    expected_loss = -(torch.where(case.mask_BT, weights_BT * case.advantages_B[:, None], 0.0)).sum()
    assert loss.item() == pytest.approx(expected_loss.item() / int(case.mask_BT.sum()), rel=1e-12)


def test_the_trust_region_is_centred_on_the_proximal_policy() -> None:
    """Which tokens are clipped depends on current / proximal alone, however far behaviour is."""
    near, far = make_case(off_policy=0), make_case(off_policy=3.0)
    for name in ("clipped_low_BT", "clipped_high_BT"):
        clipped = [getattr(case.loss(LossConfig.faithful())[1], name) for case in (near, far)]
        assert clipped[0].any()
        assert torch.equal(*clipped)
    gradient_BT, metrics = far.gradient(LossConfig.faithful()), far.loss(LossConfig.faithful())[1]
    stopped_BT = metrics.clipped_low_BT | metrics.clipped_high_BT
    assert torch.equal(gradient_BT == 0, stopped_BT | ~far.mask_BT)


def test_decoupled_and_coupled_coincide_exactly_where_behaviour_is_proximal() -> None:
    """One objective clips around proximal, the other around behaviour: equal iff the two policies are."""
    coupled = LossConfig(objective=Objective.COUPLED)
    for off_policy, equal in ((0.0, True), (0.8, False)):
        case = make_case(off_policy=off_policy)
        losses = [case.loss(config)[0].item() for config in (LossConfig.faithful(), coupled)]
        assert (losses[0] == pytest.approx(losses[1], rel=1e-12)) is equal
        assert torch.allclose(case.gradient(LossConfig.faithful()), case.gradient(coupled)) is equal


def test_the_behaviour_weight_is_applied_to_replay_unless_configured_away() -> None:
    """Decoupled training of off-policy tokens differs from treating them as on-policy: no silent pi_old arm."""
    case = make_case(spread=0)
    assert not torch.allclose(case.gradient(LossConfig.faithful()), case.gradient(PLAIN))


def test_the_weight_carries_no_gradient() -> None:
    """Proximal and behaviour logprobs are constants, also when they happen to require gradient."""
    case = make_case()
    case.proximal_BT.requires_grad_()
    case.behaviour_BT.requires_grad_()
    case.loss(LossConfig.faithful())[0].backward()  # type: ignore[no-untyped-call]
    assert case.proximal_BT.grad is None
    assert case.behaviour_BT.grad is None


def test_pieces_with_the_batch_denominator_sum_to_the_batch_loss_and_gradient() -> None:
    """The token mean of a batch does not depend on how it is cut, if every piece divides by the batch's tokens."""
    case = make_case()
    tokens = int(case.mask_BT.sum())
    pieces = [case.rows(start, end).loss(LossConfig.faithful(), tokens)[0] for start, end in ((0, 1), (1, 5), (5, 12))]
    total = torch.stack(pieces).sum()
    assert total.item() == pytest.approx(case.loss(LossConfig.faithful())[0].item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(total, case.current_BT)
    torch.testing.assert_close(gradient, case.gradient(LossConfig.faithful()), rtol=1e-12, atol=1e-15)


def test_what_lies_outside_the_mask_is_not_read() -> None:
    """Padding may hold anything, nan and infinity too; loss and gradient stay finite and the same."""
    case = make_case()
    expected, expected_gradient = case.loss(LossConfig.robust())[0], case.gradient(LossConfig.robust())
    garbage = torch.where(case.mask_BT, 0.0, torch.tensor(math.nan, dtype=torch.float64))
    current_BT = (case.current_BT.detach() + garbage).requires_grad_()
    dirty = Case(current_BT, case.proximal_BT - garbage, case.behaviour_BT + garbage, case.advantages_B, case.mask_BT)
    assert dirty.loss(LossConfig.robust())[0].item() == expected.item()
    gradient_BT = dirty.gradient(LossConfig.robust())
    torch.testing.assert_close(gradient_BT, expected_gradient)


def test_absurd_ratios_leave_the_loss_finite() -> None:
    """A token that one policy finds impossible does not make the loss infinite."""
    row = torch.tensor([[-1.0]], requires_grad=True)
    mask = torch.ones(1, 1, dtype=torch.bool)
    for proximal, behaviour, advantage in ((-200.0, -1.0, -1.0), (-1.0, -200.0, 1.0)):
        constants = (torch.tensor([[proximal]]), torch.tensor([[behaviour]]), torch.tensor([advantage]))
        loss, _ = decoupled_loss(row, *constants, mask, config=LossConfig.faithful())
        assert loss.isfinite()


def test_the_dual_clip_bounds_the_loss_of_bad_tokens_that_became_likely() -> None:
    """For A < 0 and ratio above c the surrogate is c A, without gradient; A > 0 is untouched."""
    config = LossConfig(objective=Objective.PROXIMAL, dual_clip=10.0)
    current_BT = torch.full((2, 1), math.log(50.0), dtype=torch.float64, requires_grad=True)
    zero_BT = torch.zeros(2, 1, dtype=torch.float64)
    advantages_B = torch.tensor([-2.0, 2.0], dtype=torch.float64)
    mask_BT = torch.ones(2, 1, dtype=torch.bool)
    loss, metrics = decoupled_loss(current_BT, zero_BT, zero_BT, advantages_B, mask_BT, config=config)
    assert loss.item() == pytest.approx((10 * 2 - 1.28 * 2) / 2)
    assert metrics.dual_clipped_BT.tolist() == [[True], [False]]
    loss.backward()  # type: ignore[no-untyped-call]
    assert current_BT.grad is not None
    assert current_BT.grad.tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LossConfig(), [[0.5, 4.0, 1.0], [2.0, 1e-5, 1.0]]),
        (LossConfig(weight_cap=2.0), [[0.5, 2.0, 1.0], [2.0, 1e-5, 1.0]]),
        (LossConfig(weight_bounds=(0.4, 2.5)), [[0.5, 0.0, 1.0], [2.0, 0.0, 1.0]]),
        (LossConfig(veto_below=1e-4), [[0.5, 4.0, 1.0], [0.0, 0.0, 1.0]]),
        (LossConfig(weight_level=WeightLevel.SEQUENCE_SUM), [[2.0, 2.0, 1.0], [2e-5, 2e-5, 1.0]]),
        (LossConfig(weight_level=WeightLevel.SEQUENCE_MEAN), [[2**0.5, 2**0.5, 1.0], [2e-5**0.5, 2e-5**0.5, 1.0]]),
        (LossConfig(weight_level=WeightLevel.SEQUENCE_SUM, weight_cap=1.5), [[1.5, 1.5, 1.0], [2e-5, 2e-5, 1.0]]),
        (LossConfig(weight_level=WeightLevel.SEQUENCE_SUM, weight_bounds=(0.1, 3)), [[2.0, 2.0, 1.0], [0, 0, 1.0]]),
        (LossConfig(objective=Objective.COUPLED), [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]),
    ],
)
def test_behaviour_weights_are_limited_as_configured(config: LossConfig, expected: list[list[float]]) -> None:
    """Caps truncate, bounds and vetoes leave out; the last column is outside the mask."""
    proximal_BT = torch.tensor([[0.5, 4.0, 9.0], [2.0, 1e-5, 9.0]], dtype=torch.float64).log()
    mask_BT = torch.tensor([[True, True, False]] * 2)
    weights = behaviour_weights(proximal_BT, torch.zeros_like(proximal_BT), mask_BT, config=config)
    torch.testing.assert_close(weights.weights_BT, torch.tensor(expected, dtype=torch.float64))
    assert torch.equal(weights.rejected_BT, (weights.weights_BT == 0) & mask_BT)


def test_a_loose_cap_changes_nothing() -> None:
    """The robust preset is the faithful one as long as no weight reaches 2."""
    case = make_case(off_policy=0.05)
    assert case.loss(LossConfig.robust())[0].item() == case.loss(LossConfig.faithful())[0].item()


def test_rejected_tokens_still_count_in_the_denominator() -> None:
    """Leaving tokens out does not enlarge the step along the others."""
    case = make_case()
    loss, metrics = case.loss(LossConfig(weight_bounds=(0.5, 2.0)))
    kept = Case(
        case.current_BT, case.proximal_BT, case.behaviour_BT, case.advantages_B, case.mask_BT & ~metrics.rejected_BT
    )
    assert metrics.rejected_BT.any()
    expected = kept.loss(LossConfig.faithful(), float(case.mask_BT.sum()))[0]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)


def test_limits_on_weights_that_do_not_exist_are_refused() -> None:
    """A cap on an objective without weights would silently do nothing, so it is an error."""
    for objective in (Objective.PROXIMAL, Objective.COUPLED):
        with pytest.raises(ValueError, match="has no behaviour weights"):
            LossConfig(objective=objective, weight_cap=2.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"clip_low": 0.0},
        {"clip_low": 1.0},
        {"clip_high": -0.1},
        {"dual_clip": 1.0},
        {"weight_cap": 0.0},
        {"weight_bounds": (2.0, 1.0)},
        {"veto_below": 1.0},
        {"clip_high": math.nan},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    """The message names the setting and the value."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LossConfig(**wrong)  # type: ignore[arg-type]


def test_an_empty_mask_is_an_error_without_a_denominator_and_zero_with_one() -> None:
    """There is no mean of nothing; but a piece of a batch may be without tokens."""
    case = make_case()
    empty = Case(
        case.current_BT, case.proximal_BT, case.behaviour_BT, case.advantages_B, torch.zeros_like(case.mask_BT)
    )
    with pytest.raises(ValueError, match="selects no token"):
        empty.loss(LossConfig.faithful())
    assert empty.loss(LossConfig.faithful(), 10)[0].item() == 0
    with pytest.raises(ValueError, match="denominator"):
        empty.loss(LossConfig.faithful(), 0)


def test_shapes_that_disagree_are_refused() -> None:
    """A transposed or shortened argument is an error, not a broadcast."""
    case = make_case()
    with pytest.raises(ValueError, match="differs from response_mask_BT"):
        Case(case.current_BT[:, :1], case.proximal_BT, case.behaviour_BT, case.advantages_B, case.mask_BT).loss(PLAIN)
    with pytest.raises(ValueError, match="one number for each row"):
        Case(case.current_BT, case.proximal_BT, case.behaviour_BT, case.advantages_B[:, None], case.mask_BT).loss(PLAIN)
    with pytest.raises(ValueError, match="must be bool"):
        Case(case.current_BT, case.proximal_BT, case.behaviour_BT, case.advantages_B, case.mask_BT.long()).loss(PLAIN)


def test_kl_to_the_reference_is_zero_at_it_and_estimates_the_divergence_elsewhere() -> None:
    """k3 over the current policy's own samples tends to the KL divergence, and its pull is towards the reference."""
    current_V = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    reference_V = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    counts = (100 * current_V).long()
    tokens = torch.repeat_interleave(torch.arange(3), counts)[None]
    mask = torch.ones_like(tokens, dtype=torch.bool)
    estimate = kl_to_reference(current_V.log()[tokens], reference_V.log()[tokens], mask)
    assert estimate.item() == pytest.approx(float((current_V * (current_V / reference_V).log()).sum()), rel=1e-9)
    assert kl_to_reference(current_V.log()[tokens], current_V.log()[tokens], mask).item() == 0


def test_the_entropy_bonus_is_the_token_mean() -> None:
    """Masked tokens do not count, and a denominator makes pieces add up."""
    entropy_BT = torch.tensor([[1.0, 2.0, math.nan]])
    mask_BT = torch.tensor([[True, True, False]])
    assert entropy_bonus(entropy_BT, mask_BT).item() == 1.5
    assert entropy_bonus(entropy_BT, mask_BT, denominator=6).item() == 0.5
    assert token_mean(entropy_BT, mask_BT).item() == 1.5
