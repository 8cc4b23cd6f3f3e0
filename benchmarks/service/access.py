"""What a service asks of its callers in a benchmark: nothing, TLS, or tokens."""

import secrets
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Self

from groupreplay import Client, NewToken, Scope, Token

Access = Literal["open", "tls", "tokens"]
"""Plaintext for everybody; TLS by a certificate that is made for it; plaintext and a token with each call."""
_NEW_KEY: Final = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
_DAYS: Final = 30


def can_be_had(access: Access) -> bool:
    """Whether there is what it takes: a certificate is made by openssl."""
    return access != "tls" or shutil.which("openssl") is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """How a service is started, and how its callers log in."""

    flags: Sequence[str] = ()
    """Of `groupreplay serve`."""
    login: dict[str, Any] = field(default_factory=dict, repr=False)
    """Of whoever sets up tables; as Connection.login() has it."""
    tokens: bool = False
    """Whether producers and trainers have tokens of their own, by grant()."""

    @classmethod
    def of(cls, access: Access, folder: Path) -> Self:
        """Return how a service is entered; its files go into the folder."""
        if access == "tls":
            certificate, key = folder / "service.pem", folder / "service.key"
            _make_certificate(certificate, key)
            flags = ("--tls-cert-file", str(certificate), "--tls-key-file", str(key))
            return cls(flags=flags, login={"ca_file": str(certificate)})
        if access == "tokens":
            token = folder / "admin.token"
            token.touch(mode=0o600)
            token.write_text(secrets.token_hex(32))
            return cls(flags=("--admin-token-file", str(token)), login={"token": token.read_text()}, tokens=True)
        return cls()

    def grant(self, admin: Client, scope: Scope, run: str) -> dict[str, Any]:
        """Return how a producer or a trainer of a run logs in; where there are tokens, with a new one."""
        if not self.tokens:
            return self.login
        made = NewToken.generate(Token(name=f"{scope}-{secrets.token_hex(4)}", scope=scope, run=run))
        admin.create_token(made)
        return {"token": made.secret}


def _make_certificate(certificate: Path, key: Path) -> None:
    """Make a certificate of 127.0.0.1 that has signed itself, so that trusting it is enough."""
    command = ["openssl", "req", "-x509", *_NEW_KEY, "-days", str(_DAYS), "-subj", "/CN=benchmark"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, *names, "-keyout", key, "-out", certificate], check=True, capture_output=True)
