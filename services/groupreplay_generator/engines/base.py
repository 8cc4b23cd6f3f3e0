"""What an inference engine is: prompts in, sampled completions with their log probabilities out.

Shape legend: P prompt tokens, T response tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

FinishReason = Literal["stop", "length"]
"""stop: the policy wrote EOS, the last of the tokens. length: it was cut off at the limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to sample. No top-k or top-p: a trainer recomputes the log probabilities of the whole distribution.

    Attributes:
        max_response_tokens: the limit of a response, EOS included; >= 1.
        temperature: >= 0; the logits are divided by it. At 0 the most likely token is taken.
        seed: the same seed, prompts and weights give the same completions; None draws one from the system.
    """

    max_response_tokens: int
    temperature: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for settings out of range."""
        if self.max_response_tokens < 1:
            raise ValueError(f"max_response_tokens must be >= 1, got {self.max_response_tokens}")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be finite and >= 0, got {self.temperature}")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be in [0, 2**63), got {self.seed}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Completion:
    """One sampled response.

    Attributes:
        token_ids: int32 [T], T >= 1; ends in EOS when finish_reason is "stop".
        behaviour_logprobs: float32 [T], natural log, of the distribution each token was sampled from: at the sampling
            temperature, EOS included. All 0 at temperature 0, where the token taken is certain.
        finish_reason: why it ended.
        text: the tokens decoded, without EOS.
        version_spans: (first token, policy version) of each stretch of one version, ascending from token 0; empty
            where the engine does not know which token is of which version.
    """

    token_ids: npt.NDArray[np.int32]
    behaviour_logprobs: npt.NDArray[np.float32]
    finish_reason: FinishReason
    text: str
    version_spans: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        """Raise ValueError for columns of the wrong dtype, shape or length."""
        _check_column("token_ids", self.token_ids, np.int32)
        _check_column("behaviour_logprobs", self.behaviour_logprobs, np.float32)
        if not self.token_ids.size:
            raise ValueError("a completion needs at least one token")
        if self.token_ids.size != self.behaviour_logprobs.size:
            raise ValueError(f"{self.token_ids.size} tokens but {self.behaviour_logprobs.size} behaviour_logprobs")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EngineResult:
    """The completions of one prompt.

    Attributes:
        prompt_token_ids: int32 [P].
        completions: rollouts_per_prompt of them.
        policy_version_min, policy_version_max: of the weights that the tokens were sampled with; they differ only for
            an engine that takes new weights in the middle of a response.
    """

    prompt_token_ids: npt.NDArray[np.int32]
    completions: tuple[Completion, ...]
    policy_version_min: int
    policy_version_max: int

    def __post_init__(self) -> None:
        """Raise ValueError for a malformed prompt or for versions in the wrong order."""
        _check_column("prompt_token_ids", self.prompt_token_ids, np.int32)
        if not 0 <= self.policy_version_min <= self.policy_version_max:
            raise ValueError(f"policy versions {self.policy_version_min} to {self.policy_version_max} are not a range")


class EngineAwayError(Exception):
    """The engine does not answer at the moment: the same call may succeed later.

    Attributes:
        finished: results that were complete before, by the index of their prompt in the call.
    """

    def __init__(self, message: str, finished: Mapping[int, EngineResult] | None = None) -> None:
        """Say what does not answer and why; a sentence for logs and for the status of a producer."""
        super().__init__(message)
        self.finished = finished or {}


class Engine(Protocol):
    """An inference engine, opened by `async with`. One engine may serve many `generate` calls at a time."""

    @property
    def policy_version(self) -> int:
        """The version of the weights that the next token is sampled with."""

    async def generate(
        self,
        prompts: Sequence[str],
        *,
        images: Sequence[npt.NDArray[np.uint8]] | None = None,
        rollouts_per_prompt: int,
        sampling: Sampling,
    ) -> list[EngineResult]:
        """Sample `rollouts_per_prompt` completions of every prompt; one result per prompt, in the same order.

        Args:
            images: one for each prompt, uint8 [H, W, C] with 1 (grey) or 3 (RGB) channels, shown before it is read.

        Raises:
            ValueError: a prompt is empty, cannot be encoded, or leaves no room for the response; or the policy sees no
                images, or not of this size.
            RuntimeError: the engine is not open.
            EngineAwayError: it does not answer at the moment; what it had finished comes with the error.
        """

    async def load_weights(self, path: Path | str, policy_version: int, *, label: str = "") -> None:
        """Sample with the weights at `path` from now on. On any error the engine keeps the weights that it has.

        Args:
            path: of a file or folder, as the kind of engine reads it.
            policy_version: what the run's clock calls them, >= 0.
            label: what servers call them, as `policy_follower.weights_label` makes it; names no other weights.

        Raises:
            FileNotFoundError: there is nothing at `path`.
            ValueError: what is there does not fit the engine, or policy_version is negative.
            EngineAwayError: the engine does not answer at the moment.
        """

    async def __aenter__(self) -> Self:
        """Open the engine."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close it, after the calls that are under way."""


def _check_column(name: str, column: npt.NDArray[np.generic], dtype: type[np.generic]) -> None:
    if column.dtype != dtype or column.ndim != 1:
        raise ValueError(f"{name} must be a flat {np.dtype(dtype)} array, got {column.dtype} of shape {column.shape}")
