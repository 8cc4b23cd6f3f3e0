"""One policy update: proximal log probabilities once, then AdamW over minibatches.

Shape legend: B rollouts of the batch, N of a minibatch, T tokens.
"""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Final

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from groupreplay.torch.collate import MinibatchUnit, TrainingBatch, split_microbatches, split_minibatches
from groupreplay_trainer.diagnostics import TokenTally
from groupreplay_trainer.failures import NonFinite, NonFiniteError
from groupreplay_trainer.loss import LossConfig, decoupled_loss, entropy_bonus, kl_to_reference
from groupreplay_trainer.policy_model import PolicyModel, TokenScores
from groupreplay_trainer.ranks import Ranks, own_part, split_shares, whole_norm

_ALONE: Final = Ranks()
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
    tokens_at_once: int
    """Tokens in one forward pass, padding included; gradients of a minibatch add up over several."""
    max_rollouts_at_once: int | None = None
    """Rollouts in one forward pass; None = any number."""
    max_grad_norm: float
    entropy_coefficient: float
    kl_coefficient: float = 0.0
    """Weight of the KL to the reference policy."""
    skip_nonfinite_updates: bool = False
    """Leave out an update whose loss or gradient is not finite, and go on with the next, rather than raise."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UpdateReport:
    """What an update did. Losses and norms: one for each optimizer update made."""

    proximal: TokenScores
    """Of the trained tokens of the batch, under the weights before the update."""
    losses: tuple[float, ...]
    grad_norms: tuple[float, ...]
    """Before clipping."""
    skipped: int
    """Updates left out because their loss or gradient was not finite."""
    fresh: TokenTally
    replay: TokenTally
    reference_kl: float | None = None
    """Token-mean k3 estimate of KL(proximal || reference), nats; None without a reference."""


class PolicyUpdater:
    """Updates a model on batches."""

    def __init__(
        self,
        model: PolicyModel,
        optimizer: Optimizer,
        *,
        settings: UpdateSettings,
        generator: torch.Generator,
        reference: PolicyModel | None = None,
        ranks: Ranks = _ALONE,
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        """Wrap a model and its optimizer.

        Args:
            model, optimizer: changed in place.
            settings: see UpdateSettings.
            generator: shuffles the minibatches.
            reference: the policy that `kl_coefficient` keeps the model near; not changed.
            ranks: who shares the work. All must make the same calls with the same batch, and get the same report.
            on_progress: called before every forward pass; what it raises ends the update, with the model half-updated.

        Raises:
            ValueError: a reference without a coefficient, or the other way round.
        """
        if (reference is None) != (settings.kl_coefficient == 0):
            raise ValueError(
                f"kl_coefficient {settings.kl_coefficient} and a reference policy go together: give both or neither"
            )
        self._model = model
        self._optimizer = optimizer
        self._settings = settings
        self._generator = generator
        self._reference = reference
        self._ranks = ranks
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
        proximal = self._scores(self._model, batch)
        _check_logprobs(proximal.logprobs_BT, batch.response_mask_BT)
        reference = None if self._reference is None else self._scores(self._reference, batch).logprobs_BT
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
                reference_logprobs_BT=reference,
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
            fresh=self._total(fresh),
            replay=self._total(replay),
            reference_kl=_token_mean_kl(batch, proximal.logprobs_BT, reference),
        )

    @torch.no_grad()
    def _scores(self, model: PolicyModel, batch: TrainingBatch) -> TokenScores:
        """Return a model's scores of the trained tokens of the batch under the weights as they are; 0 elsewhere."""
        logprobs_BT = torch.zeros_like(batch.behaviour_logprobs_BT)
        entropy_BT = torch.zeros_like(logprobs_BT)
        for rows_N in self._microbatches(batch, torch.arange(len(batch))):
            if not len(rows_N):
                self._score(model, _shortest(batch))
                continue
            piece = batch.select(rows_N)
            with _noting(piece):
                scores = self._score(model, piece)
            width = piece.token_ids_BT.shape[1]
            logprobs_BT[rows_N, :width] = scores.logprobs_BT.masked_fill(~piece.response_mask_BT, 0.0)
            entropy_BT[rows_N, :width] = scores.entropy_BT.masked_fill(~piece.response_mask_BT, 0.0)
        return TokenScores(logprobs_BT=self._ranks.sum(logprobs_BT), entropy_BT=self._ranks.sum(entropy_BT))

    def _accumulate(
        self,
        batch: TrainingBatch,
        minibatch_N: Tensor,
        *,
        proximal_logprobs_BT: Tensor,
        reference_logprobs_BT: Tensor | None,
        denominator: float,
        fresh: TokenTally,
        replay: TokenTally,
    ) -> float:
        """Add the gradient of one minibatch to the parameters' and return its loss."""
        total = 0.0
        for rows_N in self._microbatches(batch, minibatch_N):
            if not len(rows_N):
                nothing = 0.0 * self._score(self._model, _shortest(batch)).logprobs_BT.sum()
                nothing.backward()  # type: ignore[no-untyped-call]
                continue
            piece = batch.select(rows_N)
            width = piece.token_ids_BT.shape[1]
            with _noting(piece):
                scores = self._score(self._model, piece)
                loss, metrics = decoupled_loss(
                    scores.logprobs_BT,
                    proximal_logprobs_BT[rows_N, :width],
                    piece.behaviour_logprobs_BT,
                    piece.advantages_B,
                    piece.response_mask_BT,
                    config=self._settings.loss,
                    denominator=denominator,
                )
                if reference_logprobs_BT is not None:
                    reference_NT = reference_logprobs_BT[rows_N, :width]
                    loss = loss + self._kl_penalty(scores, reference_NT, piece, denominator=denominator)
                loss = loss - self._entropy_bonus(scores, piece, denominator=denominator)
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
            fresh.add(metrics, ~piece.is_replay_B)
            replay.add(metrics, piece.is_replay_B)
        return self._ranks.sum(torch.tensor(total, dtype=torch.float64)).item()

    def _kl_penalty(
        self, scores: TokenScores, reference_NT: Tensor, piece: TrainingBatch, *, denominator: float
    ) -> Tensor:
        kl = kl_to_reference(scores.logprobs_BT, reference_NT, piece.response_mask_BT, denominator=denominator)
        return self._settings.kl_coefficient * kl

    def _entropy_bonus(self, scores: TokenScores, piece: TrainingBatch, *, denominator: float) -> Tensor | float:
        coefficient = self._settings.entropy_coefficient
        if not coefficient:
            return 0.0
        return coefficient * entropy_bonus(scores.entropy_BT, piece.response_mask_BT, denominator=denominator)

    def _apply_gradient(self, loss: float) -> float:
        """Make one optimizer update, unless loss or gradient is not finite; return the norm before clipping."""
        norm = whole_norm(clip_grad_norm_(self._model.parameters(), self._settings.max_grad_norm))
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
        parameters = self._model.parameters()
        flags = torch.tensor([not bool(torch.isfinite(own_part(parameter)).all()) for parameter in parameters]).int()
        broken = int((self._ranks.sum(flags) > 0).sum())
        if broken:
            what = f"after the step {broken} of {len(parameters)} parameter tensors are not finite"
            raise NonFiniteError(NonFinite.WEIGHTS, what, proximal_logprobs_BT=proximal_logprobs_BT)

    def _score(self, model: PolicyModel, piece: TrainingBatch) -> TokenScores:
        self._on_progress()
        images_BHWC = piece.row_images()
        seen = {} if images_BHWC is None else {"images_BHWC": images_BHWC}
        return model.score(
            piece.token_ids_BT,
            piece.attention_mask_BT,
            piece.response_mask_BT,
            temperature=self._settings.temperature,
            **seen,
        )

    def _microbatches(self, batch: TrainingBatch, rows_N: Tensor) -> list[Tensor]:
        """Return this rank's share of the rows in pieces, as many as any rank has; what it has less is empty."""
        shares = [
            split_microbatches(
                share_N,
                batch.lengths_B,
                tokens_at_once=self._settings.tokens_at_once,
                packed=self._model.packs,
                max_rollouts=self._settings.max_rollouts_at_once,
            )
            for share_N in split_shares(rows_N, batch.lengths_B, count=self._ranks.size)
        ]
        own, most = shares[self._ranks.rank], max(len(share) for share in shares)
        # Divided weights are gathered by all ranks together, so that each must make as many passes as the others.
        return own + [rows_N[:0]] * (most - len(own))

    def _total(self, tally: TokenTally) -> TokenTally:
        counts = asdict(tally)
        totals = self._ranks.sum(torch.tensor(list(counts.values()))).tolist()
        return TokenTally(**dict(zip(counts, totals, strict=True)))


