"""The engine of vLLM in this process: its `AsyncLLM`, whose workers are processes of their own."""

import asyncio
import logging
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

# vLLM forks by default, which the threads of gRPC in this process do not survive.
os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")

from vllm import AsyncEngineArgs, SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from groupreplay_generator.engines.base import EngineAwayError, EngineResult, Sampling
from groupreplay_generator.engines.vllm_weights import (
    LOADING,
    VersionOf,
    Versions,
    Weights,
    check_prompt,
    completion_of,
    result_of,
    rollouts_to_ask,
    seed_of,
)
from groupreplay_generator.sections import VllmSettings

_log = logging.getLogger(__name__)


class VllmEngine:
    """An `Engine` over vLLM in this process. A vLLM that died is started anew by the next call."""

    def __init__(
        self,
        weights: Path | str,
        *,
        settings: VllmSettings,
        policy_version: int = 0,
        label: str = "",
        version_of: VersionOf = lambda _: None,
    ) -> None:
        """Remember which weights to open with; nothing is started yet.

        Args:
            weights, policy_version, label: as of `load_weights`.
            settings: further arguments of vLLM.
            version_of: finds the policy version of a label that this engine did not load; None = not known.

        Raises:
            FileNotFoundError, ValueError: as `load_weights`.
        """
        self._settings = settings
        self._versions = Versions(version_of)
        self._weights = Weights.at(weights, policy_version, label)
        self._versions.add(self._weights)
        self._is_open = False
        self._llm: AsyncLLM | None = None
        self._said = ""
        self._updating = asyncio.Lock()

    async def __aenter__(self) -> Self:
        """Allow calls; the first of them starts vLLM, which takes a minute or so."""
        self._is_open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End vLLM."""
        self._is_open = False
        await self._stop()

    @property
    def policy_version(self) -> int:
        """The version of the weights that the next token is sampled with."""
        return self._weights.version

    async def load_weights(self, path: Path | str, policy_version: int, *, label: str = "") -> None:
        """Sample with the model folder at `path` from now on, in the middle of responses under way too.

        Raises:
            FileNotFoundError: there is nothing at `path`.
            ValueError: it is no Hugging Face model folder, or policy_version is negative.
            EngineAwayError: vLLM did not take the weights; it has died, and the next call starts it anew.
        """
        before, weights = self._weights, Weights.at(path, policy_version, label)
        self._versions.add(weights)
        self._weights = weights
        try:
            await self._ready()
        except EngineAwayError:
            self._weights = before
            raise

    async def generate(
        self,
        prompts: Sequence[str],
        *,
        rollouts_per_prompt: int,
        sampling: Sampling,
        images: Sequence[npt.NDArray[np.uint8]] | None = None,
    ) -> list[EngineResult]:
        """Sample completions of all prompts; see `Engine.generate`.

        Raises:
            ValueError: there are images, or a prompt is empty or leaves no room for the response.
            RuntimeError: the engine is not open.
            EngineAwayError: vLLM died, or could not be started.
        """
        if not self._is_open:
            raise RuntimeError("the engine is not open: use it inside `async with VllmEngine(...) as engine`")
        if images is not None:
            raise ValueError("engine vllm shows no images to the policy; use engine torch for tasks that have them")
        if rollouts_per_prompt < 1:
            raise ValueError(f"rollouts_per_prompt must be >= 1, got {rollouts_per_prompt}")
        llm = await self._ready()
        encoded = [_encode(llm, prompt, sampling) for prompt in prompts]
        salt = self._weights.salt
        outcomes = await asyncio.gather(
            *(
                self._sample(llm, token_ids, rollouts_per_prompt, sampling, seed=seed_of(sampling, index), salt=salt)
                for index, token_ids in enumerate(encoded)
            ),
            return_exceptions=True,
        )
        finished = {index: outcome for index, outcome in enumerate(outcomes) if isinstance(outcome, EngineResult)}
        for outcome in outcomes:
            if isinstance(outcome, EngineAwayError):
                raise EngineAwayError(str(outcome), finished) from outcome
            if isinstance(outcome, BaseException):
                raise outcome
        return [finished[index] for index in range(len(prompts))]

    async def _sample(
        self,
        llm: AsyncLLM,
        prompt_token_ids: list[int],
        rollouts: int,
        sampling: Sampling,
        *,
        seed: int | None,
        salt: str,
    ) -> EngineResult:
        # SamplingParams of our own making: those of the model's generation_config.json do not enter.
        parameters = SamplingParams(
            n=rollouts_to_ask(sampling, rollouts),
            max_tokens=sampling.max_response_tokens,
            temperature=sampling.temperature,
            seed=seed,
            logprobs=0,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        prompt = {"prompt_token_ids": prompt_token_ids, "cache_salt": salt}
        outputs: Sequence[Any] = ()
        try:
            async for output in llm.generate(prompt, parameters, request_id=uuid.uuid4().hex):
                outputs = output.outputs
        except EngineDeadError as error:
            raise EngineAwayError(f"vLLM died: {error}") from error
        completions = [
            completion_of(
                token_ids=list(output.token_ids),
                logprobs=[
                    position[token].logprob for token, position in zip(output.token_ids, output.logprobs, strict=True)
                ],
                finish_reason=output.finish_reason,
                text=output.text,
                temperature=sampling.temperature,
                version_spans=self._versions.spans([(span.start, span.version) for span in output.weight_versions]),
            )
            for output in sorted(outputs, key=lambda output: int(output.index))
        ]
        return result_of(prompt_token_ids, completions, rollouts=rollouts)

    async def _ready(self) -> AsyncLLM:
        """Return a vLLM that holds the weights.

        Raises:
            EngineAwayError: it died, or could not be started.
        """
        async with self._updating:
            if self._llm is not None and self._llm.errored:
                await self._stop()
            weights = self._weights
            try:
                if self._llm is None:
                    self._llm = llm = await asyncio.to_thread(_start, weights, self._settings)
                    await llm.update_weight_version(weights.label)
                elif await self._llm.get_weight_version() != weights.label:
                    await _load(self._llm, weights)
            except Exception as error:
                await self._stop()
                if str(error) != self._said:
                    _log.warning("vLLM could not load %s: %s; trying on", weights.path, error)
                self._said = str(error)
                raise EngineAwayError(f"vLLM could not load {weights.path}: {error}") from error
            self._said = ""
            return self._llm

    async def _stop(self) -> None:
        if self._llm is not None:
            await asyncio.to_thread(self._llm.shutdown)
        self._llm = None


def _start(weights: Weights, settings: VllmSettings) -> AsyncLLM:
    arguments = {"model": str(weights.path), "logprobs_mode": "processed_logprobs", "generation_config": "vllm"}
    return AsyncLLM.from_engine_args(AsyncEngineArgs(**{**settings.engine_arguments(), **arguments}))


async def _load(llm: AsyncLLM, weights: Weights) -> None:
    """Replace its weights between two tokens; requests under way go on with the new ones."""
    await llm.pause_generation(mode="keep")
    await llm.update_weight_version(f"{LOADING}{weights.label}")
    await llm.collective_rpc("reload_weights", kwargs={"weights_path": str(weights.path)})
    await llm.update_weight_version(weights.label)
    await llm.resume_generation()


def _encode(llm: AsyncLLM, prompt: str, sampling: Sampling) -> list[int]:
    token_ids = [int(token) for token in llm.get_tokenizer().encode(prompt)]
    check_prompt(prompt, len(token_ids), sampling, llm.vllm_config.model_config.max_model_len)
    return token_ids
