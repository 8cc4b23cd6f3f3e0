"""`groupreplay completion`: what a shell needs to complete commands and flags."""

from importlib import import_module
from typing import Literal

from cyclopts import App

from groupreplay import __version__
from groupreplay_cli import COMMANDS, Command


def completion(shell: Literal["bash", "zsh", "fish"], /) -> int:
    """Print a script that makes a shell complete commands, flags and their choices.

    For this session: `source <(groupreplay completion bash)`. For all: put what it prints into
    ~/.local/share/bash-completion/completions/groupreplay (bash), a folder of $fpath as _groupreplay (zsh), or
    ~/.config/fish/completions/groupreplay.fish (fish).

    Parameters
    ----------
    shell
        The shell to write for.
    """
    app = App(name="groupreplay", help="Prioritized group replay for RLVR training.", version=__version__)
    for name, command in COMMANDS.items():
        if _is_installed(command):
            app.command(command.function, name=name)
        else:
            app.command(_not_installed, name=name, help=command.summary)
    app.command(completion, name="completion")
    print(app.generate_completion(shell=shell))
    return 0


def _is_installed(command: Command) -> bool:
    try:
        import_module(command.function.partition(":")[0])
    except ImportError:
        return False
    return True


def _not_installed() -> None:
    """Stand for a command whose packages are not here: its name is completed, its flags are not."""
