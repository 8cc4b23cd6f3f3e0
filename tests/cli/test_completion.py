"""`groupreplay completion`."""

import subprocess
import sys
from pathlib import Path

import pytest
from cli.in_process import IN_PROCESS, Run
from processes import plain_environment

from groupreplay_cli import COMMANDS

pytestmark = IN_PROCESS

# What Bash does when Tab is pressed behind these words.
COMPLETE = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_groupreplay
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script for Bash."""
    command = [sys.executable, "-m", "groupreplay_cli", "completion", "bash"]
    printed = subprocess.run(command, capture_output=True, check=True, env=plain_environment()).stdout
    path = tmp_path_factory.mktemp("completion") / "groupreplay.bash"
    path.write_bytes(printed)
    return path


def completed(script: Path, *words: str) -> set[str]:
    """Return what a real Bash offers for the last of the words."""
    command = ["bash", "--norc", "-c", COMPLETE, "bash", str(script), "groupreplay", *words]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.stderr == ""
    return set(ran.stdout.split())


def test_bash_completes_commands(script: Path) -> None:
    """All of them, or those that begin as what was typed."""
    assert completed(script, "") >= {*COMMANDS, "completion"}
    assert completed(script, "d") == {"diagnose", "doctor", "demo"}


def test_bash_completes_flags_and_choices(script: Path) -> None:
    """Of the command that was typed, also inherited ones."""
    assert completed(script, "groups", "--po") == {"--policy-version-from", "--policy-version-to"}
    assert completed(script, "doctor", "--se") == {"--server"}
    assert "--grpc-listen" in completed(script, "serve", "--")
    assert "--optimizer.lr" in completed(script, "train", "--opt")
    assert completed(script, "groups", "--state", "") == {"fresh", "leased", "replay"}
    assert completed(script, "policy", "w") == {"watch"}


@pytest.mark.parametrize(("shell", "words"), [("zsh", "#compdef groupreplay"), ("fish", "complete -c groupreplay")])
def test_other_shells_have_scripts_too(command: Run, shell: str, words: str) -> None:
    """Written by the same library."""
    ended = command("completion", shell)
    assert ended.status == 0
    assert words in ended.output
    assert "doctor" in ended.output


def test_a_command_that_is_not_installed_is_completed_by_its_name(
    command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody needs all extras to complete what is there."""
    for name in ("groupreplay_trainer.command", "groupreplay_demo.command"):
        monkeypatch.setitem(sys.modules, name, None)
    ended = command("completion", "bash")
    assert ended.status == 0
    assert "--optimizer.lr" not in ended.output
    assert "train" in ended.output


def test_an_unknown_shell_is_a_wrong_call(command: Run) -> None:
    """Status 2."""
    assert command("completion", "tcsh").status == 2
