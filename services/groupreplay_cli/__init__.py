"""The `groupreplay` command: finds the subcommand, says what to install when its packages are absent."""

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from importlib import import_module

from groupreplay import InvalidRequestError, __version__

PREFIX = "GROUPREPLAY_"


@dataclass(frozen=True, slots=True)
class Command:
    """A subcommand: where its function and its settings are, and which extra brings what they import."""

    function: str
    settings: str
    extra: str
    summary: str


COMMANDS = {
    "serve": Command(
        "groupreplay_server.command:run_server",
        "groupreplay_server.settings:ServerSettings",
        "server",
        "Run the replay service.",
    ),
    "generate": Command(
        "groupreplay_generator.command:generate",
        "groupreplay_generator.settings:GeneratorSettings",
        "generator",
        "Generate scored rollout groups for a table.",
    ),
    "train": Command(
        "groupreplay_trainer.command:train",
        "groupreplay_trainer.settings:TrainerSettings",
        "trainer",
        "Train a policy on batches from a table.",
    ),
    "evaluate": Command(
        "groupreplay_generator.command:evaluate",
        "groupreplay_generator.settings:EvaluatorSettings",
        "generator",
        "Measure the policies of a run on held-out problems.",
    ),
    "diagnose": Command(
        "groupreplay_admin.diagnose:diagnose",
        "groupreplay_admin.diagnose:DiagnoseSettings",
        "admin",
        "Say why a batch is, or is not, ready.",
    ),
    "snapshot": Command(
        "groupreplay_admin.keeping:snapshot",
        "groupreplay_admin.keeping:SnapshotSettings",
        "admin",
        "Write a table to a file, while it is in use.",
    ),
    "restore": Command(
        "groupreplay_admin.keeping:restore",
        "groupreplay_admin.keeping:RestoreSettings",
        "admin",
        "Make a new table of a snapshot file.",
    ),
    "export": Command(
        "groupreplay_admin.export:export",
        "groupreplay_admin.export:ExportSettings",
        "export",
        "Write a table to a Parquet file, for analysis.",
    ),
    "demo": Command(
        "groupreplay_demo.command:demo",
        "groupreplay_demo.settings:DemoSettings",
        "demo",
        "Show the whole loop on this machine in a few minutes.",
    ),
}


def main() -> None:
    """Run the command line; exit with 2 for a wrong call, 1 for what went wrong, 0 otherwise."""
    try:
        from cyclopts import App, config  # noqa: PLC0415  the SDK alone does not bring it
    except ImportError:
        sys.exit(
            "groupreplay: the command line needs more than the SDK; pip install 'groupreplay[demo]' brings all of it"
        )
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    app = App(name="groupreplay", help=_HELP, version=__version__, config=[config.Env(PREFIX)])
    try:
        if name in COMMANDS:
            _refuse_unknown_variables(name, os.environ)
        for command_name, command in COMMANDS.items():
            # The summary spares importing all commands to list them; the one that is called has its own words.
            own_words = {} if command_name == name else {"help": command.summary}
            app.command(command.function, name=command_name, **own_words)
        sys.exit(app())
    except InvalidRequestError as error:
        print(f"groupreplay {name}: {error}; `groupreplay {name} --help` lists the settings", file=sys.stderr)
        sys.exit(2)
    except ImportError as error:
        extra = COMMANDS[name].extra if name in COMMANDS else "demo"
        sys.exit(f"groupreplay {name}: {error}; pip install 'groupreplay[{extra}]'")


def _refuse_unknown_variables(name: str, environment: Iterable[str] | Mapping[str, str]) -> None:
    """Exit when a GROUPREPLAY_ variable is nobody's: a misspelt setting must not be silently ignored."""
    known = {f"{PREFIX}{name.upper()}_{field}" for field in _field_names(COMMANDS[name].settings)}
    others = tuple(f"{PREFIX}{other.upper()}_" for other in COMMANDS if other != name)
    unknown = sorted(
        variable
        for variable in environment
        if variable.startswith(PREFIX) and variable not in known and not variable.startswith(others)
    )
    if unknown:
        print(
            f"groupreplay {name}: unknown setting {', '.join(unknown)} in the environment; "
            f"`groupreplay {name} --help` lists the settings",
            file=sys.stderr,
        )
        sys.exit(2)


def _field_names(path: str) -> list[str]:
    module, _, attribute = path.partition(":")
    return [field.name.upper() for field in fields(getattr(import_module(module), attribute))]


_HELP = """Prioritized group replay for RLVR training, as a service.

Start with `groupreplay demo`: it runs the whole loop on this machine. On a cluster each process is its own command:
`serve` keeps the groups, `generate` makes them, `train` learns from them.
"""
