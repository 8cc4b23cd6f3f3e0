"""A trainer that is killed at any moment trains on every group exactly as if it had not been."""

import json
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trainer.bench import Live

from groupreplay import AsyncClient, RolloutGroup
from groupreplay_server.app import RunningServer
from groupreplay_tinylm import load_checkpoint
from groupreplay_trainer.checkpoint import CheckpointFolder, TrainingState
from groupreplay_trainer.policy_model import TinyLMPolicy

STEPS = 6
BATCH_SIZE = 4


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


async def test_ten_kills_at_random_points_change_nothing(
    live: Live,
    settings: Callable[[str], dict[str, Any]],
    client: AsyncClient,
    fresh_groups: Callable[[int], list[RolloutGroup]],
    tmp_path: Path,
) -> None:
    """Also in the middle of an update: groups, weights, moments, learning rates and random numbers are the same."""
    steps = 20
    optimizer = {"minibatches": 3, "lr": 1e-2, "schedule": "cosine", "warmup_steps": 3}
    changes: dict[str, Any] = {"steps": steps, "optimizer": optimizer}
    for run in ("undisturbed", "killed"):
        assert await live(settings(run) | changes | {"steps": 0}) == 0
        async for result in client.insert_many(each(fresh_groups(steps * BATCH_SIZE)), run=run, table="rollouts"):
            assert result.error is None
    assert await live(settings("undisturbed") | changes) == 0
    random = np.random.default_rng(11)
    for _ in range(10):
        # About 20 points a step, so that ten lives of a step and a half at the mean leave some for the last one.
        status = await live(settings("killed") | changes, at=int(random.integers(0, 60)), between=True)
        assert status == -signal.SIGKILL
    assert await live(settings("killed") | changes) == 0
    expected, actual = tmp_path / "undisturbed", tmp_path / "killed"
    assert (actual / "groups.jsonl").read_text() == (expected / "groups.jsonl").read_text()
    lines = lines_of(actual / "train.jsonl")
    assert lines == lines_of(expected / "train.jsonl")
    assert sum(line["refilled"] for line in lines) > steps
    assert lines[0]["lr"] < lines[3]["lr"] == 1e-2 > lines[-1]["lr"]
    states = [CheckpointFolder(path / "checkpoints").load(steps) for path in (expected, actual)]
    assert_same_state(*states)
    assert states[0].progress.counters == states[1].progress.counters
    assert states[0].progress.feedback == states[1].progress.feedback
    assert (await client.get_policy(run="killed")).version == steps
    tables = [await client.describe_table(run=run, table="rollouts") for run in ("undisturbed", "killed")]
    assert tables[0].replay == tables[1].replay > 0
    assert tables[1].leases == tables[1].fresh == 0


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


def assert_same_state(expected: TrainingState, actual: TrainingState) -> None:
    """Compare weights, moments and random generator of two training states to the bit."""
    assert torch.equal(expected.generator, actual.generator)
    assert expected.weights.keys() == actual.weights.keys()
    assert all(torch.equal(tensor, actual.weights[name]) for name, tensor in expected.weights.items())
    assert expected.optimizer.keys() == actual.optimizer.keys()
    for number, moments in expected.optimizer.items():
        assert moments.keys() == actual.optimizer[number].keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(tensor, actual.optimizer[number][name]) for name, tensor in moments.items())


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Return the lines of train.jsonl without what depends on time."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.endswith("_s")} for line in lines]
