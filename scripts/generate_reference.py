"""Write generated pages of docs/reference from the code; --check fails when the committed pages differ."""

import argparse
import ast
import inspect
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast, get_type_hints

from groupreplay import Diagnosis, ListedGroup, Policy, Table, Token
from groupreplay.errors import ERRORS
from groupreplay_admin.bench import Measurement
from groupreplay_admin.checks import Check
from groupreplay_admin.observing import Pace
from groupreplay_admin.statuses import Status
from groupreplay_admin.whole_group import ShownGroup, ShownRollout
from groupreplay_cli import COMMANDS, variable_of
from groupreplay_generator import metrics as generator_metrics
from groupreplay_server.api.grpc_access import MAX_METADATA_BYTES
from groupreplay_server.api.grpc_api import MAX_MESSAGE_BYTES
from groupreplay_server.api.grpc_server import CORE_MESSAGE_BYTES, CORE_METADATA_BYTES
from groupreplay_server.api.http_access import MAX_HEADER_BYTES
from groupreplay_server.api.metric_families import FAMILIES, Family, RedisFamily, TableFamily
from groupreplay_trainer.alarms import ALARMS
from groupreplay_trainer.metrics import ALARM, MEASURES, PREFIX, UNDONE, Measure

FOLDER = Path(__file__).resolve().parent.parent / "docs/reference"


_ERRORS_HEAD = """# Errors

Every failed call names its reason: in the trailing metadata `groupreplay-reason` over gRPC, as `reason` of the
problem over [REST](rest.md), as an exception class in the SDK (all are `groupreplay.GroupReplayError`). The message
says what was tried, the value, the limit and the fix. The SDK makes calls that failed for a retryable reason again by
itself, until their timeout.

| reason | exception | gRPC code | HTTP status | retryable | meaning |
|---|---|---|---|---|---|"""


_ERRORS_OF_LIBRARIES = f"""## Without a reason

What the libraries below the doors refuse before the service sees it has no reason, and is in no metric. The SDK gives
it one by its status; clients in other languages go by the status.

| what | gRPC or HTTP says | the SDK raises |
|---|---|---|
| a gRPC message above {CORE_MESSAGE_BYTES // 2**20} MiB; between {MAX_MESSAGE_BYTES // 2**20} MiB and that it is MESSAGE_TOO_LARGE | RESOURCE_EXHAUSTED `Received message larger than max` | `MessageTooLargeError` |
| headers of a gRPC call above {CORE_METADATA_BYTES // 2**10} KiB; between {MAX_METADATA_BYTES // 2**10} KiB and that they are MESSAGE_TOO_LARGE | RESOURCE_EXHAUSTED `received metadata size exceeds` | `MessageTooLargeError` |
| a compression that this gRPC does not know | UNIMPLEMENTED | `InvalidRequestError` |
| a method of an older service, or of something else that listens there | UNIMPLEMENTED | `InvalidRequestError` |
| a connection that is refused, breaks, ages out, or fails its TLS handshake | UNAVAILABLE | `ServiceUnavailableError`, after trying again |
| an answer that does not come before the caller's deadline | DEADLINE_EXCEEDED | `CallDeadlineExceededError` |
| bytes that are no HTTP, headers above 64 KiB over HTTP; between {MAX_HEADER_BYTES // 2**10} KiB and that they are MESSAGE_TOO_LARGE, 431 | 400 in plain text | |
"""  # noqa: E501  rows of a table


def errors_page() -> str:
    """Return the page of all errors."""
    rows = [
        f"| `{reason}` | `{cls.__name__}` | {cls.grpc_code.name} | {cls.http_status} | "
        f"{'yes' if cls.retryable else 'no'} | {_first_line(cls)} |"
        for reason, cls in sorted(ERRORS.items())
    ]
    return "\n".join([_ERRORS_HEAD, *rows, "", _ERRORS_OF_LIBRARIES])


def _first_line(cls: type[Any]) -> str:
    return (cls.__doc__ or "").splitlines()[0]


_SETTINGS_HEAD = """Each is a flag, an environment variable, or a line of a TOML file. An unknown one is refused.
A flag beats a variable, a variable beats the file. `GROUPREPLAY_TOKEN`, `GROUPREPLAY_TOKEN_FILE` and
`GROUPREPLAY_CA_FILE` hold for every command that connects to a service and has no variable of its own set.

The file is given with `--config run.toml` and has a section for each command; `--optimizer.lr` is `lr` in its section
`[train.optimizer]`, `--batch-size` is `batch_size` in `[train]`:

```toml
[train]
algorithm = "popo"
batch_size = 64

[train.optimizer]
lr = 1e-4
schedule = "cosine"

[generate]
task = "addition"
```"""


