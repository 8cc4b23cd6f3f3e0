"""The engine of the demo and the tests: a TinyLM, sampled on the CPU of this process."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from groupreplay_generator.engines.base import Completion, EngineResult, Sampling
from groupreplay_generator.engines.torch_sampler import SampledRows, sample_rows
from groupreplay_tinylm import CharTokenizer, TinyLM, VisionConfig, load_checkpoint


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Policy:
    """Weights and their version, replaced together: a call keeps the pair it began with to its end."""

    model: TinyLM
    version: int


class TorchEngine:
    """An `Engine` over a TinyLM checkpoint.

    The torch work runs in a thread. A call that is cancelled leaves its thread to finish the batch, which takes well
    under a second at the sizes this is for.
    """

    def __init__(self, checkpoint: Path | str, *, policy_version: int = 0) -> None:
        """Remember which weights to open with, and their version; nothing is read yet.

        Raises:
            ValueError: policy_version is negative.
        """
        _check_version(policy_version)
        self._checkpoint = checkpoint
        self._opening_version = policy_version
        self._policy: _Policy | None = None
        self._tokenizer = CharTokenizer()

    async def __aenter__(self) -> Self:
        """Load the weights.

        Raises:
            FileNotFoundError, ValueError: as `load_weights`.
        """
        await self.load_weights(self._checkpoint, self._opening_version)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let go of the weights; calls under way finish with those they hold."""
        self._policy = None

    @property
    def policy_version(self) -> int:
        """The version of the weights that the next call samples with."""
        return self._opening_version if self._policy is None else self._policy.version

    async def load_weights(self, path: Path | str, policy_version: int, *, label: str = "") -> None:
        """Sample with the checkpoint at `path` from the next call on; see `Engine.load_weights`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not a TinyLM checkpoint of this tokenizer, or policy_version is negative.
        """
        _check_version(policy_version)
        model = await asyncio.to_thread(load_checkpoint, path)
        if model.config.vocab_size != self._tokenizer.vocab_size:
            raise ValueError(
                f"{path} has a vocabulary of {model.config.vocab_size} tokens, "
                f"but the tokenizer has {self._tokenizer.vocab_size}"
            )
        self._policy = _Policy(model=model, version=policy_version)

    async def generate(
        self,
        prompts: Sequence[str],
        *,
        images: Sequence[npt.NDArray[np.uint8]] | None = None,
        rollouts_per_prompt: int,
        sampling: Sampling,
    ) -> list[EngineResult]:
        """Sample completions of all prompts as one batch; see `Engine.generate`.

        Raises:
            ValueError: a prompt is empty, has an unknown character, or leaves no room for the response; or there are
                images and the model sees none, or not of this shape, or none and it does.
            RuntimeError: the engine is not open.
        """
        if self._policy is None:
            raise RuntimeError("the engine is not open: use it inside `async with TorchEngine(...) as engine`")
        if rollouts_per_prompt < 1:
            raise ValueError(f"rollouts_per_prompt must be >= 1, got {rollouts_per_prompt}")
        encoded = [self._encode(prompt, self._policy.model, sampling) for prompt in prompts]
        if not encoded:
            return []
        stacked = _stack_images(images, prompts=len(encoded), vision=self._policy.model.config.vision)
        return await asyncio.to_thread(self._sample, self._policy, encoded, stacked, rollouts_per_prompt, sampling)

    def _encode(self, prompt: str, model: TinyLM, sampling: Sampling) -> list[int]:
        token_ids = self._tokenizer.encode(prompt)
        limit = model.config.max_text_tokens - sampling.max_response_tokens
        if not 0 < len(token_ids) <= limit:
            raise ValueError(
                f"prompt {prompt[:80]!r} has {len(token_ids)} tokens; with max_response_tokens "
                f"{sampling.max_response_tokens} this model takes 1 to {limit}"
            )
        return token_ids

    def _sample(
        self,
        policy: _Policy,
        prompts: list[list[int]],
        images_NHWC: Tensor | None,
        rollouts_per_prompt: int,
        sampling: Sampling,
    ) -> list[EngineResult]:
        rows = sample_rows(
            policy.model, prompts, images_NHWC=images_NHWC, rollouts_per_prompt=rollouts_per_prompt, sampling=sampling
        )
        completions = self._completions(rows)
        return [
            EngineResult(
                prompt_token_ids=np.asarray(prompt, dtype=np.int32),
                completions=tuple(completions[number * rollouts_per_prompt : (number + 1) * rollouts_per_prompt]),
                policy_version_min=policy.version,
                policy_version_max=policy.version,
            )
            for number, prompt in enumerate(prompts)
        ]

    def _completions(self, rows: SampledRows) -> list[Completion]:
        # Contiguous copies: a completion then owns its row's memory order, and slicing one is a view.
        token_ids_RT = np.ascontiguousarray(rows.token_ids.numpy(), dtype=np.int32)
        logprobs_RT = np.ascontiguousarray(rows.logprobs.numpy())
        return [
            Completion(
                token_ids=token_ids_RT[row, :length],
                behaviour_logprobs=logprobs_RT[row, :length],
                finish_reason="stop" if stopped else "length",
                text=self._tokenizer.decode(token_ids_RT[row, :length].tolist()),
            )
            for row, (length, stopped) in enumerate(zip(rows.lengths.tolist(), rows.stopped.tolist(), strict=True))
        ]


def _stack_images(
    images: Sequence[npt.NDArray[np.uint8]] | None, *, prompts: int, vision: VisionConfig | None
) -> Tensor | None:
    """Return images_NHWC, or None for a model that sees none.

    Raises:
        ValueError: the model and the images do not fit each other.
    """
    if images is None or vision is None:
        if images is None and vision is None:
            return None
        raise ValueError(
            "this model sees no images" if vision is None else "this model needs an image for every prompt"
        )
    if len(images) != prompts:
        raise ValueError(f"{len(images)} images for {prompts} prompts; each prompt has one")
    for image in images:
        if image.dtype != np.uint8 or image.shape != vision.image_shape:
            raise ValueError(f"this model sees uint8 images of {vision.image_shape}, got {image.dtype} {image.shape}")
    return torch.from_numpy(np.stack(images))


def _check_version(policy_version: int) -> None:
    if policy_version < 0:
        raise ValueError(f"policy_version must be >= 0, got {policy_version}")
