"""A training state survives a kill at any moment, and nothing half-written is ever loaded."""

import logging
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.optim import AdamW, Optimizer

from groupreplay_trainer.checkpoint import (
    CheckpointFolder,
    Progress,
    TrainingCounters,
    TrainingState,
    TrainingStateError,
)
from groupreplay_trainer.policy_model import TinyLMPolicy

PROGRESS = Progress(
    run="r",
    table="t",
    step=1,
    lease_id="trainer-000001",
    counters=TrainingCounters(groups=3, updates=2),
    log_lengths={"train.jsonl": 17},
)


def train_a_little(model: TinyLMPolicy, optimizer: Optimizer, generator: torch.Generator) -> None:
    """Make one update on random tokens."""
    token_ids = torch.randint(2, 20, (3, 6), generator=generator)
    model.score(token_ids, token_ids > 0, temperature=1.0).logprobs_BT.mean().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad()


@pytest.fixture
def optimizer(model: TinyLMPolicy) -> AdamW:
    """Return an optimizer with moments."""
    optimizer = AdamW(model.parameters(), lr=1e-2)
    train_a_little(model, optimizer, torch.Generator().manual_seed(1))
    return optimizer


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    """Return an empty, prepared folder."""
    folder = CheckpointFolder(tmp_path / "checkpoints")
    folder.prepare()
    return folder


@pytest.fixture
def state(model: TinyLMPolicy, optimizer: AdamW) -> TrainingState:
    """Return a state worth saving."""
    return TrainingState.capture(PROGRESS, model=model, optimizer=optimizer, generator=torch.Generator())


def at_step(state: TrainingState, step: int) -> TrainingState:
    """Return the same state as that of another step."""
    return replace(state, progress=replace(state.progress, step=step))


def test_training_continues_from_a_checkpoint_as_if_it_had_not_stopped(
    model: TinyLMPolicy, optimizer: AdamW, folder: CheckpointFolder
) -> None:
    """Weights, moments and random numbers come back to the bit, so the next update is the same."""
    generator = torch.Generator().manual_seed(5)
    folder.save(TrainingState.capture(PROGRESS, model=model, optimizer=optimizer, generator=generator))
    train_a_little(model, optimizer, generator)
    expected = {name: tensor.clone() for name, tensor in model.weights().items()}
    fresh_optimizer, fresh_generator = AdamW(model.parameters(), lr=1e-2), torch.Generator()
    restored = folder.load_newest()
    assert restored is not None
    assert restored.progress == PROGRESS
    restored.restore(model=model, optimizer=fresh_optimizer, generator=fresh_generator)
    train_a_little(model, fresh_optimizer, fresh_generator)
    assert all(torch.equal(tensor, model.weights()[name]) for name, tensor in expected.items())


def test_a_restart_may_change_the_learning_rate(
    model: TinyLMPolicy, state: TrainingState, folder: CheckpointFolder
) -> None:
    """The checkpoint brings back the moments, not the settings."""
    folder.save(state)
    changed = AdamW(model.parameters(), lr=3e-5)
    folder.load(1).restore(model=model, optimizer=changed, generator=torch.Generator())
    assert changed.param_groups[0]["lr"] == 3e-5
    assert changed.state_dict()["state"][0]["step"] == 1


def test_the_newest_two_checkpoints_are_kept(state: TrainingState, folder: CheckpointFolder) -> None:
    """Older ones are removed; the one before the newest stays, to go back to."""
    for step in (8, 9, 10):
        folder.save(at_step(state, step))
    assert [folder.path(step).exists() for step in (8, 9, 10)] == [False, True, True]
    newest = folder.load_newest()
    assert newest is not None
    assert newest.progress.step == 10


def test_a_torn_a_damaged_and_a_foreign_file_are_named_and_skipped(
    state: TrainingState, folder: CheckpointFolder, caplog: pytest.LogCaptureFixture
) -> None:
    """The newest complete checkpoint is loaded, and the log says which files were not."""
    folder.save(at_step(state, 1))
    whole = folder.path(1).read_bytes()
    damaged = bytearray(whole)
    damaged[-40] ^= 1
    folder.path(2).write_bytes(bytes(damaged))
    folder.path(3).write_bytes(whole[:-7])
    save_file({"x": torch.zeros(1)}, folder.path(4))
    with caplog.at_level(logging.ERROR):
        newest = folder.load_newest()
    assert newest is not None
    assert newest.progress.step == 1
    for step in (2, 3, 4):
        assert str(folder.path(step)) in caplog.text
    for step, message in ((2, "damaged"), (3, "cannot be read"), (4, "not a training state"), (5, "cannot be read")):
        with pytest.raises(TrainingStateError, match=message):
            folder.load(step)


def test_a_trainer_killed_before_the_rename_leaves_the_checkpoint_before(
    state: TrainingState, folder: CheckpointFolder
) -> None:
    """SIGKILL between writing and renaming: the old state loads, and the leftover is swept on the next start."""
    folder.save(state)
    target = folder.path(2)
    script = (
        "import os, pathlib, signal, sys\n"
        "from groupreplay_trainer.durable_file import write_durably\n"
        "pathlib.Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_durably(pathlib.Path(sys.argv[1]), lambda path: path.write_bytes(b'half' * 1000))\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(target)], check=False, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    leftovers = list(target.parent.glob(".step-*"))
    assert len(leftovers) == 1
    newest = folder.load_newest()
    assert newest is not None
    assert newest.progress.step == 1
    folder.prepare()
    assert sorted(path.name for path in target.parent.iterdir()) == ["step-000001.safetensors"]


def test_a_dropped_checkpoint_is_gone(state: TrainingState, folder: CheckpointFolder) -> None:
    """An undone step is not resumed from; dropping it twice is harmless."""
    folder.save(at_step(state, 1))
    folder.save(at_step(state, 2))
    folder.drop(2)
    folder.drop(2)
    newest = folder.load_newest()
    assert newest is not None
    assert newest.progress.step == 1


def test_an_empty_folder_has_no_checkpoint(folder: CheckpointFolder) -> None:
    """A new run starts from None."""
    assert folder.load_newest() is None
