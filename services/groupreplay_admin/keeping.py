"""`groupreplay snapshot` and `groupreplay restore`: a table to a file and back."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from groupreplay import Table
from groupreplay.groups import check_name
from groupreplay_admin.connection import ServiceSettings, open_client
from groupreplay_admin.output import to_json
from groupreplay_admin.progress import ProgressLine, size

CONNECT_S = 10.0
"""How long to look for the service; transfers take their time after that."""


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotSettings(ServiceSettings):
    """Where from and where to."""

    output: Path
    """File to write. It appears when it is whole, and replaces what was there."""
    timeout_s: float = 3600.0
    """Seconds after which to give up."""
    json: bool = False
    """Print what was made as one JSON object, for programs."""


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreSettings(ServiceSettings):
    """Where to, and under which name.

    Raises:
        InvalidRequestError: a name has characters that the service refuses.
    """

    run: str | None = None
    """Run of the new table. Default: that of the snapshot. A new run begins with the snapshot's policy clock."""
    table: str | None = None
    """Name of the new table. Default: that of the snapshot."""
    timeout_s: float = 3600.0
    """Seconds after which to give up."""
    json: bool = False
    """Print what was made as one JSON object, for programs."""

    def __post_init__(self) -> None:
        for name in ("run", "table"):
            if getattr(self, name) is not None:
                check_name(getattr(self, name), name)


_DEFAULTS = RestoreSettings()
ARGUMENT = Parameter(show_env_var=False)


def snapshot(run: Annotated[str, ARGUMENT], table: Annotated[str, ARGUMENT], /, *, settings: SnapshotSettings) -> int:
    """Write a table, as it is at one moment, to a file: configuration, groups, order, counts and policy clock.

    The table stays in use: producers insert and trainers take batches while its payloads are read.
    `groupreplay restore` makes a table of the file, `groupreplay export` rows for analysis.

    Parameters
    ----------
    run
        Training run.
    table
        Table of the run.
    """
    with open_client(settings, timeout_s=CONNECT_S) as client, ProgressLine(f"{run}/{table}") as progress:
        kept = client.snapshot(
            run=run, table=table, path=settings.output, timeout_s=settings.timeout_s, progress=progress
        )
    made = {"file": settings.output, "table": kept}
    print(to_json(made) if settings.json else f"{settings.output}: {describe(kept)}")
    return 0


def restore(file: Annotated[Path, ARGUMENT], /, *, settings: RestoreSettings = _DEFAULTS) -> int:
    """Make a new table of a snapshot file; it is there as a whole or not at all.

    Groups come back to their place, with their order, priorities, uses and counts; those that were in a lease are
    fresh again. Nothing is overwritten: a table that exists is refused, so pass another name with --table or --run.

    Parameters
    ----------
    file
        File that `groupreplay snapshot` wrote.
    """
    with open_client(settings, timeout_s=CONNECT_S) as client, ProgressLine(str(file)) as progress:
        made = client.restore(
            file, run=settings.run, table=settings.table, timeout_s=settings.timeout_s, progress=progress
        )
    print(to_json({"file": file, "table": made}) if settings.json else f"{made.run}/{made.table}: {describe(made)}")
    return 0


def describe(table: Table) -> str:
    """Return what a table holds, for people."""
    return (
        f"{table.fresh} fresh, {table.leased} leased and {table.replay} replay groups, {size(table.payload_bytes)} of "
        f"payload, policy version {table.policy_version}"
    )
