"""A step that met numbers that are not finite has not happened, and its batch is kept for a look."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from trainer.bench import RUN, TABLE, Bench, same

from groupreplay import GroupState, RolloutGroup
from groupreplay_tinylm import load_checkpoint
from groupreplay_trainer.checkpoint import CheckpointFolder, TrainingState
from groupreplay_trainer.failures import NonFinite, NonFiniteError, RejectedStepError
from groupreplay_trainer.parts import adamw, update_settings
from groupreplay_trainer.policy_model import TinyLMPolicy
from groupreplay_trainer.rejected import KEEP, read_rejected, write_rejected
from groupreplay_trainer.sections import LossSettings, OptimizerSettings
from groupreplay_trainer.update import PolicyUpdater

ABSURD = (3e38, -3e38, 0.0)
"""Rewards that are finite, and whose gradient is not."""
UNSCALED = LossSettings(advantages="dr-grpo")
"""GRPO's division by the standard deviation would make good of them."""


def with_absurd(groups: Sequence[RolloutGroup], *places: int) -> list[RolloutGroup]:
    """Return effective groups, of which those at the given places have absurd rewards."""
    return [
        replace(
            group,
            group_id=f"absurd-{index}" if index in places else group.group_id,
            rewards=torch.tensor(ABSURD if index in places else (1.0, 0.0, 0.0)).numpy(),
        )
        for index, group in enumerate(groups)
    ]


def states(bench: Bench, *steps: int) -> list[TrainingState]:
    """Return training states from disk."""
    folder = CheckpointFolder(bench.settings.run_dir / "checkpoints")
    return [folder.load(step) for step in steps]


def equal(left: TrainingState, right: TrainingState) -> bool:
    """Return whether weights, moments and random generator are equal to the bit."""
    moments = all(same(dict(left.optimizer[number]), dict(right.optimizer[number])) for number in left.optimizer)
    return same(dict(left.weights), dict(right.weights)) and moments and torch.equal(left.generator, right.generator)


async def test_a_step_that_diverges_is_undone_and_explained(bench: Bench) -> None:
    """By default the trainer ends: groups are fresh again, nothing of the step is on disk but the rejected batch."""
    await bench.insert(bench.make_groups(3)[::2])
    with pytest.raises(RejectedStepError, match=r"step 1 was undone: .* Likely: .*lower optimizer.lr") as caught:
        await bench.train(optimizer=OptimizerSettings(minibatches=2, lr=1e30))
    report = bench.settings.run_dir / "rejected/step-000001.json"
    assert str(report) in str(caught.value)
    assert "--on-nonfinite skip-step" in str(caught.value)
    table = await bench.table()
    assert (table.fresh, table.leases, await bench.version()) == (2, 0, 0)
    assert not (bench.settings.run_dir / "train.jsonl").exists()
    await bench.train(steps=1)
    assert [line["fresh_group_ids"] for line in bench.log("groups.jsonl")] == [["group-000", "group-002"]]
    assert not same(bench.weights(1), bench.weights(0))


async def test_a_rejected_batch_says_what_it_was_and_can_be_trained_on_again(bench: Bench) -> None:
    """The JSON file names the group that stands out; its arrays make the same update fail again."""
    await bench.insert(with_absurd(bench.make_groups(2), 1))
    with pytest.raises(RejectedStepError):
        await bench.train(loss=UNSCALED)
    found = read_rejected(bench.settings.run_dir / "rejected/step-000001.json")
    assert (found.description["step"], found.description["lease_id"]) == (1, "trainer-000001")
    assert found.description["settings"]["loss"]["advantages"] == "dr-grpo"
    normal, absurd = found.description["groups"]
    assert (normal["group_id"], absurd["group_id"], absurd["source"]) == ("group-000", "absurd-1", "fresh")
    assert absurd["rewards"] == pytest.approx(ABSURD)
    assert max(absurd["advantages"]) > 1e38
    assert absurd["tokens_without_finite_logprob"] == 0
    settings = replace(bench.settings, loss=UNSCALED)
    model = TinyLMPolicy(load_checkpoint(settings.model.path))
    optimizer, generator = adamw(model, settings.optimizer), torch.Generator().manual_seed(settings.seed)
    updater = PolicyUpdater(model, optimizer, settings=update_settings(settings), generator=generator)
    with pytest.raises(NonFiniteError) as caught:
        updater.update(found.rollouts)
    assert str(caught.value) == found.description["what"]
    torch.testing.assert_close(caught.value.proximal_logprobs_BT, found.proximal_logprobs_BT)


