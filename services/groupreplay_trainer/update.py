"""One policy update: proximal log probabilities once, then AdamW over minibatches.

Shape legend: B rollouts of the batch, N of a minibatch, T tokens.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from groupreplay.torch.collate import MinibatchUnit, TrainingBatch, split_microbatches, split_minibatches
from groupreplay_trainer.diagnostics import TokenTally
from groupreplay_trainer.failures import NonFinite, NonFiniteError
from groupreplay_trainer.loss import LossConfig, decoupled_loss, entropy_bonus
from groupreplay_trainer.policy_model import PolicyModel, TokenScores

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateSettings:
    """How a batch becomes updates."""

    loss: LossConfig
    temperature: float
    """The one that the responses were sampled at, > 0."""
    minibatches: int
    """Optimizer updates for each batch."""
    minibatch_unit: MinibatchUnit = MinibatchUnit.GROUP
    max_rollouts_at_once: int
    """Rollouts in one forward pass; gradients of a minibatch add up over several."""
    max_grad_norm: float
    entropy_coefficient: float
    skip_nonfinite_updates: bool = False
    """Leave out an update whose loss or gradient is not finite, and go on with the next, rather than raise."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UpdateReport:
    """What an update did. Losses and norms: one for each optimizer update made."""

    proximal: TokenScores
    """Of the whole batch, under the weights before the update."""
    losses: tuple[float, ...]
    grad_norms: tuple[float, ...]
    """Before clipping."""
    skipped: int
    """Updates left out because their loss or gradient was not finite."""
    fresh: TokenTally
    replay: TokenTally