def settings_page() -> str:
    """Return the page of all settings of all commands."""
    lines = ["# Settings", "", _SETTINGS_HEAD, ""]
    for name, command in COMMANDS.items():
        module, _, attribute = command.settings.partition(":")
        settings = getattr(import_module(module), attribute)
        lines += [f"## groupreplay {name}", "", "| flag | variable | default | meaning |", "|---|---|---|---|"]
        lines += [
            f"| `--{field.replace('_', '-')}` | `{variable_of(name, field)}` | {default} | {meaning} |"
            for field, default, meaning in _described_fields(settings)
        ]
        lines.append("")
    return "\n".join(lines)


def _described_fields(settings: type[Any]) -> Iterator[tuple[str, str, str]]:
    """Yield name, default and docstring of each field."""
    meanings: dict[str, str] = {}
    for owner in reversed([base for base in settings.__mro__ if is_dataclass(base)]):
        meanings |= _own_meanings(owner)
    types = get_type_hints(settings)
    for field in fields(settings):
        if is_dataclass(types[field.name]):
            section = _described_fields(cast(type[Any], types[field.name]))
            yield from ((f"{field.name}.{name}", default, meaning) for name, default, meaning in section)
            continue
        default = "" if field.default is MISSING or field.default in (None, "") else f"`{field.default}`"
        yield field.name, default, meanings[field.name].replace("|", "\\|")


def _own_meanings(settings: type[Any]) -> dict[str, str]:
    """Return the docstrings of the fields that a class has itself."""
    body = ast.parse(textwrap.dedent(inspect.getsource(settings))).body[0]
    assert isinstance(body, ast.ClassDef)
    meanings = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign | ast.Assign) and isinstance(following, ast.Expr):
            target = statement.target if isinstance(statement, ast.AnnAssign) else statement.targets[0]
            assert isinstance(target, ast.Name)
            meanings[target.id] = " ".join(ast.literal_eval(following.value).split())
    return meanings


_METRICS_HEAD = """# Metrics

Every process serves Prometheus: the service at `/metrics` of its HTTP address, generator and trainer where
`--metrics.listen` says. [Watch a deployment](../howto/watch-a-deployment.md) has rules, alerts and a dashboard.

## Service

What is of a table, a run or Redis is the same from every replica of the service, so take the maximum over instances,
not the sum; calls, payload bytes and the staleness of what was delivered are each replica's own, so add them up.
Tables and Redis are read once a second at most. Counters of a table are [its counters](counters.md).

| Prometheus | kind | meaning |
|---|---|---|"""

_TRAINER_HEAD = f"""## Trainer

Names in Prometheus begin with `{PREFIX}`. A gauge is the value of the newest step, and absent while that step
has none, as in a batch without replay. A counter adds up since the trainer started; `run_dir/train.jsonl` has one line
for each step of the whole run. How to switch them on: [watch a training run](../howto/watch-a-training-run.md).

| Prometheus | kind | train.jsonl | TensorBoard | meaning |
|---|---|---|---|---|"""

_GENERATOR_HEAD = """## Generator

| Prometheus | kind | meaning |
|---|---|---|"""

_ALARMS_HEAD = """### Alarms

Each has its line in the section `alarms` of the [settings](settings.md), under its own name.

| alarm | rings when the | is | because | what helps |
|---|---|---|---|---|"""


def metrics_page() -> str:
    """Return the page of all metrics, and of the trainer's alarms."""
    rows = [_metric_row(measure) for measure in (*MEASURES, ALARM, UNDONE)]
    alarms = [
        f"| `{it.name}` | {it.what} | {'below' if it.lower else 'above'} its line | {it.meaning} | {it.advice} |"
        for it in ALARMS
    ]
    service = [_family_row(family) for family in FAMILIES]
    generator = [f"| {_labelled(it.name, it.labels)} | {it.kind} | {it.meaning} |" for it in generator_metrics.MEASURES]
    parts = [_METRICS_HEAD, *service, "", _GENERATOR_HEAD, *generator, "", _TRAINER_HEAD, *rows, "", _ALARMS_HEAD]
    return "\n".join([*parts, *alarms, ""])


def _family_row(family: Family) -> str:
    first = {TableFamily: ("run", "table"), RedisFamily: ("node",)}.get(type(family), ())
    return f"| {_labelled(family.shown, (*first, *family.labels))} | {family.kind} | {family.meaning} |"


