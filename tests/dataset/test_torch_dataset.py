"""GroupDataset: batches of a real service as tensors, under leases that outlive everything but their commit."""

import subprocess
import sys
import threading
from dataclasses import fields
from typing import Any

import pytest
import torch
from dataset.conftest import Bench
from processes import wait_until
from samples import ids
from torch.utils.data import DataLoader
from torch.utils.data._utils import worker

from groupreplay import BatchNotReadyError, GroupState, LeaseExpiredError, StepConflictError
from groupreplay.groups import now_ms
from groupreplay.torch import AdvantageEstimator, GroupDataset, StepBatch, TrainingBatch, collate

DIES_IN_STEP_2 = """
import os, signal, sys
from groupreplay.torch import GroupDataset
address, run = sys.argv[1:]
for item in GroupDataset(address, run=run, table="train", batch_size=2, pad_token_id=0, prefetch=1):
    print(item.step, *(delivered.group.group_id for delivered in item.batch.groups), flush=True)
    if item.step == 2:
        os.kill(os.getpid(), signal.SIGKILL)
"""


class TrainingFailedError(Exception):
    """Stands for whatever goes wrong in a step."""


def same(left: TrainingBatch, right: TrainingBatch) -> bool:
    """Whether two batches hold the same tensors."""
    return all(torch.equal(getattr(left, field.name), getattr(right, field.name)) for field in fields(TrainingBatch))


@pytest.mark.parametrize("prefetch", [0, 2])
def test_each_step_is_a_batch_in_tensors_and_one_commit(bench: Bench, prefetch: int) -> None:
    """Steps count from 1, tensors are those of the groups, and a second iteration goes on where the first ended."""
    inserted = bench.insert(8)
    steps: list[StepBatch] = []
    with bench.dataset(steps=2, prefetch=prefetch, advantages=AdvantageEstimator.RLOO, pad_token_id=7) as dataset:
        for _ in range(2):
            for item in dataset:
                assert dataset.commit(item.step) is False
                steps.append(item)
        assert dataset.next_step == 5
    assert [item.step for item in steps] == [1, 2, 3, 4]
    assert [name for item in steps for name in ids(item.batch)] == inserted
    for item in steps:
        assert item.rollouts is not None
        assert same(item.rollouts, collate(item.batch, pad_token_id=7, estimator=AdvantageEstimator.RLOO))
        assert [group.group_id for group in item.outline.groups] == ids(item.batch)
        assert item.response_tokens == int(item.rollouts.response_lengths_B.sum())
    table = bench.describe()
    assert (table.replay, table.leases, table.counters["leases_committed"]) == (8, 0, 4)


def test_tensors_move_to_a_device(bench: Bench) -> None:
    """All of them, and nothing else changes."""
    bench.insert(2)
    with bench.dataset() as dataset:
        item = next(iter(dataset))
        moved = item.to("meta")
        assert moved.rollouts is not None
        assert {getattr(moved.rollouts, field.name).device.type for field in fields(TrainingBatch)} == {"meta"}
        assert (moved.step, moved.batch) == (item.step, item.batch)


def test_a_trainer_that_was_killed_gets_the_same_groups_again(bench: Bench) -> None:
    """The lease is named after the step, so whoever asks for the step again has its batch; prefetched ones too."""
    bench.insert(8)
    died = subprocess.run(
        [sys.executable, "-c", DIES_IN_STEP_2, bench.address, bench.run], capture_output=True, text=True, check=False
    )
    before = {int(step): names for step, *names in map(str.split, died.stdout.splitlines())}
    assert list(before) == [1, 2], died.stderr
    with bench.dataset(first_step=2, steps=2) as dataset:
        assert dataset.commit(1) is False  # its checkpoint was on disk
        after = {}
        for item in dataset:
            after[item.step] = ids(item.batch)
            dataset.commit(item.step)
    assert after[2] == before[2]
    assert not set(after[3]) & {name for names in before.values() for name in names}
    assert bench.describe().counters["leases_committed"] == 3
    assert "redelivered" not in bench.describe().counters


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("how", ["break", "error"])
def test_an_iteration_that_ends_early_gives_its_groups_back(bench: Bench, prefetch: int, how: str) -> None:
    """What was committed stays so; the batch in hand and those taken ahead go back at once."""
    bench.insert(10)

    def train(dataset: GroupDataset) -> None:
        for item in dataset:
            if item.step == 2:
                bench.until(leases=1 + prefetch)
                if how == "break":
                    break
                raise TrainingFailedError
            dataset.commit(item.step)

    dataset = bench.dataset(prefetch=prefetch)
    if how == "break":
        train(dataset)
    else:
        with pytest.raises(TrainingFailedError):
            train(dataset)
    table = bench.describe()
    assert (table.fresh, table.replay, table.leases) == (8, 2, 0)
    assert table.counters["batches"] == 2 + prefetch
    for item in dataset:  # step 2 has not happened, and comes again
        assert (item.step, ids(item.batch)) == (2, ["g002", "g003"])
        assert item.batch.groups[0].redeliveries == 1
        dataset.commit(item.step)
        break
    dataset.close()
    assert (bench.describe().replay, bench.describe().leases) == (4, 0)


def test_closing_gives_back_what_was_not_committed(bench: Bench) -> None:
    """An iterator that somebody still holds keeps no groups from others."""
    bench.insert(6)
    dataset = bench.dataset(prefetch=1)
    iterator = iter(dataset)
    next(iterator)
    bench.until(leases=2)
    dataset.close()
    assert (bench.describe().fresh, bench.describe().leases) == (6, 0)
    iterator.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("prefetch", "versions"), [(0, [0, 1]), (1, [0, 0])])