class PolicyUpdater:
    """Updates a model on batches."""

    def __init__(
        self,
        model: PolicyModel,
        optimizer: Optimizer,
        *,
        settings: UpdateSettings,
        generator: torch.Generator,
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        """Wrap a model and its optimizer.

        Args:
            model, optimizer: changed in place.
            settings: see UpdateSettings.
            generator: shuffles the minibatches.
            on_progress: called before every forward pass; what it raises ends the update, with the model half-updated.
        """
        self._model = model
        self._optimizer = optimizer
        self._settings = settings
        self._generator = generator
        self._on_progress = on_progress

    def update(self, batch: TrainingBatch) -> UpdateReport:
        """Train on a batch once, in `minibatches` updates.

        Every token of the batch has the same weight: a minibatch's loss is its sum over tokens, divided by the
        batch's tokens per minibatch, so that the mean of the minibatch losses is the token mean of the batch.

        Raises:
            ValueError: no token of the batch is to be trained on.
            NonFiniteError: a log probability, loss, gradient or weight is not finite; the model may be half-updated.
        """
        if not batch.trained_tokens:
            raise ValueError("the loss masks leave out every token of the batch; there is nothing to train on")
        proximal = self._proximal_scores(batch)
        _check_logprobs(proximal.logprobs_BT, batch.response_mask_BT)
        minibatches = split_minibatches(
            batch.group_index_B,
            count=self._settings.minibatches,
            generator=self._generator,
            unit=self._settings.minibatch_unit,
        )
        denominator = batch.trained_tokens / len(minibatches)
        fresh, replay = TokenTally(), TokenTally()
        losses, grad_norms = [], []
        for number, minibatch_N in enumerate(minibatches, 1):
            loss = self._accumulate(
                batch,
                minibatch_N,
                proximal_logprobs_BT=proximal.logprobs_BT,
                denominator=denominator,
                fresh=fresh,
                replay=replay,
            )
            grad_norm = self._apply_gradient(loss)
            if math.isfinite(loss) and math.isfinite(grad_norm):
                losses.append(loss)
                grad_norms.append(grad_norm)
            else:
                self._leave_out(f"update {number} of {len(minibatches)}", loss, grad_norm, proximal.logprobs_BT)
        self._check_weights(proximal.logprobs_BT)
        return UpdateReport(
            proximal=proximal,
            losses=tuple(losses),
            grad_norms=tuple(grad_norms),
            skipped=len(minibatches) - len(grad_norms),
            fresh=fresh,
            replay=replay,
        )

    @torch.no_grad()
    def _proximal_scores(self, batch: TrainingBatch) -> TokenScores:
        """Return the scores of the whole batch under the weights as they are; 0 at padding."""
        logprobs_BT = torch.zeros_like(batch.behaviour_logprobs_BT)
        entropy_BT = torch.zeros_like(logprobs_BT)
        for rows_N in self._microbatches(batch, torch.arange(len(batch))):
            piece = batch.select(rows_N)
            scores = self._score(piece)
            width = piece.token_ids_BT.shape[1]
            logprobs_BT[rows_N, :width] = scores.logprobs_BT.masked_fill(~piece.attention_mask_BT, 0.0)
            entropy_BT[rows_N, :width] = scores.entropy_BT.masked_fill(~piece.attention_mask_BT, 0.0)
        return TokenScores(logprobs_BT=logprobs_BT, entropy_BT=entropy_BT)

    def _accumulate(
        self,
        batch: TrainingBatch,
        minibatch_N: Tensor,
        *,
        proximal_logprobs_BT: Tensor,
        denominator: float,
        fresh: TokenTally,
        replay: TokenTally,
    ) -> float:
        """Add the gradient of one minibatch to the parameters' and return its loss."""
        total = 0.0
        for rows_N in self._microbatches(batch, minibatch_N):
            piece = batch.select(rows_N)
            scores = self._score(piece)
            mask_NT = piece.response_mask_BT
            loss, metrics = decoupled_loss(
                scores.logprobs_BT,
                proximal_logprobs_BT[rows_N, : mask_NT.shape[1]],
                piece.behaviour_logprobs_BT,
                piece.advantages_B,
                mask_NT,
                config=self._settings.loss,
                denominator=denominator,
            )
            if self._settings.entropy_coefficient:
                bonus = entropy_bonus(scores.entropy_BT, mask_NT, denominator=denominator)
                loss = loss - self._settings.entropy_coefficient * bonus
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
            fresh.add(metrics, ~piece.is_replay_B)
            replay.add(metrics, piece.is_replay_B)
        return total

    def _apply_gradient(self, loss: float) -> float:
        """Make one optimizer update, unless loss or gradient is not finite; return the norm before clipping."""
        norm = clip_grad_norm_(self._model.parameters(), self._settings.max_grad_norm).item()
        if math.isfinite(loss) and math.isfinite(norm):
            self._optimizer.step()
        self._optimizer.zero_grad()
        return norm

    def _leave_out(self, which: str, loss: float, grad_norm: float, proximal_logprobs_BT: Tensor) -> None:
        """Log an update that was not made, or raise NonFiniteError."""
        what = f"the loss of {which} is {loss}, the norm of its gradient {grad_norm}"
        if not self._settings.skip_nonfinite_updates:
            kind = NonFinite.GRADIENT if math.isfinite(loss) else NonFinite.LOSS
            raise NonFiniteError(kind, what, proximal_logprobs_BT=proximal_logprobs_BT)
        _log.error("left out an update: %s", what)

    def _check_weights(self, proximal_logprobs_BT: Tensor) -> None:
        """Raise NonFiniteError if an update from a finite gradient has made weights that are not."""
        broken = sum(not bool(torch.isfinite(parameter).all()) for parameter in self._model.parameters())
        if broken:
            what = f"after the step {broken} of {len(self._model.parameters())} parameter tensors are not finite"
            raise NonFiniteError(NonFinite.WEIGHTS, what, proximal_logprobs_BT=proximal_logprobs_BT)

    def _score(self, piece: TrainingBatch) -> TokenScores:
        self._on_progress()
        images_BHWC = piece.row_images()
        seen = {} if images_BHWC is None else {"images_BHWC": images_BHWC}
        return self._model.score(
            piece.token_ids_BT, piece.attention_mask_BT, temperature=self._settings.temperature, **seen
        )

    def _microbatches(self, batch: TrainingBatch, rows_N: Tensor) -> list[Tensor]:
        return split_microbatches(rows_N, batch.lengths_B, max_rollouts=self._settings.max_rollouts_at_once)


def _check_logprobs(proximal_logprobs_BT: Tensor, response_mask_BT: Tensor) -> None:
    trained_N = proximal_logprobs_BT[response_mask_BT]
    broken = int((~torch.isfinite(trained_N)).sum())
    if broken:
        what = f"{broken} of {len(trained_N)} tokens have no finite log probability under the policy before the step"
        raise NonFiniteError(NonFinite.LOGPROBS, what, proximal_logprobs_BT=proximal_logprobs_BT)
