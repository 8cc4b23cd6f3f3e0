"""A causal transformer small enough to train on two CPU cores, with a static key/value cache for sampling.

Shape legend: B rows, T tokens, S cache slots, H heads, K width of a head, D model width, V vocabulary, P positions; the
2 of a rotation is its cosine and its sine.
"""

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from groupreplay_tinylm.tokenizer import CharTokenizer
from groupreplay_tinylm.vision import ImageEncoder, VisionConfig

PAD_LOGIT: Final = -1e3
"""PAD is never a continuation: its probability is exactly 0.

Finite, because an infinity would make p * log p, and so the entropy, NaN.
"""

ROTARY_BASE: Final = 100.0
"""Sequences are tens of tokens long: the usual 10000 would leave most pairs of a narrow head all but unrotated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyLMConfig:
    """The shape of a TinyLM.

    `width` is divided among `heads`, an even part for each; `max_positions` bounds image, prompt and response together.
    A model with `vision` sees an image before it reads.
    """

    vocab_size: int
    layers: int
    width: int
    heads: int
    max_positions: int
    vision: VisionConfig | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for a shape that no model can have."""
        for name in ("vocab_size", "layers", "width", "heads", "max_positions"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer >= 1, got {value!r}")
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} is not a multiple of twice the heads, {2 * self.heads}")

    @property
    def max_text_tokens(self) -> int:
        """How many tokens prompt and response may have together."""
        return self.max_positions - (0 if self.vision is None else self.vision.patches)


class KVCache:
    """Keys and values of one batch of left-padded rows, in buffers that are allocated once.

    Rows are left-padded so that every row writes its next token at the same slot: one slice, no scatter.
    """

    def __init__(
        self, *, layers: list[tuple[Tensor, Tensor]], bias_BS: Tensor, next_position_B: Tensor, filled_slots: int
    ) -> None:
        """Wrap the buffers: (keys_BHSK, values_BHSK) of each layer; bias_BS is -inf at padding and 0 elsewhere."""
        self.layers = layers
        self.bias_BS = bias_BS
        self.next_position_B = next_position_B
        self.filled_slots = filled_slots

    @classmethod
    def holding(cls, layers: list[tuple[Tensor, Tensor]], mask_BT: Tensor, *, slots: int) -> "KVCache":
        """Return a cache of `slots` slots that begins with the given (keys_BHTK, values_BHTK) of each layer."""
        rows, tokens = mask_BT.shape
        bias_BS = layers[0][0].new_zeros((rows, slots))
        bias_BS[:, :tokens].masked_fill_(~mask_BT, -math.inf)
        room = (0, 0, 0, slots - tokens)
        return cls(
            layers=[(functional.pad(keys, room), functional.pad(values, room)) for keys, values in layers],
            bias_BS=bias_BS,
            next_position_B=mask_BT.sum(dim=1),
            filled_slots=tokens,
        )

    @property
    def rows(self) -> int:
        """Number of rows B."""
        return self.bias_BS.shape[0]

    @property
    def slots(self) -> int:
        """Number of slots S, filled or not."""
        return self.bias_BS.shape[1]

    def select(self, rows_B: Tensor) -> "KVCache":
        """Return a cache of the given rows (int64 indices, repeats allowed); this one is left as it is."""
        return KVCache(
            layers=[(keys.index_select(0, rows_B), values.index_select(0, rows_B)) for keys, values in self.layers],
            bias_BS=self.bias_BS[rows_B],
            next_position_B=self.next_position_B[rows_B],
            filled_slots=self.filled_slots,
        )


