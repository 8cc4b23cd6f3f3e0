"""A trainer that goes back to an older checkpoint, and what trainers tell the service of their groups."""

import shutil
from typing import Any

import pytest
from trainer.bench import RUN, TABLE, Bench, Killed, same

from groupreplay import Client, GroupFeedback, GroupState
from groupreplay_trainer.trainer import TrainingConflictError


async def test_a_trainer_goes_back_to_an_older_checkpoint(bench: Bench) -> None:
    """With --rewind the later steps are undone: clock and weights are those of the checkpoint, and it goes on."""
    await bench.insert(bench.make_groups(8))
    await bench.train(steps=1)
    old = bench.settings.run_dir.with_name("old")
    shutil.copytree(bench.settings.run_dir, old)
    await bench.train(steps=3)
    with pytest.raises(TrainingConflictError, match=r"policy version 3, .* of step 1: .* later steps with --rewind"):
        await bench.train(steps=2, run_dir=old)
    before = bench.weights(1)
    await bench.train(steps=1, run_dir=old, weights_dir=bench.settings.weights_folder, rewind=True)
    policy = await bench.client.get_policy(run=RUN)
    assert (policy.version, policy.rewinds) == (1, 1)
    assert same(bench.weights(1), before)
    trainer = await bench.train(steps=2, run_dir=old, weights_dir=bench.settings.weights_folder, rewind=True)
    assert (trainer.progress.step, await bench.version()) == (2, 2)
    lineage = await bench.client.get_lineage(run=RUN, table=TABLE, step=2)
    assert lineage.groups[0].group_id == "group-006"


async def test_a_trainer_tells_how_far_it_moved_from_each_group(bench: Bench) -> None:
    """KL and effective sample size of every group trained on, fresh ones included."""
    told: dict[int, list[GroupFeedback]] = {}

    class Listening(Client):
        def commit(self, **call: Any) -> bool:
            told[call["step"]] = list(call["feedback"])
            return super().commit(**call)

    await bench.insert(bench.make_groups(4))
    await bench.train(client=Listening)
    assert [item.group_id for item in told[1]] == ["group-000"]
    assert [item.group_id for item in told[2]] == ["group-002", "group-000"]
    for item in told[2]:
        assert item.kl is not None
        assert item.ess is not None
        assert item.kl >= 0
        assert 0 < item.ess <= 1
    stored = await bench.client.get_groups(["group-000"], run=RUN, table=TABLE)
    assert stored[0].times_sampled == 2


async def test_what_a_step_found_out_is_told_after_a_restart(bench: Bench) -> None:
    """The commit that a killed trainer left open carries the same feedback."""
    told: list[list[GroupFeedback]] = []

    class DiesAtCommit(Client):
        def commit(self, **call: Any) -> bool:
            told.append(list(call["feedback"]))
            raise Killed

    class Listening(Client):
        def commit(self, **call: Any) -> bool:
            told.append(list(call["feedback"]))
            return super().commit(**call)

    await bench.insert(bench.make_groups(2))
    with pytest.raises(Killed):
        await bench.train(client=DiesAtCommit, steps=1)
    await bench.train(client=Listening, steps=1)
    assert told[0] == told[1]
    assert told[0][0].group_id == "group-000"
    assert await bench.client.locate_groups(["group-000"], run=RUN, table=TABLE) == [GroupState.REPLAY]
