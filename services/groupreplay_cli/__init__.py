"""The `groupreplay` command: finds the subcommand, says what to install when its packages are absent."""

import os
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast, get_type_hints

from groupreplay import GroupReplayError, InvalidRequestError, __version__

PREFIX = "GROUPREPLAY_"
SHARED_VARIABLES = frozenset({f"{PREFIX}{name}" for name in ("TOKEN", "TOKEN_FILE", "CA_FILE")})
"""How to log in, for every command that connects to a service; a variable of one command beats them."""
_ADMIN_EXTRAS = ("admin", "export")
"""Of commands that leave it to main() to say why the service could not do what they asked."""


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
    "top": Command(
        "groupreplay_admin.top:top",
        "groupreplay_admin.top:TopSettings",
        "admin",
        "Watch runs and tables live.",
    ),
    "tables": Command(
        "groupreplay_admin.tables:tables",
        "groupreplay_admin.tables:TablesSettings",
        "admin",
        "List tables, or show all of one.",
    ),
    "groups": Command(
        "groupreplay_admin.groups:groups",
        "groupreplay_admin.groups:GroupsSettings",
        "admin",
        "List the groups of a table, or show one with its responses.",
    ),
    "diagnose": Command(
        "groupreplay_admin.diagnose:diagnose",
        "groupreplay_admin.diagnose:DiagnoseSettings",
        "admin",
        "Say why a batch is, or is not, ready.",
    ),
    "policy": Command(
        "groupreplay_admin.policy:policy",
        "groupreplay_admin.policy:PolicySettings",
        "admin",
        "Show or watch the policy version of a run.",
    ),
    "token": Command(
        "groupreplay_admin.token:token",
        "groupreplay_admin.token:TokenSettings",
        "admin",
        "Make, list and revoke the tokens that callers log in with.",
    ),
    "doctor": Command(
        "groupreplay_admin.doctor:doctor",
        "groupreplay_admin.doctor:DoctorSettings",
        "admin",
        "Check service, Redis, clocks and disk, and say what to mend.",
    ),
    "bench": Command(
        "groupreplay_admin.bench:bench",
        "groupreplay_admin.bench:BenchSettings",
        "admin",
        "Measure how fast a running service is.",
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
    """Run the command line; exit with 2 for a wrong call, 1 for what failed, else with what it returns."""
    try:
        from cyclopts import App, CycloptsError, config  # noqa: PLC0415  the SDK alone does not bring it
    except ImportError:
        sys.exit(
            "groupreplay: the command line needs more than the SDK; pip install 'groupreplay[demo]' brings all of it"
        )
    words, run_file = _take_run_file(sys.argv[1:])
    name = words[0] if words else ""
    sources: list[Any] = [
        config.Env(PREFIX),
        config.Env(PREFIX, command=False, show=False),
        *([config.Toml(run_file, must_exist=True)] if run_file else []),
    ]
    app = App(name="groupreplay", help=_HELP, version=__version__, config=sources)
    try:
        if name in COMMANDS:
            _refuse_unknown_variables(name, os.environ)
        if run_file:
            _refuse_unknown_sections(run_file)
        for command_name, command in COMMANDS.items():
            # The summary spares importing all commands to list them; the one that is called has its own words.
            own_words = {} if command_name == name else {"help": command.summary}
            app.command(command.function, name=command_name, **own_words)
        app.command("groupreplay_cli.completion:completion", name="completion")
        sys.exit(app(words, exit_on_error=False))
    except CycloptsError:  # it has said what is wrong
        sys.exit(2)
    except InvalidRequestError as error:
        print(f"groupreplay {name}: {error}; `groupreplay {name} --help` lists the settings", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # whoever read what it printed has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at the end would fail too
        sys.exit(1)
    except (GroupReplayError, OSError) as error:
        if name not in COMMANDS or COMMANDS[name].extra not in _ADMIN_EXTRAS:
            raise
        print(f"groupreplay {name}: {error}", file=sys.stderr)
        sys.exit(1)
    except ImportError as error:
        extra = COMMANDS[name].extra if name in COMMANDS else "demo"
        sys.exit(f"groupreplay {name}: {error}; pip install 'groupreplay[{extra}]'")


def _take_run_file(words: Sequence[str]) -> tuple[list[str], Path | None]:
    """Return the words without `--config FILE`, and the file."""
    rest, found = [], None
    left = iter(words)
    for word in left:
        flag, equals, value = word.partition("=")
        if flag != "--config":
            rest.append(word)
            continue
        found = value if equals else next(left, "")
        if not found:
            sys.exit("groupreplay: --config needs the path of a TOML file, for example --config run.toml")
    return rest, Path(found) if found else None


def _refuse_unknown_sections(path: Path) -> None:
    """Exit with 2 when the file is no TOML file, or a section of it is of no command."""
    try:
        sections = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        print(f"groupreplay: --config {path}: {error}", file=sys.stderr)
        sys.exit(2)
    if unknown := sorted(set(sections) - set(COMMANDS)):
        print(
            f"groupreplay: --config {path}: unknown section {', '.join(unknown)}; "
            f"there is one for each command: {', '.join(COMMANDS)}",
            file=sys.stderr,
        )
        sys.exit(2)


def _refuse_unknown_variables(name: str, environment: Iterable[str] | Mapping[str, str]) -> None:
    """Exit when a GROUPREPLAY_ variable is nobody's: a misspelt setting must not be silently ignored."""
    known = {variable_of(name, setting) for setting in setting_names(COMMANDS[name].settings)}
    others = tuple(f"{PREFIX}{other.upper()}_" for other in COMMANDS if other != name)
    unknown = sorted(
        variable
        for variable in environment
        if variable.startswith(PREFIX) and variable not in known | SHARED_VARIABLES and not variable.startswith(others)
    )
    if unknown:
        print(
            f"groupreplay {name}: unknown setting {', '.join(unknown)} in the environment; "
            f"`groupreplay {name} --help` lists the settings",
            file=sys.stderr,
        )
        sys.exit(2)


def variable_of(command: str, setting: str) -> str:
    """Return the environment variable of a setting of a command."""
    return f"{PREFIX}{command}_{setting}".replace(".", "_").upper()


def setting_names(path: str) -> list[str]:
    """Return the names of all settings of a class given as module:Class; those of a section as `section.name`."""
    module, _, attribute = path.partition(":")
    return list(_names_of(getattr(import_module(module), attribute)))


def _names_of(settings: type[Any]) -> Iterator[str]:
    types = get_type_hints(settings)
    for field in fields(settings):
        if is_dataclass(types[field.name]):
            yield from (f"{field.name}.{name}" for name in _names_of(cast(type[Any], types[field.name])))
        else:
            yield field.name


_HELP = """Prioritized group replay for RLVR training, as a service.

Start with `groupreplay demo`: it runs the whole loop on this machine. On a cluster each process is its own command:
`serve` keeps the groups, `generate` makes them, `train` learns from them.

Every setting is a flag, an environment variable, or a line of a TOML file given with `--config run.toml`, which has a
section for each command: `[train]`, `[train.optimizer]`, `[generate]`. A flag beats a variable, a variable the file.
"""
