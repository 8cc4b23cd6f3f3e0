"""`groupreplay tables`: what there is, and all of one table."""

import ast
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Annotated

from cyclopts import Parameter
from rich.table import Table as Grid
from rich.text import Text

from groupreplay import Table, TableConfig
from groupreplay.groups import now_ms
from groupreplay_admin.connection import ServiceSettings, open_client
from groupreplay_admin.counters import meaning_of
from groupreplay_admin.keeping import ARGUMENT
from groupreplay_admin.output import age, console, to_json
from groupreplay_admin.progress import size


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class TablesSettings(ServiceSettings):
    """How to show them."""

    json: bool = False
    """Print a JSON list of tables, or one table as an object, for programs."""


_DEFAULTS = TablesSettings()


def tables(
    run: Annotated[str, ARGUMENT] = "",
    table: Annotated[str, ARGUMENT] = "",
    /,
    *,
    settings: TablesSettings = _DEFAULTS,
) -> int:
    """List the tables of all runs, or of one; or show one table: its sizes, configuration and counters, explained.

    Parameters
    ----------
    run
        Training run. Left out = all.
    table
        Table of the run, to show all of it.
    """
    with open_client(settings) as client:
        if table:
            found = client.describe_table(run=run, table=table)
            print(to_json(found)) if settings.json else _show(found)
            return 0
        listed = client.list_tables(run=run)
    print(to_json(listed)) if settings.json else _list(listed)
    return 0


def _list(found: Sequence[Table]) -> None:
    grid = Grid(box=None, pad_edge=False)
    grid.add_column("table")
    for heading in ("version", "fresh", "effective", "leased", "replay", "payload", "last insert"):
        grid.add_column(heading, justify="right")
    for it in found:
        counts = (it.policy_version, it.fresh, it.fresh_effective, it.leased, it.replay)
        grid.add_row(f"{it.run}/{it.table}", *map(str, counts), size(it.payload_bytes), _last_insert(it))
    console().print(grid if found else "no tables: create_table makes the first, or start `groupreplay generate`")


def _last_insert(table: Table) -> str:
    return f"{age((now_ms() - table.last_insert_ms) / 1000)} ago" if table.last_insert_ms else "none yet"


def _show(table: Table) -> None:
    out = console()
    out.print(Text(f"{table.run}/{table.table}", style="bold"))
    out.print(
        f"{table.fresh} fresh ({table.fresh_effective} effective), {table.leased} leased ({table.leases} leases), "
        f"{table.replay} in replay{_replay_versions(table)}"
    )
    out.print(
        f"{size(table.payload_bytes)} of payload, policy version {table.policy_version}, last insert "
        f"{_last_insert(table)}; waiting batches miss {table.missing} groups"
    )
    meanings = config_meanings()
    _section("configuration", ((name, value, meanings[name]) for name, value in _config_values(table.config)))
    _section("counters", ((name, str(value), meaning_of(name)) for name, value in sorted(table.counters.items())))
    if table.task_counters:
        _section("by task", ((name, str(value), "") for name, value in sorted(table.task_counters.items())))


def _section(title: str, rows: Iterator[tuple[str, str, str]]) -> None:
    out = console()
    out.print(Text(f"\n{title}", style="bold"))
    grid = Grid(box=None, pad_edge=False, show_header=False)
    grid.add_column(no_wrap=True)
    grid.add_column(justify="right")
    grid.add_column(style="dim")
    for row in rows:
        grid.add_row(*map(Text, row))
    out.print(grid)


def _replay_versions(table: Table) -> str:
    if table.replay_version_min is None:
        return ""
    return f" of policy versions {table.replay_version_min} to {table.replay_version_max}"


def _config_values(config: TableConfig) -> Iterator[tuple[str, str]]:
    for field in fields(TableConfig):
        value = getattr(config, field.name)
        yield field.name, "unlimited" if value is None else str(value)


def config_meanings() -> dict[str, str]:
    """Return what each limit of a table means, from the SDK's own words."""
    body = ast.parse(textwrap.dedent(inspect.getsource(TableConfig))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr):
            assert isinstance(statement.target, ast.Name)
            found[statement.target.id] = " ".join(ast.literal_eval(following.value).split())
    return found
