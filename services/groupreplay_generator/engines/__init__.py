"""Inference engines. `base` holds the interface; each engine is a module of its own, imported only by who uses it."""

from pathlib import Path

from groupreplay_generator.engines.base import Completion, Engine, EngineResult, FinishReason, Sampling

__all__ = ["Completion", "Engine", "EngineResult", "FinishReason", "Sampling", "create_engine", "engine_names"]


def engine_names() -> tuple[str, ...]:
    """Return the names that `create_engine` knows, sorted."""
    return ("torch",)


def create_engine(name: str, *, weights: Path, policy_version: int) -> Engine:
    """Return the engine `name`, to be opened with the weights of a policy version.

    Raises:
        ValueError: there is no engine of that name.
    """
    if name == "torch":
        from groupreplay_generator.engines.torch_engine import TorchEngine  # noqa: PLC0415  torch takes seconds

        return TorchEngine(weights, policy_version=policy_version)
    raise ValueError(f"unknown engine {name!r}; known: {', '.join(engine_names())}")
