"""What is the same for a vLLM behind HTTP and one in this process: its weights, and how its answers become results."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self

import numpy as np

from groupreplay_generator.engines.base import Completion, EngineAwayError, EngineResult, Sampling

LOADING: Final = "loading "
"""Begins the label of a vLLM that is given new weights: what it holds until that is done is nobody's version."""

VersionOf = Callable[[str], int | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A Hugging Face model folder, and its names."""

    path: Path
    version: int
    """Of the run's policy clock."""
    label: str
    """Of vLLM."""

    @property
    def salt(self) -> str:
        """Keeps apart what vLLM remembers of prompts, so that no new weights go on from what old ones made of one.

        A digest, because vLLM takes few characters for it.
        """
        return hashlib.blake2b(self.label.encode(), digest_size=16).hexdigest()

    @classmethod
    def at(cls, path: Path | str, version: int, label: str) -> Self:
        """Return the weights at `path`.

        Raises:
            FileNotFoundError: there is nothing at `path`.
            ValueError: what is there is no Hugging Face model folder, or version is negative.
        """
        if version < 0:
            raise ValueError(f"policy_version must be >= 0, got {version}")
        folder = Path(path).absolute()
        if not folder.exists():
            raise FileNotFoundError(f"there are no weights at {folder}")
        # Looked for here because a vLLM that fails to load weights does not survive it.
        if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
            raise ValueError(
                f"{folder} is not a Hugging Face model folder, which vLLM needs: config.json and *.safetensors"
            )
        return cls(path=folder, version=version, label=label or f"{version}@{folder}")


class Versions:
    """Finds the policy version of a label: of the weights this engine loaded, or of those that others know of."""

    def __init__(self, version_of: VersionOf) -> None:
        """Ask `version_of` for the labels of weights that this engine did not load."""
        self._version_of = version_of
        self._loaded: dict[str, int] = {}

    def add(self, weights: Weights) -> None:
        """Take note of weights that this engine loads."""
        self._loaded[weights.label] = weights.version

    def find(self, label: str) -> int:
        """Return the policy version of a label.

        Raises:
            EngineAwayError: nobody knows it, so tokens sampled with it are of no use.
        """
        version = self._loaded.get(label)
        if version is None:
            version = self._version_of(label)
        if version is None:
            raise EngineAwayError(f"tokens came from weights {label!r}, which are of no policy known here")
        return version

    def spans(self, starts: Sequence[tuple[int, str]]) -> tuple[tuple[int, int], ...]:
        """Return (first token, policy version) from (first token, label), without spans of no token.

        Raises:
            EngineAwayError: as `find`.
        """
        # Where two labels begin at one token, the first of them sampled nothing.
        return tuple((start, self.find(label)) for start, label in dict(starts).items())


def seed_of(sampling: Sampling, prompt_index: int) -> int | None:
    """Return the seed of one prompt of a call; vLLM makes those of its rollouts from it."""
    if sampling.seed is None:
        return None
    return int(np.random.SeedSequence([sampling.seed, prompt_index]).generate_state(1, np.uint64)[0] >> np.uint64(2))


def rollouts_to_ask(sampling: Sampling, rollouts: int) -> int:
    """Return how many responses to ask vLLM for: at temperature 0 it answers once, as all would be the same."""
    return 1 if sampling.temperature == 0 else rollouts


def check_prompt(prompt: str, tokens: int, sampling: Sampling, max_model_tokens: int) -> None:
    """Raise ValueError for a prompt that is empty or leaves no room for the response."""
    limit = max_model_tokens - sampling.max_response_tokens
    if not 0 < tokens <= limit:
        raise ValueError(
            f"prompt {prompt[:80]!r} has {tokens} tokens; with max_response_tokens "
            f"{sampling.max_response_tokens} this server takes 1 to {limit}"
        )


def completion_of(
    *,
    token_ids: Sequence[int],
    logprobs: Sequence[float],
    finish_reason: str | None,
    text: str,
    temperature: float,
    version_spans: tuple[tuple[int, int], ...] = (),
) -> Completion:
    """Return a completion from what vLLM says of one.

    Raises:
        EngineAwayError: vLLM ended it before its time, or tokens and log probabilities are not as many.
    """
    reasons: dict[str | None, Literal["stop", "length"]] = {"stop": "stop", "length": "length"}
    if finish_reason not in reasons:
        raise EngineAwayError(f"vLLM ended a response after {len(token_ids)} tokens with {finish_reason!r}")
    if not token_ids or len(token_ids) != len(logprobs):
        raise EngineAwayError(f"vLLM gave {len(token_ids)} tokens and {len(logprobs)} log probabilities of a response")
    # At temperature 0 vLLM reports the model's own distribution, yet the token was certain.
    behaviour = np.zeros(len(logprobs)) if temperature == 0 else np.asarray(logprobs)
    return Completion(
        token_ids=np.asarray(token_ids, dtype=np.int32),
        behaviour_logprobs=behaviour.astype(np.float32),
        finish_reason=reasons[finish_reason],
        text=text,
        version_spans=version_spans,
    )


def result_of(
    prompt_token_ids: Sequence[int], completions: Sequence[Completion], *, rollouts: int, versions: Sequence[int] = ()
) -> EngineResult:
    """Return the result of a prompt whose tokens were sampled with some of `versions`; spans know it better.

    Raises:
        EngineAwayError: vLLM gave another number of responses than it was asked for.
    """
    if not completions or rollouts % len(completions):
        raise EngineAwayError(f"vLLM gave {len(completions)} responses, not {rollouts}")
    seen = [version for completion in completions for _, version in completion.version_spans] or versions
    return EngineResult(
        prompt_token_ids=np.asarray(prompt_token_ids, dtype=np.int32),
        completions=tuple(completions) * (rollouts // len(completions)),
        policy_version_min=min(seen),
        policy_version_max=max(seen),
    )
