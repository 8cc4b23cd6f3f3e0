"""Published weights: how trainers and generators agree that they have the same bytes."""

import hashlib
from pathlib import Path


def weights_sha256(path: Path) -> str:
    """Return the hex SHA-256 that `Policy.weights_sha256` states for the weights at `path`.

    Of a file it is that of its content, as sha256sum prints it. Of a folder (a Hugging Face model) it is that of one
    line for each file, sorted by path: its SHA-256, two spaces, its path inside the folder, as `sha256sum *` prints
    them. Files and folders whose name begins with a dot are left out.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        OSError: something there cannot be read.
    """
    if not path.is_dir():
        return _file_sha256(path)
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    digest = hashlib.sha256()
    for name in names:
        if not any(part.startswith(".") for part in name.split("/")):
            digest.update(f"{_file_sha256(path / name)}  {name}\n".encode())
    return digest.hexdigest()


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
