"""An update is the objective's gradient, however the batch is cut."""

import math
from copy import deepcopy
from typing import Any

import pytest
import torch

from groupreplay import GroupSource
from groupreplay.torch.collate import TrainingBatch, collate
from groupreplay_trainer.failures import NonFinite, NonFiniteError
from groupreplay_trainer.loss import LossConfig
from groupreplay_trainer.policy_model import TinyLMPolicy, TokenScores
from groupreplay_trainer.update import PolicyUpdater, UpdateSettings


def updater(model: TinyLMPolicy, **changes: Any) -> PolicyUpdater:
    """Return an updater with plain SGD, whose step is the gradient itself."""
    values: dict[str, Any] = {
        "loss": LossConfig.faithful(),
        "temperature": 1.0,
        "minibatches": 1,
        "tokens_at_once": 1000,
        "max_grad_norm": 1e9,
        "entropy_coefficient": 0.0,
    }
    parts = {name: changes.pop(name) for name in ("on_progress", "reference") if name in changes}
    settings = UpdateSettings(**(values | changes))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    generator = torch.Generator().manual_seed(0)
    return PolicyUpdater(model, optimizer, settings=settings, generator=generator, **parts)


@pytest.fixture
def batch(make_group, make_batch) -> TrainingBatch:  # type: ignore[no-untyped-def]
    """Return two fresh and two replayed groups."""
    sources = [GroupSource.FRESH, GroupSource.FRESH, GroupSource.REPLAY, GroupSource.REPLAY]
    groups = [make_group(f"g{i}", lengths=(2 + i, 3, 1 + i), source=source) for i, source in enumerate(sources)]
    return collate(make_batch(groups), pad_token_id=0)


def flat_weights(model: TinyLMPolicy) -> torch.Tensor:
    """Return all weights in one vector."""
    return torch.cat([tensor.reshape(-1).clone() for tensor in model.weights().values()])


def test_one_update_follows_the_weighted_policy_gradient(model: TinyLMPolicy, batch: TrainingBatch) -> None:
    """From the proximal policy, one step moves along 1/N sum w A grad log pi."""
    scores = model.score(batch.token_ids_BT, batch.attention_mask_BT, temperature=1.0)
    weights = (scores.logprobs_BT.detach() - batch.behaviour_logprobs_BT).exp()
    terms = weights * batch.advantages_B[:, None] * scores.logprobs_BT
    objective = terms[batch.response_mask_BT].sum() / batch.trained_tokens
    gradient = torch.cat([piece.reshape(-1) for piece in torch.autograd.grad(objective, model.parameters())])
    before = flat_weights(model)
    report = updater(model).update(batch)
    torch.testing.assert_close(flat_weights(model) - before, gradient, atol=1e-5, rtol=1e-4)
    assert report.grad_norms[0] == pytest.approx(gradient.norm().item(), rel=1e-4)
    torch.testing.assert_close(
        report.proximal.logprobs_BT[batch.response_mask_BT], scores.logprobs_BT.detach()[batch.response_mask_BT]
    )
    assert report.fresh.tokens + report.replay.tokens == batch.trained_tokens
    assert report.fresh.clipped_low + report.replay.clipped_high == 0


def test_gradient_accumulation_does_not_change_the_update(model: TinyLMPolicy, batch: TrainingBatch) -> None:
    """Forward passes of two rollouts at a time give the update of one pass."""
    start = {name: tensor.clone() for name, tensor in model.weights().items()}
    ends, losses = [], []
    for at_once in (None, 2):
        model.load_weights(start)
        losses.append(updater(model, max_rollouts_at_once=at_once, entropy_coefficient=0.01).update(batch).losses[0])
        ends.append(flat_weights(model))
    torch.testing.assert_close(ends[0], ends[1], atol=1e-6, rtol=1e-5)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_minibatch_losses_average_to_the_batch_token_mean(model: TinyLMPolicy, batch: TrainingBatch) -> None:
    """Every token of a batch has the same weight, whichever minibatch it is in."""
    whole = updater(model, max_grad_norm=1e-12).update(batch).losses
    pieces = updater(model, minibatches=4, max_grad_norm=1e-12).update(batch).losses
    assert len(pieces) == 4
    assert sum(pieces) / 4 == pytest.approx(whole[0], rel=1e-5)


class Steep(TinyLMPolicy):
    """Scores as it should, but with a gradient that is so many times larger."""

    factor = 1e300

    def score(self, token_ids_BT: torch.Tensor, *arguments: Any, **named: Any) -> TokenScores:  # noqa: N803
        scores = super().score(token_ids_BT, *arguments, **named)
        exact = scores.logprobs_BT.detach()
        return TokenScores(
            logprobs_BT=exact + (scores.logprobs_BT - exact).double().mul(self.factor).float(),
            entropy_BT=scores.entropy_BT,
        )


