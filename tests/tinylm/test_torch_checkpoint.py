"""Checkpoints of the demo's model."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from groupreplay_tinylm import (
    CharTokenizer,
    CheckpointError,
    TinyLM,
    TinyLMConfig,
    builtin_checkpoint,
    load_checkpoint,
    save_checkpoint,
)

CONFIG = TinyLMConfig(vocab_size=CharTokenizer().vocab_size, layers=1, width=16, heads=2, max_positions=8)


def test_a_saved_model_is_loaded_with_the_same_weights_and_configuration(tmp_path: Path) -> None:
    """What the trainer publishes is what the generator samples from, to the bit."""
    model = TinyLM(CONFIG)
    save_checkpoint(tmp_path / "weights.safetensors", model)
    loaded = load_checkpoint(tmp_path / "weights.safetensors")
    assert loaded.config == CONFIG
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])


def test_a_model_saved_in_half_precision_is_loaded_in_single_precision(tmp_path: Path) -> None:
    """A small file to ship trains like any other."""
    save_checkpoint(tmp_path / "weights.safetensors", TinyLM(CONFIG), dtype=torch.float16)
    assert {parameter.dtype for parameter in load_checkpoint(tmp_path / "weights.safetensors").parameters()} == {
        torch.float32
    }


def test_a_checkpoint_is_replaced_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    """A reader finds the old weights or the new, and no temporary file stays behind."""
    path = tmp_path / "weights.safetensors"
    save_checkpoint(path, TinyLM(CONFIG))
    newer = TinyLM(CONFIG)
    save_checkpoint(path, newer)
    assert torch.equal(load_checkpoint(path).token_embedding.weight, newer.token_embedding.weight)
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    """Not even a temporary file is left when the new checkpoint cannot take its place."""
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        save_checkpoint(tmp_path / "taken", TinyLM(CONFIG))
    assert list(tmp_path.iterdir()) == [tmp_path / "taken"]


def test_a_missing_checkpoint_is_reported_by_path(tmp_path: Path) -> None:
    """The error names the file that was looked for."""
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*absent"):
        load_checkpoint(tmp_path / "absent.safetensors")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    """Text where weights should be is an error that says so."""
    (tmp_path / "weights.safetensors").write_text("not weights at all")
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        load_checkpoint(tmp_path / "weights.safetensors")


def test_the_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    """A safetensors file from elsewhere is an error that says what is missing."""
    save_file({"weight": torch.zeros(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match="is not a TinyLM checkpoint: it has no metadata"):
        load_checkpoint(tmp_path / "weights.safetensors")


def test_weights_that_do_not_fit_their_configuration_are_refused(tmp_path: Path) -> None:
    """A damaged file is an error rather than a model with some random weights."""
    model = TinyLM(CONFIG)
    del model.blocks[0]
    save_checkpoint(tmp_path / "weights.safetensors", model)
    with pytest.raises(CheckpointError, match="do not fit its configuration"):
        load_checkpoint(tmp_path / "weights.safetensors")


@pytest.mark.parametrize("task_name", ["addition", "countdown", "countdown3", "countdown4"])
def test_every_task_has_a_built_in_checkpoint_of_the_shared_tokenizer(task_name: str) -> None:
    """The demo starts from weights that come with the package."""
    assert load_checkpoint(builtin_checkpoint(task_name)).config.vocab_size == CharTokenizer().vocab_size


def test_the_built_in_checkpoints_are_small() -> None:
    """Installing the package does not download more than 4 MB of weights."""
    assert sum(path.stat().st_size for path in {builtin_checkpoint("addition"), builtin_checkpoint("countdown")}) < 4e6


def test_a_task_without_a_checkpoint_is_answered_with_those_that_have_one() -> None:
    """A misspelt task name gets the list of the right ones."""
    with pytest.raises(ValueError, match="'chess'; there is one for: addition, countdown, countdown3, countdown4"):
        builtin_checkpoint("chess")
