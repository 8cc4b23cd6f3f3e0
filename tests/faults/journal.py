"""What a process has done, on disk before it says so to anybody: JSON lines that outlive SIGKILL."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

Record = dict[str, Any]


class Journal:
    """An append-only file of records. A line that a kill cut short is dropped when it is opened again."""

    def __init__(self, path: Path) -> None:
        """Open it; what was written before is in `records`."""
        self.records = read_journal(path)
        complete = path.read_bytes().rpartition(b"\n") if path.exists() else (b"", b"", b"")
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.ftruncate(self._file, len(complete[0] + complete[1]))
        os.lseek(self._file, 0, os.SEEK_END)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def write(self, kind: str, **fields: Any) -> None:
        """Add a record, and return when it is on disk."""
        os.write(self._file, json.dumps({"kind": kind} | fields).encode() + b"\n")
        os.fsync(self._file)


def read_journal(path: Path) -> list[Record]:
    """Return the records of a file, without a last line that is not complete."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().rpartition(b"\n")[0].splitlines()]


def group_ids(records: Sequence[Record], kind: str) -> list[str]:
    """Return the group ids in records of one kind, in order."""
    return [group_id for record in records if record["kind"] == kind for group_id in record["group_ids"]]