def test_a_gradient_that_is_not_finite_changes_no_weight(model: TinyLMPolicy, batch: TrainingBatch) -> None:
    """The update ends and says which gradient it was; where it is told to, it leaves that one out and counts it."""
    broken = Steep(model._model)
    before = flat_weights(model)
    with pytest.raises(NonFiniteError, match=r"the loss of update 1 of 2 is \S+, the norm of its gradient (inf|nan)"):
        updater(broken, minibatches=2).update(batch)
    assert torch.equal(flat_weights(model), before)
    report = updater(broken, minibatches=2, skip_nonfinite_updates=True).update(batch)
    assert (report.skipped, report.losses, report.grad_norms) == (2, (), ())
    assert torch.equal(flat_weights(model), before)


@pytest.mark.parametrize("skip", [True, False])
def test_a_policy_without_a_finite_log_probability_is_not_trained(
    model: TinyLMPolicy, batch: TrainingBatch, skip: bool
) -> None:
    """No update can be left out to mend it. The log probabilities come with the error."""
    model.parameters()[0].data[5, 0] = torch.inf
    with pytest.raises(NonFiniteError, match="tokens have no finite log probability") as caught:
        updater(model, skip_nonfinite_updates=skip).update(batch)
    assert caught.value.kind is NonFinite.LOGPROBS
    assert not torch.isfinite(caught.value.proximal_logprobs_BT[batch.response_mask_BT]).all()


@pytest.mark.parametrize("skip", [True, False])
def test_weights_that_an_update_made_infinite_are_noticed_at_once(
    model: TinyLMPolicy, batch: TrainingBatch, skip: bool
) -> None:
    """Loss and gradient of the last update were finite, and nothing else would look before they are published."""
    steep = Steep(model._model)
    steep.factor = 1e6
    broken = updater(steep, skip_nonfinite_updates=skip)
    broken._optimizer.param_groups[0]["lr"] = 3e38
    with pytest.raises(NonFiniteError, match="parameter tensors are not finite") as caught:
        broken.update(batch)
    assert caught.value.kind is NonFinite.WEIGHTS
    assert math.isinf(flat_weights(model).abs().max())


def test_progress_is_reported_before_every_forward_pass_and_may_end_the_update(
    model: TinyLMPolicy, batch: TrainingBatch
) -> None:
    """A trainer extends its lease and takes notice of a stop between passes."""
    calls: list[int] = []
    updater(model, max_rollouts_at_once=6, on_progress=lambda: calls.append(1)).update(batch)
    assert len(calls) == 4

    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        updater(model, on_progress=stop).update(batch)


def test_the_kl_to_the_reference_is_part_of_the_gradient(model: TinyLMPolicy, batch: TrainingBatch) -> None:
    """With a reference the step moves along the policy gradient less the gradient of the k3 estimate."""
    reference = perturbed(model)
    scores = model.score(batch.token_ids_BT, batch.attention_mask_BT, temperature=1.0)
    with torch.no_grad():
        anchor = reference.score(batch.token_ids_BT, batch.attention_mask_BT, temperature=1.0).logprobs_BT
    difference = (anchor - scores.logprobs_BT)[batch.response_mask_BT]
    kl = (difference.exp() - 1 - difference).mean()
    assert kl > 1e-3
    kl_gradient = torch.cat([piece.reshape(-1) for piece in torch.autograd.grad(kl, model.parameters())])
    start = {name: tensor.clone() for name, tensor in model.weights().items()}
    ends = []
    for changes in ({}, {"kl_coefficient": 0.5, "reference": reference, "tokens_at_once": 14}):
        model.load_weights(start)
        report = updater(model, **changes).update(batch)
        ends.append(flat_weights(model))
    torch.testing.assert_close(ends[1] - ends[0], -0.5 * kl_gradient, atol=1e-5, rtol=1e-4)
    assert report.reference_kl == pytest.approx(kl.item(), rel=1e-5)


def perturbed(model: TinyLMPolicy) -> TinyLMPolicy:
    """Return a frozen copy of a model, its weights a little off."""
    copy = TinyLMPolicy(deepcopy(model._model))
    generator = torch.Generator().manual_seed(3)
    for parameter in copy.parameters():
        parameter.requires_grad_(False).add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return copy


@pytest.mark.parametrize("changes", [{"kl_coefficient": 0.1}, {"reference": None, "kl_coefficient": 1.0}], ids=str)
def test_a_kl_coefficient_without_a_reference_is_refused(model: TinyLMPolicy, changes: dict[str, Any]) -> None:
    """It would be a setting that does nothing; so would a reference without a coefficient."""
    with pytest.raises(ValueError, match="go together"):
        updater(model, **changes)
    with pytest.raises(ValueError, match="go together"):
        updater(model, reference=model)


def test_a_batch_without_trained_tokens_is_refused(make_group, make_batch, model: TinyLMPolicy) -> None:  # type: ignore[no-untyped-def]
    """There is no mean over no token."""
    masked = collate(make_batch([make_group(loss_mask=[False] * 9)]), pad_token_id=0)
    with pytest.raises(ValueError, match="nothing to train on"):
        updater(model).update(masked)
