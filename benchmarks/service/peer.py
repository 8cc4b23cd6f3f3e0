"""Other systems, each in an environment of its own, moving the same groups."""

import json
import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from groupreplay_admin.load.tally import Tally

ROOT: Final = Path(__file__).resolve().parent.parent.parent
PEERS: Final = ("reverb", "atropos")
_STOP_S = 10.0


class PeerError(RuntimeError):
    """A peer does not run here; the message says where its output is."""


def is_installed(name: str) -> bool:
    """Return whether `make bench-peers` has made the environment of a peer."""
    return (_environment(name) / "installed").exists()


def _environment(name: str) -> Path:
    return ROOT / f".venv-bench-{name}"


class Peer:
    """A peer's process, which does what it is told."""

    def __init__(self, name: str, *, folder: Path) -> None:
        """Prepare it; what it and its libraries print goes to folder/<name>.log."""
        self._name = name
        self._log = folder / f"{name}.log"

    def __enter__(self) -> Self:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [_environment(self._name) / "bin/python", "-m", f"service.peers.{self._name}_peer"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | {"PYTHONPATH": f"{ROOT / 'services'}{os.pathsep}{ROOT / 'benchmarks'}"},
                start_new_session=True,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pipe(self._process.stdin).close()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._pipe(self._process.stdout).close()

    def do(self, what: str, **arguments: Any) -> Tally:
        """Let it do one of its operations.

        Raises:
            PeerError: it has ended.
        """
        request = self._pipe(self._process.stdin)
        try:
            request.write(json.dumps({"do": what} | arguments) + "\n")
            request.flush()
            line = self._pipe(self._process.stdout).readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise PeerError(f"{self._name} ended while it was to {what} {arguments}; the end of {self._log} says why")
        return Tally(**json.loads(line))

    @staticmethod
    def _pipe(end: IO[str] | None) -> IO[str]:
        assert end is not None
        return end
