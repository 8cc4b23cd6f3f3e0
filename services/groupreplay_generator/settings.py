"""Settings of the generator and of the evaluator: flags, or GROUPREPLAY_GENERATE_* and GROUPREPLAY_EVALUATE_*."""

import math
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path

from cyclopts import Parameter

from groupreplay.connection import Connection
from groupreplay.errors import InvalidRequestError
from groupreplay.groups import check_name
from groupreplay.logs import LogFormat
from groupreplay.tracing import TraceSettings
from groupreplay_generator.sections import MetricsSettings, VllmSettings, check_engine


def _own_name() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorSettings(Connection):
    """What to generate, and for whom.

    Raises:
        InvalidRequestError: a number is out of range, or a name has characters that the service refuses.
    """

    run: str = "default"
    """Training run: whose policy to generate with."""
    table: str = "rollouts"
    """Table to insert into; the trainer creates it."""
    producer_id: str = field(default_factory=_own_name)
    """Names this generator; a restarted one should keep its name. Default: host and process id."""
    task: str = "addition"
    """Problems and their verifier: addition, countdown3, countdown4, geometry, geometry-tiny, reasoning-gym:NAME,
    math:PATH.jsonl, math:hf:DATASET, or your own as package.module:Class. See docs/reference/tasks.md."""
    engine: str = "torch"
    """What samples. torch: the tiny model on the CPU of this process; vllm-http: a vLLM server; vllm: vLLM in this
    process."""
    rollouts_per_prompt: int = 8
    """G, the rollouts of a group."""
    prompts_at_once: int = 64
    """Groups generated in one go, at most; new weights are taken up between two goes."""
    temperature: float = 1.0
    """Sampling temperature; the trainer must recompute log probabilities at the same."""
    seed: int = 0
    """Seed of the problems and of the sampling."""
    train_problems: int = 2000
    """Size of the training set: so many problems of the task are drawn from, over and over."""
    max_response_tokens: int | None = None
    """Limit of a response, EOS included; by default what the task asks for."""
    reward_workers: int | None = None
    """Processes that score responses; 0 = this one, with no time limit. Default: none for built-in tasks whose verifier
    is trivial, else one for each processor, at most 4."""
    reward_timeout_s: float = 10.0
    """Seconds that scoring one response may take; then its process is killed and replaced."""
    reward_on_error: float = 0.0
    """Reward of a response whose verifier hangs, dies, raises or returns no finite number."""
    threads: int | None = None
    """Processor threads of torch; all by default."""
    insert_timeout_s: float = 60.0
    """Seconds to try to insert groups before saying so; it goes on trying after that."""
    inserted_log: Path | None = None
    """Append the id of every acknowledged group to this file, to account for them afterwards."""
    log_format: LogFormat = "text"
    """text: lines for people; json: an object a line, for programs."""

    vllm: VllmSettings = field(default_factory=VllmSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    trace: TraceSettings = field(default_factory=TraceSettings)

    def __post_init__(self) -> None:
        check_engine(self.engine, self.vllm, threads=self.threads)
        for name in ("run", "table", "producer_id"):
            check_name(getattr(self, name), name)
        for name in ("rollouts_per_prompt", "prompts_at_once", "train_problems"):
            if getattr(self, name) < 1:
                raise InvalidRequestError(f"{name} {getattr(self, name)} must be at least 1")
        if not self.temperature > 0:
            raise InvalidRequestError(f"temperature {self.temperature} must be above 0; greedy groups have no variance")
        _check_scoring(self)


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatorSettings(Connection):
    """Which policy versions to measure on held-out problems, and how."""

    run: str = "default"
    """Training run whose policy to measure."""
    task: str = "addition"
    """Problems and their verifier: addition, countdown3, countdown4, geometry, geometry-tiny, reasoning-gym:NAME,
    math:PATH.jsonl, math:hf:DATASET, or your own as package.module:Class. See docs/reference/tasks.md."""
    engine: str = "torch"
    """What samples. torch: the tiny model on the CPU of this process; vllm-http: a vLLM server; vllm: vLLM in this
    process."""
    output: Path = Path("evaluations.jsonl")
    """One JSON line per measured policy version is appended here."""
    every: int = 10
    """Measure when the policy is at least so many versions newer than the one measured before."""
    last_version: int | None = None
    """Measure this version too, then end; without it the evaluator runs until it is stopped."""
    problems: int = 256
    """Held-out problems."""
    rollouts_per_prompt: int = 4
    """Responses per problem; accuracy is the mean over all of them."""
    temperature: float = 1.0
    """Sampling temperature; 0 = greedy."""
    seed: int = 0
    """Seed of the problems and of the sampling; the same at every version."""
    max_response_tokens: int | None = None
    """Limit of a response, EOS included; by default what the task asks for."""
    reward_workers: int | None = None
    """Processes that score responses; 0 = this one, with no time limit. Default: none for built-in tasks whose verifier
    is trivial, else one for each processor, at most 4."""
    reward_timeout_s: float = 10.0
    """Seconds that scoring one response may take; then its process is killed and replaced."""
    reward_on_error: float = 0.0
    """Reward of a response whose verifier hangs, dies, raises or returns no finite number."""
    threads: int | None = None
    """Processor threads of torch; all by default."""
    log_format: LogFormat = "text"
    """text: lines for people; json: an object a line, for programs."""

    vllm: VllmSettings = field(default_factory=VllmSettings)

    def __post_init__(self) -> None:
        check_engine(self.engine, self.vllm, threads=self.threads)
        check_name(self.run, "run")
        for name in ("every", "problems", "rollouts_per_prompt"):
            if getattr(self, name) < 1:
                raise InvalidRequestError(f"{name} {getattr(self, name)} must be at least 1")
        _check_scoring(self)


def _check_scoring(settings: GeneratorSettings | EvaluatorSettings) -> None:
    limit = settings.max_response_tokens
    if limit is not None and limit < 1:
        raise InvalidRequestError(f"max_response_tokens {limit} must be at least 1")
    workers = settings.reward_workers
    if workers is not None and workers < 0:
        raise InvalidRequestError(f"reward_workers {workers} must be at least 0; 0 = score in the process itself")
    if not 0 < settings.reward_timeout_s < math.inf:
        raise InvalidRequestError(f"reward_timeout_s {settings.reward_timeout_s} must be above 0 and finite")
    if not math.isfinite(settings.reward_on_error):
        raise InvalidRequestError(f"reward_on_error {settings.reward_on_error} must be finite: it is a reward")
