"""Files that may be replaced while the service runs, as renewed certificates and mounted secrets are."""

from collections.abc import Sequence
from pathlib import Path

_Seen = tuple[tuple[int, int, int] | None, ...]


class WatchedFiles:
    """Tells when one of some files has changed. A look is one stat each: cheap enough for every connection or call."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """What is there now counts as seen."""
        self._paths = tuple(paths)
        self._seen = self._look()

    def changed(self) -> bool:
        """Return whether one has changed since the last call."""
        now = self._look()
        changed, self._seen = now != self._seen, now
        return changed

    def _look(self) -> _Seen:
        return tuple(_identity(path) for path in self._paths)


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()  # follows links: Kubernetes swaps the one that a mounted secret lies behind
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
