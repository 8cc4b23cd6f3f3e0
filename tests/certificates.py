"""A certificate authority of a test, and what it signs."""

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate and its key, both PEM."""

    cert_file: Path
    key_file: Path


class Authority:
    """Signs certificates for this machine; its files lie in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ca_file = folder / "ca.pem"
        self._key_file = folder / "ca.key"
        _openssl(
            "req", "-x509", *_NEW_KEY, "-days", 90, "-subj", "/CN=test authority",
            "-addext", "keyUsage=critical,keyCertSign", "-keyout", self._key_file, "-out", self.ca_file,
        )  # fmt: skip

    def sign(self, name: str, *, days: int = 2) -> Certificate:
        """Return a certificate of this name, valid for loopback addresses, from now on for so many days."""
        made = Certificate(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        _openssl(
            "req", "-x509", *_NEW_KEY, "-days", days, "-CA", self.ca_file, "-CAkey", self._key_file,
            "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost",
            "-addext", "basicConstraints=critical,CA:FALSE",
            "-keyout", made.key_file, "-out", made.cert_file,
        )  # fmt: skip
        return made


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
