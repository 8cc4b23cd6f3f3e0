"""The token of --admin-token-file: how the first caller logs in, before there is any token in Redis."""

import hmac
import logging
from pathlib import Path

from groupreplay.tokens import Scope, Token, hash_secret
from groupreplay_server.watched_files import WatchedFiles

SHORTEST = 32
"""Characters; `openssl rand -hex 32` makes 64."""

_log = logging.getLogger(__name__)


class AdminTokenFile:
    """A file with one token, read again when it changes."""

    NAME = "admin-token-file"

    def __init__(self, path: Path) -> None:
        """Read it.

        Raises:
            OSError: it cannot be read, or has no token in it.
        """
        self._path = path
        self._files = WatchedFiles([path])
        self._token = Token(name=self.NAME, scope=Scope.ADMIN)
        self._sha256 = self._read()

    def match(self, bearer: str) -> Token | None:
        """Return the token where it is the one that a caller showed."""
        if self._files.changed():
            try:
                self._sha256 = self._read()
                _log.info("read the admin token in %s again", self._path)
            except OSError as error:
                _log.warning("the admin token stays what it was: %s", error)
        return self._token if hmac.compare_digest(self._sha256, hash_secret(bearer)) else None

    def _read(self) -> bytes:
        token = self._path.read_text().strip()
        if len(token) < SHORTEST or not token.isascii() or any(it.isspace() for it in token):
            raise OSError(
                f"{self._path} has no token of at least {SHORTEST} ASCII characters in one word; "
                f"write one with `openssl rand -hex 32 > {self._path}`"
            )
        return hash_secret(token)
