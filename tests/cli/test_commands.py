"""The `groupreplay` command: what all subcommands have in common."""

import subprocess
import sys
from pathlib import Path

import pytest
from processes import plain_environment

from groupreplay_cli import COMMANDS, PREFIX


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `groupreplay` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "groupreplay_cli", *arguments],
        env=plain_environment() | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_help_lists_all_commands() -> None:
    """And says which to start with."""
    ran = run("--help")
    assert ran.returncode == 0
    for name, command in COMMANDS.items():
        assert name in ran.stdout
        assert command.summary in ran.stdout
    assert "Start with groupreplay demo" in ran.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "--rollouts-per-prompt", "0"], "rollouts_per_prompt 0 must be at least 1"),
        (["evaluate", "--every", "0"], "every 0 must be at least 1"),
        (["train", "--steps", "-1"], "steps -1 must be at least 0"),
        (["train", "--run", "a/b"], "run 'a/b' is not 1 to 128 characters of A-Z"),
        (["train", "--algorithm", "grpo", "--preset", "robust"], "preset 'robust' caps behaviour weights, which"),
    ],
)
def test_a_setting_out_of_range_is_said_in_one_line(arguments: list[str], message: str) -> None:
    """Status 2, the value, its limit and where to read on; no traceback."""
    ran = run(*arguments)
    assert ran.returncode == 2
    assert ran.stderr.startswith(f"groupreplay {arguments[0]}: {message}")
    assert f"`groupreplay {arguments[0]} --help`" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_a_misspelt_variable_is_refused_by_every_command(name: str) -> None:
    """It would be ignored silently otherwise."""
    variable = f"{PREFIX}{name.upper()}_SEAD"
    ran = run(name, **{variable: "1"})
    assert ran.returncode == 2
    assert f"unknown setting {variable} in the environment" in ran.stderr


def test_a_run_file_has_a_section_for_each_command(tmp_path: Path) -> None:
    """What a flag or a variable says counts more than the file."""
    file = tmp_path / "run.toml"
    file.write_text("[train]\nsteps = -1\n[train.optimizer]\nlr = -2.0\n[generate]\ntask = 'addition'\n")
    assert "lr -2.0 must be" in run("train", "--config", str(file)).stderr
    assert "lr -3.0 must be" in run("train", f"--config={file}", GROUPREPLAY_TRAIN_OPTIMIZER_LR="-3").stderr
    assert "steps -1 must be" in run("train", "--config", str(file), "--optimizer.lr", "1").stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[trian]\nsteps = 1\n", "unknown section trian"),
        ("[train.optimizer]\nlrr = 1\n", "[optimizer][lrr]"),
        ("[train\n", "Expected"),
    ],
)
def test_a_misspelt_key_of_a_run_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    """It would be ignored silently otherwise."""
    file = tmp_path / "run.toml"
    file.write_text(content)
    ran = run("train", "--config", str(file))
    assert ran.returncode != 0
    assert message in ran.stderr


def test_a_run_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """And one that was not given at all."""
    assert "nothing.toml" in run("train", "--config", str(tmp_path / "nothing.toml")).stderr
    assert "needs the path" in run("train", "--config").stderr
