"""A trainer that is killed at any moment trains on every group exactly as if it had not been."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from groupreplay import AsyncClient, RolloutGroup
from groupreplay_server.app import RunningServer
from groupreplay_tinylm import load_checkpoint
from groupreplay_trainer.policy_model import TinyLMPolicy

STEPS = 6
BATCH_SIZE = 4

NEVER = 10**9

Live = Callable[..., Awaitable[int]]


@pytest.fixture(scope="module")
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

    async def run_beside_the_loop(settings: dict[str, Any], *, at: int = NEVER, name: str = "SIGKILL") -> int:
        return await asyncio.to_thread(run, {"settings": settings, "signal": name, "at": at})

    return run_beside_the_loop


@pytest.fixture
def settings(server: RunningServer, model: TinyLMPolicy, tmp_path: Path) -> Callable[[str], dict[str, Any]]:
    """Return a function that gives the settings of a run by its name."""
    model.save(tmp_path / "start.safetensors")
    return lambda run: {
        "server": server.grpc_address,
        "run": run,
        "run_dir": str(tmp_path / run),
        "model": {"path": str(tmp_path / "start.safetensors")},
        "steps": STEPS,
        "batch_size": BATCH_SIZE,
        "optimizer": {"minibatches": 2, "lr": 1e-2},
        "threads": 1,
    }


async def test_lives_that_end_by_sigkill_add_up_to_one_undisturbed_run(
    live: Live,
    settings: Callable[[str], dict[str, Any]],
    client: AsyncClient,
    fresh_groups: Callable[[int], list[RolloutGroup]],
    tmp_path: Path,
) -> None:
    """Killed before its first lasting effect, then before its second, and so on: same groups, weights and log."""
    for run in ("undisturbed", "killed"):
        assert await live(settings(run) | {"steps": 0}) == 0
        async for result in client.insert_many(each(fresh_groups(STEPS * BATCH_SIZE)), run=run, table="rollouts"):
            assert result.error is None
    assert await live(settings("undisturbed")) == 0
    kills = 0
    while (status := await live(settings("killed"), at=kills)) != 0:
        assert status == -signal.SIGKILL
        kills += 1
    assert kills > 10
    expected, actual = tmp_path / "undisturbed", tmp_path / "killed"
    assert (actual / "groups.jsonl").read_text() == (expected / "groups.jsonl").read_text()
    assert lines_of(actual / "train.jsonl") == lines_of(expected / "train.jsonl")
    weights = [
        load_checkpoint(path / f"weights/policy-{STEPS:06d}.safetensors").state_dict() for path in (expected, actual)
    ]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert (await client.get_policy(run="killed")).version == STEPS
    tables = [await client.describe_table(run=run, table="rollouts") for run in ("undisturbed", "killed")]
    assert tables[0].replay == tables[1].replay > 0
    assert tables[1].leases == 0


async def test_a_trainer_killed_at_its_very_start_leaves_a_run_that_can_begin(
    live: Live, settings: Callable[[str], dict[str, Any]], client: AsyncClient
) -> None:
    """Between creating the run, its first checkpoint and version 0, nothing can be left that stops the next start."""
    kills = 0
    while (status := await live(settings("new") | {"steps": 0}, at=kills)) != 0:
        assert status == -signal.SIGKILL
        kills += 1
    assert kills >= 4
    policy = await client.get_policy(run="new")
    assert policy.version == 0
    assert policy.weights_uri.endswith("policy-000000.safetensors")


async def test_sigterm_ends_a_trainer_cleanly_between_two_lasting_effects(
    live: Live,
    settings: Callable[[str], dict[str, Any]],
    client: AsyncClient,
    fresh_groups: Callable[[int], list[RolloutGroup]],
) -> None:
    """Told to stop before, in and after a step, it exits with 0, holds no lease, and step and version agree."""
    assert await live(settings("ended") | {"steps": 0}) == 0
    async for result in client.insert_many(each(fresh_groups(2 * BATCH_SIZE)), run="ended", table="rollouts"):
        assert result.error is None
    for at in (0, 3, 6, 9):
        assert await live(settings("ended") | {"steps": 2}, at=at, name="SIGTERM") == 0
        table = await client.describe_table(run="ended", table="rollouts")
        assert table.leases == 0
        assert table.policy_version == 2 - table.fresh // BATCH_SIZE
    assert table.policy_version == 2


async def each(groups: Sequence[RolloutGroup]) -> AsyncIterator[RolloutGroup]:
    """Yield groups as insert_many wants them."""
    for group in groups:
        yield group


def assert_same_weights(expected: Path, actual: Path) -> None:
    """Compare two published policies to the bit."""
    weights = load_checkpoint(actual).state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in load_checkpoint(expected).state_dict().items())


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Return the lines of train.jsonl without what depends on time."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.endswith("_s")} for line in lines]
