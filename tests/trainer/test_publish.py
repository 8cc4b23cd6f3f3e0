"""Published weights can be loaded by the engine, and are what the service is told."""

import hashlib
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import pytest
import torch

from groupreplay_tinylm import load_checkpoint
from groupreplay_trainer.policy_model import TinyLMPolicy
from groupreplay_trainer.publish import WeightsFolder


def test_the_announced_file_holds_the_weights(model: TinyLMPolicy, tmp_path: Path) -> None:
    """URI and SHA-256 lead to a checkpoint of exactly these weights; a path with spaces survives."""
    folder = WeightsFolder(tmp_path / "my weights", keep=2)
    folder.prepare()
    policy = folder.publish(model, run="r", version=12)
    assert (policy.run, policy.version) == ("r", 12)
    path = Path(url2pathname(urlparse(policy.weights_uri).path))
    assert path.name == "policy-000012.safetensors"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == policy.weights_sha256
    loaded = load_checkpoint(path).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.weights().items())


def test_a_folder_knows_the_weights_it_was_announced_with(model: TinyLMPolicy, tmp_path: Path) -> None:
    """After a restart, weights that are there to the byte need not be published again; others must be."""
    folder = WeightsFolder(tmp_path, keep=2)
    policy = folder.publish(model, run="r", version=3)
    assert folder.holds(policy)
    assert not folder.holds(replace(policy, version=2))
    (tmp_path / "policy-000003.safetensors").write_bytes(b"other")
    assert not folder.holds(policy)


def test_the_last_few_versions_are_kept(model: TinyLMPolicy, tmp_path: Path) -> None:
    """Old files go, foreign files and the recent versions stay, leftovers of a killed trainer are swept."""
    folder = WeightsFolder(tmp_path, keep=2)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".policy-000001.safetensors.abc").write_text("half")
    folder.prepare()
    for version in range(4):
        folder.publish(model, run="r", version=version)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["notes.txt", "policy-000002.safetensors", "policy-000003.safetensors"]
    with pytest.raises(ValueError, match="keep 1"):
        WeightsFolder(tmp_path, keep=1)