def _labelled(name: str, labels: Sequence[str]) -> str:
    return f"`{name}{{{', '.join(labels)}}}`" if labels else f"`{name}`"


def _metric_row(measure: Measure) -> str:
    labels = ",".join(f'{name}="{value}"' for name, value in measure.labels.items())
    name = f"`{measure.name}{{{labels}}}`" if labels else f"`{measure.name}`"
    key, tag = (f"`{it}`" if it else "" for it in (measure.key, measure.tag))
    return f"| {name} | {measure.kind.value} | {key} | {tag} | {measure.meaning} |"


_COMMANDS_HEAD = """# Command line

`groupreplay COMMAND --help` says the same of one command. Every flag is in [settings](settings.md), with its
variable. Commands that look at a service, and take and change nothing, are `top`, `tables`, `groups`, `diagnose`,
`policy`, `doctor`.

| command | does | extra |
|---|---|---|"""

_STATUSES_HEAD = """| status | means |
|---|---|"""

_COMPLETION = """## Completion

`groupreplay completion bash` (or `zsh`, `fish`) prints a script that completes commands, flags and their choices. For
this session: `source <(groupreplay completion bash)`. For all: put what it prints into
`~/.local/share/bash-completion/completions/groupreplay`, into a folder of zsh's `$fpath` as `_groupreplay`, or into
`~/.config/fish/completions/groupreplay.fish`.
"""

_JSON_HEAD = """## JSON

`--json` prints these to standard output, for programs. A field that is renamed or removed is in the changelog; new
ones may come. Times are Unix milliseconds, an absent value is `null`. What went wrong is said on standard error, and
by the status.

- `tables` prints a list of tables, `tables RUN TABLE` one table.
- `groups` prints `groups`, a list of listed groups, and `next_cursor`, for `--cursor`; empty = that was all. `groups
  show` prints a shown group.
- `diagnose` prints a diagnosis, `policy` a policy version, `doctor` a list of checks; `policy watch` prints one
  policy version a line.
- `bench` prints a list of measurements.
- `snapshot` and `restore` print `file` and `table`, the table as it was kept or made; `export` prints `file` and
  `rollouts`.
- `token create` prints `token` and its `secret`, or the `secret_file`; `token list` a list of tokens, `token revoke`
  the token as it was.
- `top` prints a line for each look: `time_ms`; `error`, why the service could not be asked, or empty; `policies`;
  `tables`. Each of those has fields of a table, `ready`, `findings` and `producers` of a diagnosis, `held` (its
  leases), and `recent`, the pace of the last minute.
"""
_JSON = {
    "A table": Table,
    "A listed group": ListedGroup,
    "A shown group": ShownGroup,
    "A response of a shown group": ShownRollout,
    "A diagnosis": Diagnosis,
    "A policy version": Policy,
    "A token": Token,
    "A check": Check,
    "A pace": Pace,
    "A measurement": Measurement,
}


def command_page() -> str:
    """Return the page of all commands, their statuses and what they print for programs."""
    lines = [_COMMANDS_HEAD]
    lines += [f"| `{name}` | {command.summary} | `{command.extra}` |" for name, command in COMMANDS.items()]
    meanings = _own_meanings(Status)
    lines += ["| `completion` | Print a script that completes commands and flags in a shell. | `admin` |", ""]
    lines += ["## Exit status", "", _STATUSES_HEAD, *(f"| {it.value} | {meanings[it.name]} |" for it in Status), ""]
    lines += [_COMPLETION, _JSON_HEAD]
    for title, cls in _JSON.items():
        lines += [f"### {title}", "", f"{_first_line(cls)}", "", "| field | meaning |", "|---|---|"]
        own = _own_meanings(cls)
        lines += [
            f"| `{field.name}` | {own.get(field.name, '').replace('|', chr(92) + '|')} |" for field in fields(cls)
        ]
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    """Write, or compare with what is committed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a page differs")
    args = parser.parse_args()
    pages = {
        FOLDER / "command-line.md": command_page(),
        FOLDER / "errors.md": errors_page(),
        FOLDER / "metrics.md": metrics_page(),
        FOLDER / "settings.md": settings_page(),
    }
    differing = [path for path, text in pages.items() if not path.exists() or path.read_text() != text]
    if args.check:
        for path in differing:
            print(f"{path.name} is not what the code gives: run `make reference` and commit the result")
        return 1 if differing else 0
    for path in differing:
        path.write_text(pages[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())
