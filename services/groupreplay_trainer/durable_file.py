"""Files that a crash leaves either as they were or complete."""

import os
import tempfile
from pathlib import Path


def write_durably(path: Path, content: bytes) -> None:
    """Write `content` to `path`: when this returns it is on disk, and a reader never sees a part of it.

    Args:
        path: replaced if it exists; its folder must exist. Until the rename the content stands beside it in a file
            whose name begins with a dot and this file's name.
        content: all of the file.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o644)  # mkstemp's 0600 would hide weights from generators of another user
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the renames and removals in `folder` durable: they are entries of the folder, not of the files."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Remove what writers killed before their rename left of files that match `pattern`, for example `step-*`."""
    for leftover in folder.glob(f".{pattern}"):
        leftover.unlink(missing_ok=True)
