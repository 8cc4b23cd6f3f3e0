"""`groupreplay export`: a table as rows for analysis."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from groupreplay import InvalidRequestError, SnapshotFile
from groupreplay_admin.connection import ServiceSettings, open_client
from groupreplay_admin.keeping import ARGUMENT, CONNECT_S
from groupreplay_admin.output import to_json
from groupreplay_admin.progress import ProgressLine


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSettings(ServiceSettings):
    """Where from and where to."""

    output: Path
    """Parquet file to write. It appears when it is whole, and replaces what was there."""
    from_snapshot: Path | None = None
    """Snapshot file to read, in place of a table of the service."""
    timeout_s: float = 3600.0
    """Seconds after which to give up reading the table."""
    json: bool = False
    """Print what was made as one JSON object, for programs."""


def export(
    run: Annotated[str, ARGUMENT] = "", table: Annotated[str, ARGUMENT] = "", /, *, settings: ExportSettings
) -> int:
    """Write a table to a Parquet file, one row for each rollout, for pandas, Polars, DuckDB and the like.

    Rows have ids, place, policy versions, reward, tokens, log probabilities, loss mask, texts, priority, uses and tags.
    The table stays in use: what is exported is its state at one moment, which lies beside the output meanwhile, as a
    snapshot. Needs pyarrow: pip install 'groupreplay[export]'.

    Parameters
    ----------
    run
        Training run. Left out with --from-snapshot.
    table
        Table of the run. Left out with --from-snapshot.
    """
    from groupreplay_admin.parquet import write_parquet  # noqa: PLC0415  pyarrow: not for --help

    if bool(settings.from_snapshot) == bool(run and table):
        raise InvalidRequestError("name RUN and TABLE, or a file with --from-snapshot: one of the two")
    if settings.from_snapshot:
        rows = write_parquet(SnapshotFile(settings.from_snapshot), settings.output)
    else:
        with tempfile.TemporaryDirectory(prefix=".export-", dir=settings.output.parent) as folder:
            path = Path(folder) / "table.snapshot"
            with open_client(settings, timeout_s=CONNECT_S) as client, ProgressLine(f"{run}/{table}") as progress:
                client.snapshot(run=run, table=table, path=path, timeout_s=settings.timeout_s, progress=progress)
            rows = write_parquet(SnapshotFile(path), settings.output)
    made = {"file": settings.output, "rollouts": rows}
    print(to_json(made) if settings.json else f"{settings.output}: {rows} rollouts")
    return 0
