"""Processes of an earlier version of this repository, out of its history."""

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("clients", "services", "protos")


def check_out(commit: str, folder: Path) -> Path:
    """Write the sources of a commit to a folder, and return it; skip the test where the clone does not reach so far."""
    packed = subprocess.run(["git", "archive", commit, *SOURCES], cwd=ROOT, capture_output=True, check=False)
    if packed.returncode != 0:
        pytest.skip(f"this clone has no commit {commit}: {packed.stderr.decode().strip()[:200]}")
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def environment_of(tree: Path) -> dict[str, str]:
    """Return an environment in which Python takes groupreplay from a tree."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GROUPREPLAY_")}
    return {**kept, "PYTHONPATH": f"{tree / 'clients/python'}:{tree / 'services'}"}


def start(tree: Path, program: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a program that uses the SDK of a tree."""
    return subprocess.Popen(
        [sys.executable, str(program), *arguments], env=environment_of(tree), stdout=subprocess.PIPE, text=True
    )
