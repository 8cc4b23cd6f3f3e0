"""The seam between training and the model being trained.

The loop, the loss and the checkpoints know a model by this protocol alone.

Shape legend: B rows, T tokens, V vocabulary.
"""
# ruff: noqa: N815 - tensor shapes as suffixes

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from torch import Tensor, nn

from groupreplay_tinylm import CharTokenizer, TinyLM, builtin_checkpoint, load_checkpoint, save_checkpoint

BUILTIN: Final = "builtin:"
"""Prefix of a model that comes with this package: builtin:addition."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenScores:
    """What a policy says of the tokens of a batch.

    Attributes:
        logprobs_BT: float32, natural log of the probability of token_ids_BT[b, t] given the tokens before it; column
            0, which nothing precedes, is 0. What stands at padding means nothing.
        entropy_BT: float32, nats, of the distribution that token was drawn from.
    """

    logprobs_BT: Tensor
    entropy_BT: Tensor


class PolicyModel(Protocol):
    """A causal language model in training: no dropout, so that the same weights give the same log probabilities."""

    @property
    def pad_token_id(self) -> int:
        """What a row is padded with."""

    @property
    def max_tokens(self) -> int | None:
        """How long prompt and response may be together; None = any length."""

    def score(
        self,
        token_ids_BT: Tensor,
        attention_mask_BT: Tensor,
        *,
        temperature: float,
        images_BHWC: Tensor | None = None,
    ) -> TokenScores:
        """Return the log probability of every token, and the entropy it was drawn with, both with gradient.

        Args:
            token_ids_BT: int64, right-padded.
            attention_mask_BT: bool, false at padding.
            temperature: the logits are divided by it; the one that the tokens were sampled at, > 0.
            images_BHWC: uint8, what stands before the tokens of each row; only a model that sees takes them.

        Raises:
            ValueError: the model sees no images, or not of this shape, or needs them and there are none.
        """

    def parameters(self) -> list[nn.Parameter]:
        """Return the trained parameters, always in the same order."""

    def weights(self) -> dict[str, Tensor]:
        """Return all weights by name, not copied."""

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take over weights that `weights` returned earlier.

        Raises:
            ValueError: names or shapes do not fit this model.
        """

    def save(self, path: Path) -> None:
        """Write the weights for inference engines to read; a reader sees the old file or the whole new one."""


class TinyLMPolicy:
    """A TinyLM as a PolicyModel."""

    def __init__(self, model: TinyLM) -> None:
        """Train `model`, which is left in evaluation mode: TinyLM has no layer that training mode would change."""
        self._model = model.eval()

    @property
    def pad_token_id(self) -> int:
        """PAD of the character tokenizer."""
        return CharTokenizer.pad_id

    @property
    def max_tokens(self) -> int | None:
        """The number of positions, less those of an image."""
        return self._model.config.max_text_tokens

    def score(
        self,
        token_ids_BT: Tensor,
        attention_mask_BT: Tensor,
        *,
        temperature: float,
        images_BHWC: Tensor | None = None,
    ) -> TokenScores:
        """Return log probabilities and entropies; see `PolicyModel.score`.

        The attention mask is not needed: in a right-padded batch no real token looks at padding.
        """
        logits_BTV = self._model(token_ids_BT[:, :-1], images_BHWC=images_BHWC)
        return score_tokens(logits_BTV, token_ids_BT, temperature=temperature)

    def parameters(self) -> list[nn.Parameter]:
        """Return the trained parameters, always in the same order."""
        return list(self._model.parameters())

    def weights(self) -> dict[str, Tensor]:
        """Return all weights by name, not copied."""
        return dict(self._model.state_dict())

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take over weights; ValueError if they do not fit."""
        try:
            self._model.load_state_dict(dict(weights))
        except RuntimeError as error:
            raise ValueError(f"the weights do not fit a TinyLM of {self._model.config}: {error}") from error

    def save(self, path: Path) -> None:
        """Write a TinyLM checkpoint."""
        save_checkpoint(path, self._model)


def score_tokens(logits_BTV: Tensor, token_ids_BT: Tensor, *, temperature: float) -> TokenScores:
    """Return the scores of tokens from the logits that predict them.

    Args:
        logits_BTV: one column fewer than token_ids_BT: logits_BTV[:, t] predicts token_ids_BT[:, t + 1]. Finite.
        token_ids_BT: int64.
        temperature: > 0.

    Raises:
        ValueError: the temperature is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} must be above 0: a greedy response has no probability to train on")
    all_logprobs_BTV = (logits_BTV / temperature).log_softmax(dim=-1)
    logprobs_BT = all_logprobs_BTV.gather(-1, token_ids_BT[:, 1:, None]).squeeze(-1)
    entropy_BT = -(all_logprobs_BTV.exp() * all_logprobs_BTV).sum(dim=-1)
    pad_first_column = (1, 0)
    return TokenScores(
        logprobs_BT=nn.functional.pad(logprobs_BT, pad_first_column),
        entropy_BT=nn.functional.pad(entropy_BT, pad_first_column),
    )


def load_policy_model(name: str) -> PolicyModel:
    """Return the model to start from: `builtin:<task>`, or the path of a TinyLM checkpoint.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a model that can be trained here, or no model of that name comes with this package.
    """
    path = builtin_checkpoint(name.removeprefix(BUILTIN)) if name.startswith(BUILTIN) else Path(name)
    return TinyLMPolicy(load_checkpoint(path))