def _shortest(batch: TrainingBatch) -> TrainingBatch:
    """Return one row, all of whose tokens are scored, for a pass that does nothing but keep step."""
    piece = batch.select(batch.lengths_B.argmin()[None])
    return replace(piece, response_mask_BT=piece.attention_mask_BT)


@contextmanager
def _noting(piece: TrainingBatch) -> Iterator[None]:
    """Add to errors, which may be about memory, what was computed."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        rollouts, width = piece.token_ids_BT.shape
        error.add_note(f"in a pass over {rollouts} rollouts of up to {width} tokens")
        raise


def _token_mean_kl(batch: TrainingBatch, proximal_BT: Tensor, reference_BT: Tensor | None) -> float | None:
    if reference_BT is None:
        return None
    return kl_to_reference(proximal_BT, reference_BT, batch.response_mask_BT).item()


def _check_logprobs(proximal_logprobs_BT: Tensor, response_mask_BT: Tensor) -> None:
    trained_N = proximal_logprobs_BT[response_mask_BT]
    broken = int((~torch.isfinite(trained_N)).sum())
    if broken:
        what = f"{broken} of {len(trained_N)} tokens have no finite log probability under the policy before the step"
        raise NonFiniteError(NonFinite.LOGPROBS, what, proximal_logprobs_BT=proximal_logprobs_BT)
