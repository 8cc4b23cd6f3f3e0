"""What ends a training step without an update: numbers that are not finite, and too little memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from groupreplay import Batch
from groupreplay_trainer.sections import MemorySettings

MAX_REJECTED_IN_A_ROW: Final = 3
"""After so many it is the policy that is broken, not the batch."""


class NonFinite(StrEnum):
    """What was not finite."""

    LOGPROBS = "logprobs"
    LOSS = "loss"
    GRADIENT = "gradient"
    WEIGHTS = "weights"


_CAUSES: Final = {
    NonFinite.LOGPROBS: "the policy was broken before this step, or it cannot score a token of the batch: check the "
    "model, and that generators use its tokenizer",
    NonFinite.LOSS: "an update of this step broke the policy, or rewards are absurdly large: lower optimizer.lr, look "
    "at the rewards and advantages",
    NonFinite.GRADIENT: "tokens of vanishing probability, or weights without a cap: lower optimizer.lr, or limit the "
    "weights with preset robust",
    NonFinite.WEIGHTS: "the update was too large for the number format: lower optimizer.lr",
}


class NonFiniteError(ArithmeticError):
    """An update met a number that is not finite; the model may be half-updated."""

    def __init__(self, kind: NonFinite, what: str, *, proximal_logprobs_BT: Tensor) -> None:
        """Say what it was.

        Args:
            kind: where it was met first.
            what: the same in words, with the value.
            proximal_logprobs_BT: of the batch, as far as they are finite or not.
        """
        super().__init__(what)
        self.kind = kind
        self.proximal_logprobs_BT = proximal_logprobs_BT

    @property
    def causes(self) -> str:
        """What usually leads to this, and what to change."""
        return _CAUSES[self.kind]


class RejectedStepError(RuntimeError):
    """A step was undone because of numbers that are not finite, and the trainer does not go past it."""

    def __init__(self, step: int, error: NonFiniteError, *, report: Path, in_a_row: int) -> None:
        """Say what happened, where the batch is, and what to do."""
        way_on = (
            f"{in_a_row} steps in a row were rejected"
            if in_a_row > 1
            else "start again after the change, or leave such steps out with --on-nonfinite skip-step"
        )
        super().__init__(
            f"step {step} was undone: {error}. Likely: {error.causes}. Its batch is described in {report}; {way_on}"
        )


class TrainingMemoryError(RuntimeError):
    """A step does not fit into memory."""


@contextmanager
def explaining_memory(batch: Batch, settings: MemorySettings) -> Iterator[None]:
    """Turn what torch and numpy say of memory into what to do about it.

    Raises:
        TrainingMemoryError: the step did not fit into memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_about_memory(error):
            raise
        lengths = [
            len(item.group.prompt_token_ids) + int(length)
            for item in batch.groups
            for length in item.group.response_lengths
        ]
        said = ", ".join([f"{type(error).__name__} {error}".splitlines()[0].strip(), *getattr(error, "__notes__", ())])
        raise TrainingMemoryError(
            f"a batch of {len(batch.groups)} groups, {len(lengths)} rollouts of up to {max(lengths, default=0)} and "
            f"together {sum(lengths)} tokens, does not fit into memory. Lower memory.tokens_at_once "
            f"({settings.tokens_at_once}), turn on memory.activation_checkpointing "
            f"({str(settings.activation_checkpointing).lower()}), lower batch_size, or the length of responses at the "
            f"generator ({said})"
        ) from error


def _is_about_memory(error: RuntimeError | MemoryError) -> bool:
    # The CPU's allocator has no exception of its own.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)
