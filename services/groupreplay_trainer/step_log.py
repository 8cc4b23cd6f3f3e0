"""The run's log: one JSON line per finished step in `train.jsonl`, and its group ids in `groups.jsonl`.

A step's lines are written before its checkpoint, which records how long the files are then; a trainer that resumes
cuts them to that length. So each step has one line, whenever the trainer was killed.
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

TRAIN_LOG: Final = "train.jsonl"
GROUP_LOG: Final = "groups.jsonl"

_log = logging.getLogger(__name__)


class StepLog:
    """The two log files of a run folder."""

    def __init__(self, folder: Path) -> None:
        """Use `folder`, which must exist."""
        self._paths = {name: folder / name for name in (TRAIN_LOG, GROUP_LOG)}

    def append(self, records: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
        """Append one line to each named file, durably, and return the length of each file in bytes.

        Raises:
            ValueError: a record holds a number that JSON cannot (nan, infinity).
        """
        for name, record in records.items():
            line = json.dumps(record, allow_nan=False) + "\n"
            with self._paths[name].open("ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        return {name: _size(path) for name, path in self._paths.items()}

    def read(self, name: str) -> Iterator[dict[str, Any]]:
        """Yield the lines of a file, the oldest first."""
        if self._paths[name].exists():
            with self._paths[name].open("rb") as file:
                for line in file:
                    yield json.loads(line)

    def is_empty(self) -> bool:
        """Return whether no step was logged."""
        return not any(_size(path) for path in self._paths.values())

    def cut(self, lengths: Mapping[str, int]) -> None:
        """Cut each file to its length in bytes (0 if not named), dropping lines of steps that were never completed."""
        for name, path in self._paths.items():
            size, length = _size(path), lengths.get(name, 0)
            if size > length:
                os.truncate(path, length)
            elif size < length:
                # Truncating to a greater length would fill up with zeros.
                _log.warning("%s has %d bytes, the checkpoint knows of %d: lines were removed", path, size, length)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