class Block(nn.Module):
    """One pre-norm transformer layer: attention, then a two-layer perceptron."""

    def __init__(self, config: TinyLMConfig) -> None:
        """Create the layer's weights."""
        super().__init__()
        self.heads = config.heads
        self.attention_norm = nn.LayerNorm(config.width, bias=False)
        self.query_key_value = nn.Linear(config.width, 3 * config.width, bias=False)
        self.attention_out = nn.Linear(config.width, config.width, bias=False)
        self.mlp_norm = nn.LayerNorm(config.width, bias=False)
        self.mlp_in = nn.Linear(config.width, 4 * config.width, bias=False)
        self.mlp_out = nn.Linear(4 * config.width, config.width, bias=False)

    def forward(
        self, hidden_BTD: Tensor, rotation_BT2K: Tensor, allowed_B1TT: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the layer's output and the keys_BHTK and values_BHTK it attended to; None allows all that is past."""
        queries_BHTK, keys_BHTK, values_BHTK = self._project(hidden_BTD, rotation_BT2K)
        attended_BHTK = functional.scaled_dot_product_attention(
            queries_BHTK, keys_BHTK, values_BHTK, attn_mask=allowed_B1TT, is_causal=allowed_B1TT is None
        )
        return self._finish(hidden_BTD, attended_BHTK), keys_BHTK, values_BHTK

    def decode(
        self, hidden_B1D: Tensor, rotation_B12K: Tensor, keys_BHSK: Tensor, values_BHSK: Tensor, bias_B11S: Tensor
    ) -> Tensor:
        """Return the layer's output for one new token per row, whose key and value go into the last slot."""
        queries_BH1K, keys_BH1K, values_BH1K = self._project(hidden_B1D, rotation_B12K)
        keys_BHSK[:, :, -1:] = keys_BH1K
        values_BHSK[:, :, -1:] = values_BH1K
        # Two plain products: for a single query they take half the time of the fused attention kernel on a CPU.
        scores_BH1S = (queries_BH1K * queries_BH1K.shape[-1] ** -0.5) @ keys_BHSK.transpose(2, 3) + bias_B11S
        return self._finish(hidden_B1D, scores_BH1S.softmax(dim=-1) @ values_BHSK)

    def _project(self, hidden_BTD: Tensor, rotation_BT2K: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries_BHTK and keys_BHTK, rotated by their positions, and values_BHTK."""
        rows, tokens, _ = hidden_BTD.shape
        projected: Tensor = self.query_key_value(self.attention_norm(hidden_BTD))
        all_BTHK = projected.view(rows, tokens, 3 * self.heads, -1)
        queries_keys = _rotate(all_BTHK[:, :, : 2 * self.heads], rotation_BT2K).transpose(1, 2)
        values = all_BTHK[:, :, 2 * self.heads :].transpose(1, 2)
        queries, keys = queries_keys.chunk(2, dim=1)
        return queries, keys, values

    def _finish(self, hidden_BTD: Tensor, attended_BHTK: Tensor) -> Tensor:
        hidden_BTD = hidden_BTD + self.attention_out(attended_BHTK.transpose(1, 2).reshape(hidden_BTD.shape))
        output_BTD: Tensor = hidden_BTD + self.mlp_out(functional.relu(self.mlp_in(self.mlp_norm(hidden_BTD))))
        return output_BTD


class TinyLM(nn.Module):
    """A pre-norm causal transformer with rotary positions and tied input and output embeddings.

    `forward` serves training; `prefill` and `decode_step` give the same logits one token at a time. With `vision`, an
    image's soft tokens stand before each row's tokens; logits are those of the tokens alone.
    """

    rotations: Tensor

    def __init__(self, config: TinyLMConfig) -> None:
        """Create the model with freshly initialised weights, drawn from torch's global generator."""
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        rotations_P2K = _rotations(config.max_positions, config.width // config.heads)
        self.register_buffer("rotations", rotations_P2K, persistent=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.output_norm = nn.LayerNorm(config.width, bias=False)
        self.image_encoder = None if config.vision is None else ImageEncoder(config.vision, config.width)
        self.apply(self._initialise)

    def forward(
        self,
        token_ids_BT: Tensor,
        positions_BT: Tensor | None = None,
        attention_mask_BT: Tensor | None = None,
        images_BHWC: Tensor | None = None,
    ) -> Tensor:
        """Return the logits of the next token at every position.

        Args:
            token_ids_BT: int64 or int32, in [0, vocab_size).
            positions_BT: int64; by default counted along each row over the tokens that the mask keeps.
            attention_mask_BT: true (or 1) at real tokens, false at padding on either side. Without it every token is
                real; a right-padded batch needs none, because no real token looks at the padding behind it.
            images_BHWC: uint8, one for each row; wanted by a model with `vision`, and by no other.

        Returns:
            logits_BTV, float32. Those at padded positions mean nothing.

        Raises:
            ValueError: T exceeds max_text_tokens, a shape differs from token_ids_BT's, or there are images and no
                vision, or the other way round.
        """
        logits_BTV, _ = self._run(token_ids_BT, positions_BT, attention_mask_BT, images_BHWC)
        return logits_BTV

    def prefill(
        self,
        token_ids_BT: Tensor,
        attention_mask_BT: Tensor | None = None,
        *,
        max_new_tokens: int,
        images_BHWC: Tensor | None = None,
    ) -> tuple[Tensor, KVCache]:
        """Read left-padded prompts; return logits_BV of their first new token and a cache with room for the rest.

        Args:
            token_ids_BT, attention_mask_BT, images_BHWC: as in `forward`, the tokens padded on the left.
            max_new_tokens: how often `decode_step` may be called, >= 0.

        Raises:
            ValueError: a row ends in padding, or T + max_new_tokens exceeds max_text_tokens.
        """
        mask_BT = torch.ones_like(token_ids_BT).bool() if attention_mask_BT is None else attention_mask_BT.bool()
        if not bool(mask_BT[:, -1].all()):
            raise ValueError("prefill needs left-padded prompts, but a row ends in padding")
        self._check_positions(token_ids_BT.shape[1] + max_new_tokens)
        logits_BTV, layers = self._run(token_ids_BT, None, attention_mask_BT, images_BHWC)
        mask_BT = _behind_image(mask_BT, self._soft_tokens)
        return logits_BTV[:, -1], KVCache.holding(layers, mask_BT, slots=mask_BT.shape[1] + max_new_tokens)

    def decode_step(self, token_ids_B: Tensor, cache: KVCache) -> Tensor:
        """Append one token to every row of `cache`, in place; return logits_BV of the token after it.

        Raises:
            ValueError: the cache is full.
        """
        if cache.filled_slots >= cache.slots:
            raise ValueError(f"the cache is full: all {cache.slots} slots hold a token; prefill with more new tokens")
        cache.filled_slots += 1
        bias_B11S = cache.bias_BS[:, None, None, : cache.filled_slots]
        hidden_B1D = self.token_embedding(token_ids_B).unsqueeze(1)
        rotation_B12K = self.rotations[cache.next_position_B].unsqueeze(1)
        cache.next_position_B += 1
        for block, (keys_BHSK, values_BHSK) in zip(self.blocks, cache.layers, strict=True):
            assert isinstance(block, Block)
            filled = slice(cache.filled_slots)
            hidden_B1D = block.decode(
                hidden_B1D, rotation_B12K, keys_BHSK[:, :, filled], values_BHSK[:, :, filled], bias_B11S
            )
        return self._logits(hidden_B1D).squeeze(1)

    @property
    def _soft_tokens(self) -> int:
        return 0 if self.config.vision is None else self.config.vision.patches

    def _run(
        self,
        token_ids_BT: Tensor,
        positions_BT: Tensor | None,
        attention_mask_BT: Tensor | None,
        images_BHWC: Tensor | None,
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Return logits_BTV and the (keys_BHTK, values_BHTK) of every layer, those of soft tokens included."""
        _check_same_shape(token_ids_BT, positions_BT, attention_mask_BT)
        self._check_positions(token_ids_BT.shape[1])
        hidden_BTD = self._embed(token_ids_BT, images_BHWC)
        if attention_mask_BT is not None:
            attention_mask_BT = _behind_image(attention_mask_BT.bool(), self._soft_tokens)
        if positions_BT is None:
            positions_BT = _count_positions(hidden_BTD, attention_mask_BT)
        elif self._soft_tokens:
            image_BN = torch.arange(self._soft_tokens, device=positions_BT.device).expand(positions_BT.shape[0], -1)
            positions_BT = torch.cat((image_BN, positions_BT + self._soft_tokens), dim=1)
        allowed_B1TT = None if attention_mask_BT is None else _allowed(attention_mask_BT)
        rotation_BT2K = self.rotations[positions_BT]
        layers = []
        for block in self.blocks:
            hidden_BTD, keys_BHTK, values_BHTK = block(hidden_BTD, rotation_BT2K, allowed_B1TT)
            layers.append((keys_BHTK, values_BHTK))
        return self._logits(hidden_BTD[:, self._soft_tokens :]), layers

    def _embed(self, token_ids_BT: Tensor, images_BHWC: Tensor | None) -> Tensor:
        """Return the vectors of the soft tokens, if any, and of the tokens."""
        tokens_BTD: Tensor = self.token_embedding(token_ids_BT)
        if (images_BHWC is None) != (self.image_encoder is None):
            raise ValueError(
                "this model sees no images" if self.image_encoder is None else "this model needs an image for every row"
            )
        if images_BHWC is None or self.image_encoder is None:
            return tokens_BTD
        return torch.cat((self.image_encoder(images_BHWC), tokens_BTD), dim=1)

    def _logits(self, hidden_BTD: Tensor) -> Tensor:
        logits_BTV = functional.linear(self.output_norm(hidden_BTD), self.token_embedding.weight)
        is_pad_V = torch.arange(self.config.vocab_size, device=logits_BTV.device) == CharTokenizer.pad_id
        return logits_BTV.masked_fill(is_pad_V, PAD_LOGIT)

    def _check_positions(self, tokens: int) -> None:
        if self._soft_tokens + tokens > self.config.max_positions:
            image = f" and an image of {self._soft_tokens}" if self._soft_tokens else ""
            raise ValueError(f"{tokens} tokens{image} exceed max_positions {self.config.max_positions} of this model")

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        """Scale by the number of inputs: the usual fixed 0.02 is too small at this width, and learns more slowly."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.6 * module.weight.shape[1] ** -0.5)


def _rotations(positions: int, head_width: int) -> Tensor:
    """Return rotation_P2K: the cosine and sine of every position's angle, the same for both halves of a head."""
    frequencies = ROTARY_BASE ** -(torch.arange(0, head_width, 2) / head_width)
    angles_PK = torch.outer(torch.arange(positions), frequencies).repeat(1, 2)
    return torch.stack((angles_PK.cos(), angles_PK.sin()), dim=1)


def _rotate(vectors_BTHK: Tensor, rotation_BT2K: Tensor) -> Tensor:
    """Rotate each pair (k, k + K/2) of every head by the angle of its position."""
    first, second = vectors_BTHK.chunk(2, dim=-1)
    turned_BTHK = torch.cat((-second, first), dim=-1)
    return vectors_BTHK * rotation_BT2K[..., 0, None, :] + turned_BTHK * rotation_BT2K[..., 1, None, :]


def _check_same_shape(token_ids_BT: Tensor, *others: Tensor | None) -> None:
    for other in others:
        if other is not None and other.shape != token_ids_BT.shape:
            raise ValueError(f"shape {tuple(other.shape)} differs from token_ids_BT's {tuple(token_ids_BT.shape)}")


def _behind_image(mask_BT: Tensor, soft_tokens: int) -> Tensor:
    """Return the mask of the soft tokens, all of them real, and the tokens behind them."""
    return functional.pad(mask_BT, (soft_tokens, 0), value=True)


def _count_positions(hidden_BTD: Tensor, attention_mask_BT: Tensor | None) -> Tensor:
    if attention_mask_BT is None:
        return torch.arange(hidden_BTD.shape[1], device=hidden_BTD.device)
    return (attention_mask_BT.long().cumsum(dim=1) - 1).clamp(min=0)


def _allowed(mask_BT: Tensor) -> Tensor:
    """Return the boolean mask_B1TT of what each token may attend to: real tokens up to itself, and always itself.

    Itself even at padding: a row that may attend to nothing has a softmax of 0 / 0, and its NaN would reach the loss.
    """
    tokens = mask_BT.shape[1]
    past_TT = torch.ones((tokens, tokens), dtype=torch.bool, device=mask_BT.device).tril()
    itself_TT = torch.eye(tokens, dtype=torch.bool, device=mask_BT.device)
    return ((past_TT & mask_BT[:, None, :]) | itself_TT)[:, None]
