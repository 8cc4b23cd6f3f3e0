"""The log has one line for every finished step, whenever the trainer was killed."""

import json
import logging
from pathlib import Path

import pytest

from groupreplay_trainer.run_folder import RunFolder, RunFolderBusyError
from groupreplay_trainer.step_log import GROUP_LOG, TRAIN_LOG, StepLog


def test_lines_of_steps_that_were_never_completed_are_cut(tmp_path: Path) -> None:
    """Lines written after the checkpoint's lengths, torn ones too, disappear on resume."""
    log = StepLog(tmp_path)
    assert log.is_empty()
    lengths = log.append({TRAIN_LOG: {"step": 1}, GROUP_LOG: {"step": 1}})
    log.append({TRAIN_LOG: {"step": 2}, GROUP_LOG: {"step": 2}})
    with (tmp_path / TRAIN_LOG).open("ab") as file:
        file.write(b'{"step": 3, "tor')
    log.cut(lengths)
    for name in (TRAIN_LOG, GROUP_LOG):
        lines = (tmp_path / name).read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1]
    assert not log.is_empty()
    log.cut({})
    assert log.is_empty()


def test_a_log_that_somebody_shortened_is_not_filled_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A missing line is reported; the file is not extended with zeros."""
    log = StepLog(tmp_path)
    with caplog.at_level(logging.WARNING):
        log.cut({TRAIN_LOG: 100})
    assert "lines were removed" in caplog.text
    assert not (tmp_path / TRAIN_LOG).exists()


def test_numbers_that_json_does_not_have_are_refused(tmp_path: Path) -> None:
    """A nan would make the line unreadable to others."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        StepLog(tmp_path).append({TRAIN_LOG: {"loss": float("nan")}})


def test_two_trainers_cannot_share_a_run_folder(tmp_path: Path) -> None:
    """The second is told so; once the first has ended, it may."""
    with RunFolder(tmp_path / "run"), pytest.raises(RunFolderBusyError, match="another trainer"):
        RunFolder(tmp_path / "run").__enter__()
    with RunFolder(tmp_path / "run") as folder:
        assert folder.checkpoints.parent == tmp_path / "run"
