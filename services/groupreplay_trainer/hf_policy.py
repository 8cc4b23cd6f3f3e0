"""Causal language models of Hugging Face as a PolicyModel.

The weights in training are float32; the forward pass runs in the model's dtype by autocast, as the inference engines
run it, and log-softmax in float32. Logits are computed for the tokens that are asked for, a piece at a time.

Tokenizer files are published byte for byte as they came: reading and writing a tokenizer may change what it does.

Shape legend: B rollouts, T tokens of the longest; R rows of S tokens as the model reads them (packed: one row of all
real tokens); N tokens to score, D model width, V vocabulary.
"""
# ruff: noqa: N815 - tensor shapes as suffixes

import logging
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.utils.checkpoint import checkpoint

from groupreplay_trainer.durable_file import write_folder_durably
from groupreplay_trainer.policy_model import ModelOptions, TokenScores, score_next_tokens
from groupreplay_trainer.ranks import Ranks, divide, divided_like

try:
    from huggingface_hub import snapshot_download
    from transformers import AutoModelForCausalLM
    from transformers.modeling_layers import GradientCheckpointingLayer
    from transformers.utils.logging import disable_progress_bar
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"a Hugging Face model needs transformers, which is not installed ({error}): pip install 'groupreplay[hf]'",
        name=error.name,
    ) from error

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_LOGITS_AT_ONCE: Final = 2**25
"""Logits in one piece: 128 MiB in float32. For a vocabulary of 150,000 that is 223 tokens."""

TOKENIZER_FILES: Final = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
)
"""Names under which tokenizers and chat templates come."""

_DTYPES: Final = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_log = logging.getLogger(__name__)


def load_hf_policy(name: str, options: ModelOptions, ranks: Ranks) -> "HuggingFacePolicy":
    """Return the model of a folder, or of a name on the Hugging Face hub. Code that comes with a model is never run.

    Each rank loads all of it into its memory, and then keeps its part on its device.

    Raises:
        FileNotFoundError: there is no such folder or model, or the folder has no config.json.
        ValueError: weights are missing, or its scores cannot be computed here in the way the options say.
    """
    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file():
        raise FileNotFoundError(f"{path} has no config.json, so it is not the folder of a Hugging Face model")
    if not path.is_dir() and (path.is_absolute() or name.startswith(".") or name.count("/") > 1):
        raise FileNotFoundError(f"there is no model at {path}")
    device = _device(options.device)
    disable_progress_bar()  # A service writes a log, and publishes weights every minute or so.
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=torch.float32,
            attn_implementation=options.attention,
            trust_remote_code=False,
            output_loading_info=True,
        )
        folder = path if path.is_dir() else Path(snapshot_download(name, allow_patterns=list(TOKENIZER_FILES)))
    except OSError as error:
        raise FileNotFoundError(f"{name} cannot be loaded as a Hugging Face model: {error}") from error
    model, info = loaded
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"]))
        raise ValueError(f"{name} lacks the weights {missing}; a model is not trained from weights made up here")
    if ranks.size == 1 or options.attention.startswith("flash"):
        model = model.to(device)  # Flash attention is compared with what is known of it, and runs on no CPU.
    policy = HuggingFacePolicy(model, tokenizer_files=read_tokenizer_files(folder), options=options)
    if ranks.size > 1:
        policy.divide(ranks.mesh(device))
    return policy


def read_tokenizer_files(folder: Path) -> dict[str, bytes]:
    """Return the content of the tokenizer files in a folder by name; an empty dictionary where there are none."""
    found = {path for pattern in TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file()}
    files = {path.name: path.read_bytes() for path in sorted(found) if path.suffix != ".py"}
    if not files:
        _log.warning("%s has no tokenizer, so none is published with the weights", folder)
    return files


