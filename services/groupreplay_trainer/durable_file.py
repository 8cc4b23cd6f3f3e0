"""Files and folders that a crash leaves either as they were or complete."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def write_durably(path: Path, write: Callable[[Path], object]) -> None:
    """Make `path` a file of what `write` puts into the file it is given: when this returns it is on disk, all of it.

    Args:
        path: replaced if it exists; its folder must exist. Until the rename the content stands beside it in a file
            whose name begins with a dot and this file's name, so that a reader never sees a part of it.
        write: writes the file, which is there and empty.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)  # mkstemp's 0600 would hide it from other users
        _sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_folder_durably(path: Path, write: Callable[[Path], None]) -> None:
    """Make `path` a folder with what `write` puts into the empty folder it is given: all of it on disk, or nothing.

    Args:
        path: replaced if it exists; a folder cannot be replaced in one operation, so for a moment there is none. Until
            the rename the content stands beside it in a folder whose name begins with a dot and this folder's name.
        write: writes files and folders.
    """
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        write(temporary)
        for entry in [temporary, *temporary.rglob("*")]:
            entry.chmod(0o755 if entry.is_dir() else 0o644)  # mkdtemp's 0700 would hide it from other users
            _sync(entry)
        if path.exists():
            path.rename(f"{temporary}.old")
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(f"{temporary}.old", ignore_errors=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the renames and removals in `folder` durable: they are entries of the folder, not of the files."""
    _sync(folder)


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Remove what writers killed before their rename left of what matches `pattern`, for example `step-*`."""
    for leftover in folder.glob(f".{pattern}"):
        remove(leftover)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it; nothing there is fine."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
