"""The seam between training and the model being trained.

The loop, the loss and the checkpoints know a model by this protocol alone. `load_policy_model` tells by its name which
kind a model is: a TinyLM, or a causal language model of Hugging Face (`hf_policy`).

Shape legend: B rows, T tokens, V vocabulary.
"""
# ruff: noqa: N815 - tensor shapes as suffixes

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import torch
from torch import Tensor, nn

from groupreplay_tinylm import CharTokenizer, TinyLM, builtin_checkpoint, load_checkpoint, save_checkpoint
from groupreplay_trainer.ranks import Ranks, divide, divided_like

BUILTIN: Final = "builtin:"
"""Prefix of a model that comes with this package: builtin:addition."""


Packing = Literal["padded", "packed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """How a model is computed. A TinyLM is computed in float32 on the CPU, and takes `packing` padded only.

    Raises:
        ValueError: a word is not one of those listed.
    """

    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """What the model is computed and published in. The weights in training are float32, and so is log-softmax."""
    device: str = "auto"
    """Where, in torch's words: cpu, cuda, cuda:1. auto: a CUDA device where there is one."""
    attention: str = "sdpa"
    """Attention implementation, in the words of transformers: sdpa, eager, flash_attention_2."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass, layer by layer: less memory for about a third more time."""
    packing: Packing = "padded"
    """padded: each rollout is a row as wide as the longest; packed: all rollouts of a forward pass in one row."""

    def __post_init__(self) -> None:
        """Check the words."""
        for name, words in (("dtype", ("bfloat16", "float32")), ("packing", ("padded", "packed"))):
            if getattr(self, name) not in words:
                raise ValueError(f"{name} {getattr(self, name)!r} is none of {', '.join(words)}")


_DEFAULT_OPTIONS: Final = ModelOptions()
_ALONE: Final = Ranks()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenScores:
    """What a policy says of the tokens of a batch.

    Attributes:
        logprobs_BT: float32, natural log of the probability of token_ids_BT[b, t] given the tokens before it; column
            0, which nothing precedes, is 0. What stands at padding, or outside the tokens that were asked for, means
            nothing.
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

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""

    @property
    def packs(self) -> bool:
        """Whether a forward pass computes real tokens alone, rather than rows as wide as the longest of them."""

    @property
    def published_suffix(self) -> str:
        """How the name of published weights ends: that of a file has an ending, that of a folder has none."""

    def score(
        self,
        token_ids_BT: Tensor,
        attention_mask_BT: Tensor,
        scored_mask_BT: Tensor | None = None,
        *,
        temperature: float,
        images_BHWC: Tensor | None = None,
    ) -> TokenScores:
        """Return the log probability of tokens, and the entropy each was drawn with, both with gradient.

        Args:
            token_ids_BT: int64, right-padded, on the CPU, as the result is.
            attention_mask_BT: bool, false at padding.
            scored_mask_BT: bool, the tokens that are asked for, within the attention mask; None = all of it. A model of
                a large vocabulary saves time and memory on the others.
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
        """Take over weights that `weights` returned earlier; whole ones where the model is divided among ranks.

        Raises:
            ValueError: names or shapes do not fit this model.
        """

    def save(self, path: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write weights for inference engines to read, a file or a folder; a reader never sees half of them.

        Args:
            path: replaced if it exists.
            weights: as `weights` returns them, whole; None = the model's own, which are not divided.
        """


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

    @property
    def vocab_size(self) -> int:
        """That of the character tokenizer."""
        return self._model.config.vocab_size

    @property
    def packs(self) -> bool:
        """Never: its rollouts are tens of tokens long, and padding costs little."""
        return False

    @property
    def published_suffix(self) -> str:
        """One file."""
        return ".safetensors"

    def score(
        self,
        token_ids_BT: Tensor,
        attention_mask_BT: Tensor,
        scored_mask_BT: Tensor | None = None,
        *,
        temperature: float,
        images_BHWC: Tensor | None = None,
    ) -> TokenScores:
        """Return log probabilities and entropies of all tokens; see `PolicyModel.score`.

        The masks are not needed: in a right-padded batch no real token looks at padding, and the vocabulary is small.
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
        own = self._model.state_dict()
        whole = {name: divided_like(own[name], tensor) if name in own else tensor for name, tensor in weights.items()}
        try:
            self._model.load_state_dict(whole)
        except RuntimeError as error:
            raise ValueError(f"the weights do not fit a TinyLM of {self._model.config}: {error}") from error

    def save(self, path: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write a TinyLM checkpoint."""
        if weights is None:
            save_checkpoint(path, self._model)
            return
        whole = TinyLM(self._model.config)
        whole.load_state_dict(dict(weights))
        save_checkpoint(path, whole)


def score_tokens(logits_BTV: Tensor, token_ids_BT: Tensor, *, temperature: float) -> TokenScores:
    """Return the scores of tokens from the logits that predict them.

    Args:
        logits_BTV: one column fewer than token_ids_BT: logits_BTV[:, t] predicts token_ids_BT[:, t + 1]. Finite.
        token_ids_BT: int64.
        temperature: > 0.

    Raises:
        ValueError: the temperature is not above 0.
    """
    logprobs_BT, entropy_BT = score_next_tokens(logits_BTV, token_ids_BT[:, 1:], temperature=temperature)
    pad_first_column = (1, 0)
    return TokenScores(
        logprobs_BT=nn.functional.pad(logprobs_BT, pad_first_column),
        entropy_BT=nn.functional.pad(entropy_BT, pad_first_column),
    )


def score_next_tokens(logits_V: Tensor, next_ids: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the log probability of each next token, and the entropy it was drawn with; both float32.

    Args:
        logits_V: finite; one dimension more than next_ids, the vocabulary, which is the last.
        next_ids: int64, the token that each column of logits predicts.
        temperature: > 0.

    Raises:
        ValueError: the temperature is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} must be above 0: a greedy response has no probability to train on")
    logprobs, entropy = _NextTokenScores.apply(logits_V, next_ids, temperature)  # type: ignore[no-untyped-call]
    return logprobs, entropy


class _NextTokenScores(torch.autograd.Function):
    """Log probability and entropy with a gradient of their own, which keeps nothing as large as the logits but them.

    What torch would derive keeps several times as much, and, where the entropy has no part in the loss, until the end.
    """

    @staticmethod
    def forward(ctx: Any, logits_V: Tensor, next_ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        all_logprobs_V = _logprobs(logits_V, temperature)
        logprobs = all_logprobs_V.gather(-1, next_ids[..., None]).squeeze(-1)
        entropy = all_logprobs_V.exp().mul_(all_logprobs_V).sum(dim=-1).neg_()
        ctx.save_for_backward(logits_V, next_ids, entropy)
        ctx.temperature = temperature
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        # With z the logits over the temperature and p their softmax:
        # d logprob[y] / dz[i] = (i == y) - p[i], and d entropy / dz[i] = -p[i] (log p[i] + entropy).
        of_logprobs, of_entropy = gradients
        logits_V, next_ids, entropy = ctx.saved_tensors
        gradient_V = _logprobs(logits_V, ctx.temperature)
        probabilities_V = gradient_V.exp()
        gradient_V.add_(entropy[..., None]).mul_(of_entropy[..., None]).add_(of_logprobs[..., None])
        gradient_V.mul_(probabilities_V).neg_()
        gradient_V.scatter_add_(-1, next_ids[..., None], of_logprobs[..., None]).div_(ctx.temperature)
        return gradient_V.to(logits_V.dtype), None, None


def _logprobs(logits_V: Tensor, temperature: float) -> Tensor:
    return (logits_V.float() / temperature).log_softmax(dim=-1)


def load_policy_model(name: str, options: ModelOptions = _DEFAULT_OPTIONS, *, ranks: Ranks = _ALONE) -> PolicyModel:
    """Return the model to start from, divided among the ranks where there are several.

    Args:
        name: `builtin:<task>`, the path of a TinyLM checkpoint (`*.safetensors`), the folder of a Hugging Face model,
            or, where there is no such file or folder, the name of one on the Hugging Face hub (`owner/model`).
        options: see ModelOptions.
        ranks: the processes that train it together; each of them must load it.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: it is not a model that can be trained here, or not with these options, or no model of that name
            comes with this package.
        ModuleNotFoundError: it is a Hugging Face model, and transformers is not installed.
    """
    if name.startswith(BUILTIN):
        return _load_tinylm(builtin_checkpoint(name.removeprefix(BUILTIN)), options, ranks)
    path = Path(name)
    if path.is_file() or path.suffix == ".safetensors":
        return _load_tinylm(path, options, ranks)
    # Imported late: transformers takes seconds, and a TinyLM needs none of it.
    from groupreplay_trainer.hf_policy import load_hf_policy  # noqa: PLC0415

    return load_hf_policy(name, options, ranks)


def _load_tinylm(path: Path, options: ModelOptions, ranks: Ranks) -> TinyLMPolicy:
    if options.packing == "packed":
        raise ValueError(f"{path} is a TinyLM, whose rollouts cannot share a row; set packing to padded")
    model = load_checkpoint(path)
    if ranks.size > 1:
        divide(model, list(model.blocks), ranks.mesh(torch.device("cpu")))
    return TinyLMPolicy(model)