class HuggingFacePolicy:
    """A Hugging Face causal language model as a PolicyModel."""

    def __init__(
        self, model: "PreTrainedModel", *, tokenizer_files: Mapping[str, bytes], options: ModelOptions
    ) -> None:
        """Train `model`, float32 on its device, which is left in evaluation mode.

        Args:
            model: changed in place.
            tokenizer_files: name -> content, published with the weights.
            options: all but `device` and `attention`, which the model has been given already.

        Raises:
            ValueError: the model computes logits, or attention of packed rows, in a way that is not known here.
        """
        self._model = model.eval()
        self._tokenizer_files = tokenizer_files
        self._dtype = _DTYPES[options.dtype]
        self._packs = options.packing == "packed"
        self._config = model.config.get_text_config()
        self._scorer = _TokenScorer(model)
        # Flash attention knows no float32; everything else is compared in it, where rounding hides nothing.
        with self._autocast(enabled=options.attention.startswith("flash")):
            _check_logits(model, self._scorer)
            if self._packs:
                _check_packing(model)
        if options.activation_checkpointing:
            _checkpoint_activations(model)

    @property
    def pad_token_id(self) -> int:
        """That of the model's configuration, or 0: nothing reads it."""
        found = getattr(self._config, "pad_token_id", None)
        return 0 if found is None else int(found)

    @property
    def max_tokens(self) -> int | None:
        """What the model's configuration states as its positions."""
        positions: int | None = getattr(self._config, "max_position_embeddings", None)
        return positions

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding: a tokenizer may have fewer tokens."""
        return int(self._config.vocab_size)

    @property
    def packs(self) -> bool:
        """Whether the rollouts of a forward pass share a row."""
        return self._packs

    @property
    def published_suffix(self) -> str:
        """A folder."""
        return ""

    def score(
        self,
        token_ids_BT: Tensor,
        attention_mask_BT: Tensor,
        scored_mask_BT: Tensor | None = None,
        *,
        temperature: float,
        images_BHWC: Tensor | None = None,
    ) -> TokenScores:
        """Return log probabilities and entropies of the tokens in the scored mask, 0 elsewhere; see `PolicyModel`."""
        if images_BHWC is not None:
            raise ValueError(
                f"the groups have images, and a {type(self._model).__name__} is trained on text alone here; leave the "
                "images out at the generator, or train a model that sees"
            )
        scored_mask_BT = (attention_mask_BT if scored_mask_BT is None else scored_mask_BT).clone()
        scored_mask_BT[:, 0] = False
        columns_N = scored_mask_BT.flatten().nonzero().squeeze(1)
        read = (_ModelInput.packed if self._packs else _ModelInput.padded)(token_ids_BT, attention_mask_BT, columns_N)
        device = self._model.device
        with self._autocast(enabled=self._dtype is not torch.float32):
            scores = self._scorer(
                read.token_ids_RS.to(device),
                None if read.positions_RS is None else read.positions_RS.to(device),
                read.predictors_N.to(device),
                token_ids_BT.flatten()[columns_N].to(device),
                temperature,
            )
        logprobs_BT, entropy_BT = (
            torch.zeros(token_ids_BT.numel()).scatter(0, columns_N, score_N.cpu()).view_as(token_ids_BT)
            for score_N in scores
        )
        return TokenScores(logprobs_BT=logprobs_BT, entropy_BT=entropy_BT)

    def parameters(self) -> list[nn.Parameter]:
        """Return the trained parameters, always in the same order; tied ones once."""
        return list(self._model.parameters())

    def weights(self) -> dict[str, Tensor]:
        """Return all weights by name, not copied; tied ones once, by the name that comes first."""
        tied = {name for name, _ in self._model.named_parameters(remove_duplicate=False)}
        tied -= {name for name, _ in self._model.named_parameters()}
        return {name: tensor for name, tensor in self._model.state_dict().items() if name not in tied}

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take over weights; ValueError if they do not fit."""
        own = self.weights()
        problems = [f"{name} is missing" for name in sorted(own.keys() - weights.keys())]
        problems += [f"{name} is unknown" for name in sorted(weights.keys() - own.keys())]
        problems += [
            f"{name} has shape {tuple(weights[name].shape)}, not {tuple(tensor.shape)}"
            for name, tensor in own.items()
            if name in weights and weights[name].shape != tensor.shape
        ]
        if problems:
            raise ValueError(f"the weights do not fit a {type(self._model).__name__}: {'; '.join(problems[:5])}")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(divided_like(tensor, weights[name]))

    def save(self, path: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write a model folder: configuration, generation configuration, tokenizer, weights in the model's dtype."""
        published = {
            name: tensor.to("cpu", self._dtype if tensor.is_floating_point() else tensor.dtype)
            for name, tensor in (self.weights() if weights is None else weights).items()
        }
        write_folder_durably(path, lambda folder: self._write(folder, published))

    def divide(self, mesh: DeviceMesh) -> None:
        """Divide the weights over devices, a layer at a time; layers are gathered, and computed, in the model's dtype.

        `parameters` are others from then on.
        """
        divide(self._scorer, _layers(self._model), mesh, dtype=self._dtype)

    def _autocast(self, *, enabled: bool) -> torch.autocast:
        return torch.autocast(self._model.device.type, dtype=self._dtype, enabled=enabled)

    def _write(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        self._model.save_pretrained(folder, state_dict=dict(weights))
        # transformers writes the dtype of the weights in training, which are not those in the file.
        config = deepcopy(self._model.config)
        config.dtype = self._dtype
        config.save_pretrained(folder)
        for name, content in self._tokenizer_files.items():
            (folder / name).write_bytes(content)


class _TokenScorer(nn.Module):
    """The model with its head applied to the tokens to score alone."""

    def __init__(self, model: "PreTrainedModel") -> None:
        super().__init__()
        self.model = model
        config = model.config.get_text_config()
        # The ways in which the models of transformers treat their logits; `_check_logits` refuses any other.
        self.factor = getattr(config, "logit_scale", None) or 1.0
        self.factor /= getattr(config, "logits_scaling", None) or 1.0
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)

    def forward(
        self,
        token_ids_RS: Tensor,
        positions_RS: Tensor | None,
        predictors_N: Tensor,
        next_ids_N: Tensor,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        """Return log probability and entropy of each token to score, float32.

        Args:
            token_ids_RS: int64.
            positions_RS: int64, restarting at 0 with each rollout of a packed row; None = counted along the row. No
                attention mask is needed: padding is on the right, where no real token looks.
            predictors_N: int64, where in the flattened rows the token before each token to score stands.
            next_ids_N: int64, the tokens to score.
            temperature: > 0.
        """
        hidden_ND = self.hidden(token_ids_RS, positions_RS).flatten(0, 1).index_select(0, predictors_N)
        size = max(1, MAX_LOGITS_AT_ONCE // self.model.get_output_embeddings().weight.shape[0])
        pieces = list(zip(torch.split(hidden_ND, size), torch.split(next_ids_N, size), strict=True))
        if len(pieces) == 1 or not torch.is_grad_enabled():
            scored = [self._score(*piece, temperature) for piece in pieces]
        else:
            # Without this each piece would keep its logits for the backward pass.
            scored = [checkpoint(self._score, *piece, temperature, use_reentrant=False) for piece in pieces]
        logprobs, entropies = zip(*scored, strict=True)
        return torch.cat(logprobs), torch.cat(entropies)

    def hidden(self, token_ids_RS: Tensor, positions_RS: Tensor | None) -> Tensor:
        """Return the last layer's hidden_RSD."""
        positions = {} if positions_RS is None else {"position_ids": positions_RS}
        hidden_RSD: Tensor = self.model.base_model(
            input_ids=token_ids_RS, use_cache=False, **positions
        ).last_hidden_state
        return hidden_RSD

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Return logits_NV, in the head's dtype."""
        logits_NV: Tensor = self.model.get_output_embeddings()(hidden_ND)
        if self.factor != 1.0:
            logits_NV = logits_NV * self.factor
        if self.softcap is not None:
            logits_NV = self.softcap * (logits_NV / self.softcap).tanh()
        return logits_NV

    def _score(self, hidden_ND: Tensor, next_ids_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        return score_next_tokens(self.logits(hidden_ND), next_ids_N, temperature=temperature)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _ModelInput:
    """Rows as the model reads them, and where in them the tokens to score are predicted.

    Attributes:
        token_ids_RS: int64.
        positions_RS: int64; None = counted along each row.
        predictors_N: int64, index into the flattened rows.
    """

    token_ids_RS: Tensor
    positions_RS: Tensor | None
    predictors_N: Tensor

    @classmethod
    def padded(cls, token_ids_BT: Tensor, attention_mask_BT: Tensor, columns_N: Tensor) -> Self:
        """Return a row for each rollout; columns_N are the tokens to score, as indices into the flattened batch."""
        return cls(token_ids_RS=token_ids_BT, positions_RS=None, predictors_N=columns_N - 1)

    @classmethod
    def packed(cls, token_ids_BT: Tensor, attention_mask_BT: Tensor, columns_N: Tensor) -> Self:
        """Return one row of all real tokens. Where positions restart the model keeps rollouts apart."""
        positions_BT = attention_mask_BT.long().cumsum(dim=1) - 1
        place_BT = attention_mask_BT.flatten().long().cumsum(dim=0) - 1
        return cls(
            token_ids_RS=token_ids_BT[attention_mask_BT][None],
            positions_RS=positions_BT[attention_mask_BT][None],
            predictors_N=place_BT[columns_N] - 1,
        )


@torch.no_grad()
def _check_logits(model: "PreTrainedModel", scorer: _TokenScorer) -> None:
    """Raise ValueError where the model's own logits are not those that are computed here."""
    token_ids_RS = _probe_tokens(model, 5)
    expected_RSV = model(input_ids=token_ids_RS, use_cache=False).logits
    if not _agree(scorer.logits(scorer.hidden(token_ids_RS, None)), expected_RSV):
        raise ValueError(
            f"a {type(model).__name__} does something to its logits that is not known here, so its log probabilities "
            "would be wrong; train another model"
        )


@torch.no_grad()
def _check_packing(model: "PreTrainedModel") -> None:
    """Raise ValueError where rollouts in one row are not scored as they are alone."""
    token_ids_RS, lengths = _probe_tokens(model, 9), [4, 5]
    positions_RS = torch.cat([torch.arange(length) for length in lengths])[None].to(token_ids_RS.device)
    alone = [model(input_ids=piece, use_cache=False).logits for piece in torch.split(token_ids_RS, lengths, dim=1)]
    try:
        packed_RSV = model(input_ids=token_ids_RS, position_ids=positions_RS, use_cache=False).logits
    except TypeError as error:
        raise ValueError(f"a {type(model).__name__} takes no positions; set packing to padded") from error
    if not _agree(packed_RSV, torch.cat(alone, dim=1)):
        raise ValueError(
            f"a {type(model).__name__} with this attention implementation lets rollouts that share "
            "a row see each other; set packing to padded"
        )


def _probe_tokens(model: "PreTrainedModel", count: int) -> Tensor:
    """Return token_ids_RS, one row of tokens from all over the vocabulary."""
    vocab_size = model.config.get_text_config().vocab_size
    token_ids_S = torch.arange(1, count + 1) * 7919 % vocab_size
    probe_RS: Tensor = token_ids_S[None].to(model.device)
    return probe_RS


def _agree(found: Tensor, expected: Tensor) -> bool:
    """Return whether two computations of the same numbers differ by rounding alone."""
    tolerance = 1e-3 if found.dtype is torch.float32 else 3e-2
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def _checkpoint_activations(model: "PreTrainedModel") -> None:
    """Recompute the activations of each layer in the backward pass.

    Raises:
        ValueError: the model cannot.
    """
    model.gradient_checkpointing_enable()
    layers = _layers(model)
    if not layers:
        raise ValueError(f"a {type(model).__name__} has no layers that activation checkpointing knows; turn it off")
    for layer in layers:
        # transformers recomputes in training mode only. What is inside stays in evaluation mode, without dropout.
        layer.training = True
        for name, value in vars(layer).items():
            if "dropout" in name and isinstance(value, float):
                setattr(layer, name, 0.0)


def _layers(model: "PreTrainedModel") -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def _device(name: str) -> torch.device:
    """Return the device of a name in the options.

    Raises:
        ValueError: it is none of torch's, or it is not here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is none of auto, cpu, cuda, cuda:1 and so on") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} is not here: torch finds no CUDA device. Set device to cpu or auto")
    return device