async def test_a_broken_model_is_not_trained(bench: Bench, tmp_path: Path) -> None:
    """An infinite weight gives tokens no probability, and leaving steps out would not mend it."""
    model = load_checkpoint(bench.settings.model.path)
    next(model.parameters()).data[:, 0] = torch.inf
    TinyLMPolicy(model).save(Path(bench.settings.model.path))
    await bench.insert(bench.make_groups(2))
    with pytest.raises(RejectedStepError, match="of 7 tokens have no finite log probability under the policy before"):
        await bench.train(on_nonfinite="skip-update")
    description = json.loads((bench.settings.run_dir / "rejected/step-000001.json").read_text())
    assert description["groups"][0]["tokens_without_finite_logprob"] > 0
    assert "check the model" in description["likely_causes"]


async def test_a_step_may_be_left_out(bench: Bench) -> None:
    """Its groups are used, its weights, moments and random numbers those of the step before, also without a restart."""
    settings: dict[str, Any] = {"on_nonfinite": "skip-step", "loss": UNSCALED, "algorithm": "grpo-filter"}
    bench.settings = replace(bench.settings, **settings)
    await bench.insert(with_absurd(bench.make_groups(6), 2))
    await bench.train(steps=2)
    assert equal(*states(bench, 1, 2))
    assert same(bench.weights(2), bench.weights(1))
    lines = bench.log()
    assert [line["rejected"] for line in lines] == [False, True]
    assert (lines[1]["loss"], lines[1]["updates"], lines[1]["ess"], lines[1]["effective_ratio"]) == (None, 0, None, 1)
    assert (lines[1]["total_groups"], lines[1]["total_fresh"], lines[1]["total_rejected_steps"]) == (2, 4, 1)
    assert await bench.client.locate_groups(["absurd-2"], run=RUN, table=TABLE) == [GroupState.GONE]
    await bench.train(steps=3)
    (restarted,) = states(bench, 3)
    assert not equal(restarted, states(bench, 2)[0])
    elsewhere = replace(bench.settings, run="again", run_dir=bench.settings.run_dir / "again")
    again = Bench(elsewhere, bench.client, bench.make_groups)
    await again.client.create_table(run="again", table=TABLE, config=bench.settings.table_config())
    for group in with_absurd(bench.make_groups(6), 2):
        await again.client.insert(group, run="again", table=TABLE)
    await again.train(steps=3)
    assert equal(restarted, states(again, 3)[0])


async def test_three_rejected_steps_in_a_row_end_the_trainer(bench: Bench) -> None:
    """Then it is not the batch; the count outlives restarts, and a step that trains begins it anew."""
    settings: dict[str, Any] = {"on_nonfinite": "skip-step", "loss": UNSCALED, "algorithm": "grpo-filter"}
    bench.settings = replace(bench.settings, **settings)
    await bench.insert(with_absurd(bench.make_groups(12), 0, 2, 6, 8, 10))
    await bench.train(steps=2)
    await bench.train(steps=5)
    with pytest.raises(RejectedStepError, match=r"step 6 was undone: .* 3 steps in a row were rejected"):
        await bench.train(steps=6)
    assert [line["rejected"] for line in bench.log()] == [True, True, False, True, True]
    assert (await bench.table()).leases == 0


async def test_updates_that_are_not_finite_may_be_left_out_alone(bench: Bench) -> None:
    """The other update of the step is made."""
    await bench.insert(with_absurd(bench.make_groups(2), 1))
    await bench.train(steps=1, on_nonfinite="skip-update", loss=UNSCALED)
    (line,) = bench.log()
    assert (line["skipped_updates"], line["updates"], line["rejected"]) == (1, 1, False)
    assert not same(bench.weights(1), bench.weights(0))
    assert not (bench.settings.run_dir / "rejected").exists()


async def test_the_newest_rejected_batches_are_kept(bench: Bench) -> None:
    """A run that rejects many does not fill the disk."""
    await bench.insert(with_absurd(bench.make_groups(2), 1))
    with pytest.raises(RejectedStepError):
        await bench.train(loss=UNSCALED)
    folder = bench.settings.run_dir / "rejected"
    found = read_rejected(folder / "step-000001.json")
    batch = await bench.client.next_batch(run=RUN, table=TABLE, batch_size=2, lease_id="look", timeout_s=5.0)
    error = NonFiniteError(NonFinite.LOSS, "a test", proximal_logprobs_BT=found.proximal_logprobs_BT)
    for step in range(2, KEEP + 3):
        write_rejected(folder, step, batch, found.rollouts, error, settings=bench.settings)
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        f"step-{step:06d}.{ending}" for step in range(3, KEEP + 3) for ending in ("json", "npz")
    )
    await bench.client.release(run=RUN, table=TABLE, lease_id="look")
