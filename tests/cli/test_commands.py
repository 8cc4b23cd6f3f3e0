"""The `groupreplay` command: what all subcommands have in common."""

import subprocess
import sys

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
