"""Inference engines. `base` holds the interface; each engine is a module of its own, imported only by who uses it."""

from collections.abc import Callable
from pathlib import Path

from groupreplay_generator.engines.base import (
    Completion,
    Engine,
    EngineAwayError,
    EngineResult,
    FinishReason,
    Sampling,
)
from groupreplay_generator.sections import ENGINES, VllmSettings

__all__ = [
    "Completion",
    "Engine",
    "EngineAwayError",
    "EngineResult",
    "FinishReason",
    "Sampling",
    "create_engine",
    "engine_names",
]


def engine_names() -> tuple[str, ...]:
    """Return the names that `create_engine` knows, sorted."""
    return ENGINES


def create_engine(
    name: str,
    *,
    weights: Path,
    policy_version: int,
    label: str,
    version_of: Callable[[str], int | None],
    vllm: VllmSettings,
) -> Engine:
    """Return the engine `name`, to be opened with the weights of a policy version.

    Args:
        name: one of `engine_names`.
        weights, policy_version, label: what to open with, as of `Engine.load_weights`.
        version_of: finds the policy version of a label that a server says it samples with; None = not known.
        vllm: read by the engines of vLLM.

    Raises:
        ValueError: there is no engine of that name, or `weights` are not what it reads.
        FileNotFoundError: there is nothing at `weights`.
    """
    if name == "torch":
        from groupreplay_generator.engines.torch_engine import TorchEngine  # noqa: PLC0415  torch takes seconds

        return TorchEngine(weights, policy_version=policy_version)
    if name in {"vllm", "vllm-http"}:
        kind = _vllm_engine(name)
        return kind(weights, policy_version=policy_version, label=label, version_of=version_of, settings=vllm)
    raise ValueError(f"unknown engine {name!r}; known: {', '.join(engine_names())}")


def _vllm_engine(name: str) -> Callable[..., Engine]:
    """Import an engine of vLLM.

    Raises:
        ValueError: what it needs is not installed.
    """
    try:
        if name == "vllm-http":
            from groupreplay_generator.engines.vllm_http import VllmHttpEngine  # noqa: PLC0415  an extra brings httpx

            return VllmHttpEngine
        from groupreplay_generator.engines.vllm_engine import VllmEngine  # noqa: PLC0415  vLLM takes half a minute
    except ImportError as error:
        raise ValueError(f"engine {name} is not installed: {error}; pip install 'groupreplay[{name}]'") from error
    return VllmEngine