def test_a_prefetched_batch_is_drawn_before_the_step_before_ends(
    bench: Bench, prefetch: int, versions: list[int]
) -> None:
    """Without prefetch the next batch is of the policy that this step made; with it, of the one before."""
    bench.insert(4)
    found = []
    with bench.dataset(steps=2, prefetch=prefetch) as dataset:
        for item in dataset:
            found.append(item.batch.policy_version)
            if item.step == 1:
                bench.until(leases=1 + prefetch)
            dataset.commit(item.step)
            bench.advance(item.step)
    assert found == versions


def test_a_lease_lives_as_long_as_the_training_of_its_step(bench: Bench) -> None:
    """Far beyond lease_s, and no longer than the commit."""
    bench.insert(2)
    with bench.dataset(lease_s=1.0) as dataset:
        item = next(iterator := iter(dataset))
        first_ms = item.batch.lease_deadline_ms
        wait_until(lambda: now_ms() > first_ms + 500, "the first deadline passes")
        [lease] = bench.client.diagnose(**bench.names, batch_size=2).leases
        assert lease.deadline_ms > first_ms
        assert bench.client.locate_groups(ids(item.batch), **bench.names) == [GroupState.LEASED] * 2
        assert dataset.commit(item.step) is False
        del iterator


def test_a_lease_that_was_lost_is_told_by_the_commit(bench: Bench) -> None:
    """Somebody else released it and trained on its groups: this trainer must not count its step."""
    bench.insert(2)
    with bench.dataset() as dataset:
        for item in dataset:
            bench.client.release(lease_id=item.batch.lease_id, **bench.names)
            with pytest.raises(LeaseExpiredError):
                dataset.commit(item.step)
            assert dataset.next_step == 1
            break


def test_a_commit_may_be_repeated_after_a_restart(bench: Bench) -> None:
    """By a dataset that has not taken that batch; and a step of the past is no step to train again."""
    bench.insert(2)
    with bench.dataset(steps=1) as dataset:
        assert [dataset.commit(item.step) for item in dataset] == [False]
    with bench.dataset() as dataset:
        assert dataset.commit(1) is True
        assert dataset.next_step == 2
    with bench.dataset() as dataset, pytest.raises(StepConflictError, match="committed with step 1"):
        next(iter(dataset))


@pytest.mark.parametrize("prefetch", [0, 1])
def test_a_batch_that_does_not_come_is_an_error_that_says_what_is_missing(bench: Bench, prefetch: int) -> None:
    """It comes out of the loop in its turn, and leaves no lease."""
    bench.insert(3)
    with bench.dataset(timeout_s=0.2, prefetch=prefetch) as dataset:
        iterator = iter(dataset)
        assert ids(next(iterator).batch) == ["g000", "g001"]
        with pytest.raises(BatchNotReadyError, match="has 1 of the 2 fresh groups"):
            next(iterator)
    assert (bench.describe().fresh, bench.describe().leases) == (3, 0)


def test_leaving_does_not_wait_for_a_batch_that_does_not_come(bench: Bench) -> None:
    """The prefetch thread that waits for groups ends with the loop."""
    bench.insert(2)
    dataset = bench.dataset(prefetch=1, timeout_s=3600.0)
    for _ in dataset:
        bench.until(missing=2)
        break
    assert not [thread for thread in threading.enumerate() if thread.name == "groupreplay-prefetch"]
    dataset.close()
    assert (bench.describe().fresh, bench.describe().leases) == (2, 0)


@pytest.mark.parametrize("workers", [{}, {"num_workers": 1, "prefetch_factor": 1, "multiprocessing_context": "spawn"}])
def test_a_data_loader_passes_batches_on(bench: Bench, workers: dict[str, Any]) -> None:
    """With batch_size=None, in this process or from one worker; commits are made here."""
    inserted = bench.insert(6)
    found = []
    with bench.dataset(steps=3) as dataset:
        for item in DataLoader(dataset, batch_size=None, **workers):
            assert isinstance(item, StepBatch)
            assert item.rollouts is not None
            assert len(item.rollouts) == 4
            found += ids(item.batch)
            assert dataset.commit(item.step) is False
    assert found == inserted
    assert (bench.describe().replay, bench.describe().leases) == (6, 0)


def test_several_workers_are_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would take the batches of the same steps."""
    dataset = bench.dataset()
    # What a worker of a DataLoader finds; one that raises when it starts costs the loader ten seconds.
    monkeypatch.setattr(worker, "_worker_info", worker.WorkerInfo(id=0, num_workers=2, seed=0, dataset=dataset))
    with pytest.raises(ValueError, match="num_workers 2: each worker would take the batches of the same steps"):
        iter(dataset)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps 0 is below 1"),
        ({"prefetch": -1}, "prefetch -1 is below 0"),
        ({"rank": 0}, "rank 0 and world_size None belong together"),
        ({"rank": 2, "world_size": 2}, "rank 2 is not in 0 to world_size 2 - 1"),
        ({"rank": 0, "world_size": 2}, "torch.distributed, which is not initialized"),
    ],
)
def test_arguments_that_cannot_work_are_refused(bench: Bench, options: dict[str, Any], message: str) -> None:
    """With what was passed, and what would do."""
    with pytest.raises(ValueError, match=message):
        iter(bench.dataset(**options))
