"""A tiny model, and groups and batches to train it on."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trainer.bench import NEVER, RUN, TABLE, Bench, Live

from groupreplay import AsyncClient, Batch, DeliveredGroup, GroupSource, RolloutGroup
from groupreplay_server.app import RunningServer
from groupreplay_tinylm import CharTokenizer, TinyLM, TinyLMConfig
from groupreplay_trainer.policy_model import TinyLMPolicy
from groupreplay_trainer.sections import ModelSettings, OptimizerSettings
from groupreplay_trainer.settings import TrainerSettings

MakeGroup = Callable[..., DeliveredGroup]
MakeBatch = Callable[..., Batch]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def model() -> TinyLMPolicy:
    """Return a freshly initialised model, the same for every test."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = TinyLMConfig(vocab_size=CharTokenizer().vocab_size, layers=1, width=16, heads=2, max_positions=16)
        return TinyLMPolicy(TinyLM(config))


@pytest.fixture
def make_group() -> MakeGroup:
    """Return a factory of delivered groups with random tokens; responses of the given lengths end in EOS."""

    def make(  # noqa: PLR0917
        group_id: str = "g0",
        rewards: Sequence[float] = (1.0, 0.0, 0.0),
        lengths: Sequence[int] = (3, 2, 4),
        source: GroupSource = GroupSource.FRESH,
        staleness: int = 0,
        times_sampled: int = 1,
        prompt: Sequence[int] = (5, 6, 7),
        loss_mask: Sequence[bool] | None = None,
        redeliveries: int = 0,
    ) -> DeliveredGroup:
        rng = np.random.default_rng(len(group_id) + sum(lengths))
        pieces = [[*rng.integers(2, 21, length - 1).tolist(), CharTokenizer.eos_id] for length in lengths]
        tokens = [token for piece in pieces for token in piece]
        group = RolloutGroup(
            group_id=group_id,
            prompt_id=f"prompt-{group_id}",
            prompt_token_ids=np.array(prompt, np.int32),
            response_token_ids=np.array(tokens, np.int32),
            response_lengths=np.array(lengths, np.int32),
            behaviour_logprobs=-rng.uniform(0.1, 4.0, len(tokens)).astype(np.float32),
            rewards=np.array(rewards, np.float32),
            policy_version_min=3,
            policy_version_max=3,
            loss_mask=None if loss_mask is None else np.array(loss_mask, np.bool_),
        )
        return DeliveredGroup(
            group=group,
            source=source,
            staleness=staleness,
            times_sampled=times_sampled,
            probability=1.0,
            redeliveries=redeliveries,
        )

    return make


@pytest.fixture
def make_batch() -> MakeBatch:
    """Return a factory of batches of the given groups; the fresh ones count as effective."""

    def make(groups: Sequence[DeliveredGroup], *, batch_size: int | None = None, ineffective: int = 0) -> Batch:
        fresh = sum(item.source is GroupSource.FRESH for item in groups)
        size = len(groups) if batch_size is None else batch_size
        return Batch(
            lease_id="trainer-000001",
            lease_deadline_ms=0,
            policy_version=3,
            batch_size=size,
            fresh=fresh + ineffective,
            fresh_effective=fresh,
            refilled=len(groups) - fresh,
            shortfall=size - len(groups),
            groups=tuple(groups),
        )

    return make


@pytest.fixture
def fresh_groups(make_group: MakeGroup) -> Callable[[int], list[RolloutGroup]]:
    """Return a factory of groups to insert, of policy version 0; every other one is ineffective."""

    def make(count: int) -> list[RolloutGroup]:
        rewards = ((1.0, 0.0, 0.0), (0.0, 0.0, 0.0))
        groups = [
            make_group(f"group-{i:03d}", rewards=rewards[i % 2], lengths=(2, 3, 2 + i % 5)).group for i in range(count)
        ]
        return [replace(group, policy_version_min=0, policy_version_max=0) for group in groups]

    return make


@pytest.fixture
def bench(
    server: RunningServer,
    client: AsyncClient,
    model: TinyLMPolicy,
    fresh_groups: Callable[[int], list[RolloutGroup]],
    tmp_path: Path,
) -> Iterator[Bench]:
    """Return a bench whose trainers make two steps on batches of two groups."""
    model.save(tmp_path / "start.safetensors")
    settings = TrainerSettings(
        server=server.grpc_address,
        run=RUN,
        table=TABLE,
        run_dir=tmp_path / "run",
        model=ModelSettings(path=str(tmp_path / "start.safetensors")),
        steps=2,
        batch_size=2,
        optimizer=OptimizerSettings(minibatches=2, lr=1e-2),
    )
    bench = Bench(settings, client, fresh_groups)
    yield bench
    bench.stop.set()


@pytest.fixture(scope="session")
def lives() -> Iterator[subprocess.Popen[str]]:
    """Start the process whose forks train."""
    script = Path(__file__).parent / "lives.py"
    process = subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield process
    process.communicate(timeout=30)


@pytest.fixture
def live(lives: subprocess.Popen[str]) -> Live:
    """Return a coroutine function that runs one life of a trainer, up to a signal before its `at`th lasting effect.

    It returns the exit status, negative for a signal.
    """

    def run(request: dict[str, Any]) -> int:
        assert lives.stdin is not None
        assert lives.stdout is not None
        lives.stdin.write(json.dumps(request) + "\n")
        lives.stdin.flush()
        return int(lives.stdout.readline())

    async def run_beside_the_loop(
        settings: dict[str, Any], *, at: int = NEVER, name: str = "SIGKILL", between: bool = False
    ) -> int:
        request = {"settings": settings, "signal": name, "at": at, "between": between}
        return await asyncio.to_thread(run, request)

    return run_beside_the_loop
