"""Trainers and generators compare published weights by one digest."""

import subprocess
from pathlib import Path

import pytest

from groupreplay.weights import weights_sha256


def _sha256sum(folder: Path, *names: str) -> bytes:
    return subprocess.run(["sha256sum", *names], cwd=folder, check=True, capture_output=True).stdout


def test_the_digest_of_a_file_is_that_of_sha256sum(tmp_path: Path) -> None:
    """Anybody can check it by hand."""
    (tmp_path / "weights").write_bytes(b"some weights")
    assert _sha256sum(tmp_path, "weights").split()[0].decode() == weights_sha256(tmp_path / "weights")


def test_the_digest_of_a_folder_is_that_of_the_lines_of_sha256sum(tmp_path: Path) -> None:
    """The order in which files were written makes no difference, and hidden files are left out."""
    model, lines = tmp_path / "model", tmp_path / "lines"
    (model / "sub").mkdir(parents=True)
    for name in ("sub/c", "b", ".hidden", "a"):
        (model / name).write_text(name)
    lines.write_bytes(_sha256sum(model, "a", "b", "sub/c"))
    before = weights_sha256(model)
    assert before == _sha256sum(tmp_path, "lines").split()[0].decode()
    (model / "b").rename(model / "d")
    assert weights_sha256(model) != before


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    """The caller learns which path was tried."""
    with pytest.raises(FileNotFoundError, match="nothing"):
        weights_sha256(tmp_path / "nothing")
