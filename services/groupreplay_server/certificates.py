"""The certificates of the service: read again when their files change, for both front doors."""

import logging
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import grpc

from groupreplay.certificate_dates import chain_ends_ms
from groupreplay_server.watched_files import WatchedFiles

_log = logging.getLogger(__name__)
_kept: list[grpc.ServerCredentials] = []
"""grpc's core calls the fetcher of credentials for as long as a connection that was accepted is in its hands, which may
be after the server is gone. It holds no reference to them, so a process that lets go of one may crash."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """Where the certificates lie, all PEM."""

    cert_file: Path
    key_file: Path
    client_ca_file: Path | None = None
    """Clients must show a certificate that these have signed; None = they need not."""


@dataclass(frozen=True, slots=True)
class _Read:
    """What the files held at one moment, known to fit together."""

    grpc: grpc.ServerCertificateConfiguration
    http: ssl.SSLContext
    ends_ms: int


class Certificates:
    """What the files hold now. New ones that do not fit together, as while they are written, are left until they do."""

    def __init__(self, files: TlsFiles) -> None:
        """Read the files.

        Raises:
            OSError: one cannot be read, or key and certificate do not fit.
        """
        self._files = files
        paths = (files.cert_file, files.key_file, *([files.client_ca_file] if files.client_ca_file else []))
        self._watched = WatchedFiles(paths)
        self._lock = threading.Lock()  # grpc asks from threads of its own
        self._read = _read(files)

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """Return credentials that follow the files."""
        served = self._read.grpc
        handed_out = [served]

        def fetch() -> grpc.ServerCertificateConfiguration:
            """Return what is new since the last call; None, which the stubs forget = go on with that."""
            current = self._current().grpc
            changed, handed_out[0] = current is not handed_out[0], current
            return current if changed else cast(grpc.ServerCertificateConfiguration, None)

        asks_clients = self._files.client_ca_file is not None
        made = grpc.dynamic_ssl_server_credentials(served, fetch, require_client_authentication=asks_clients)
        _kept.append(made)
        return made

    def http_context(self) -> ssl.SSLContext:
        """Return a context that hands each new connection to one that follows the files."""
        context = _context(self._files)

        def choose(connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, own: ssl.SSLContext) -> None:
            connection.context = self._current().http

        context.sni_callback = choose
        return context

    def ends_ms(self) -> int:
        """Return when the first certificate of the chain that new connections are shown ends, Unix milliseconds."""
        return self._current().ends_ms

    def _current(self) -> _Read:
        with self._lock:
            if self._watched.changed():
                try:
                    self._read = _read(self._files)
                    _log.info("read the certificate in %s again", self._files.cert_file)
                except OSError as error:
                    _log.warning("the certificate stays what it was: %s", error)
            return self._read


def _read(files: TlsFiles) -> _Read:
    context = _context(files)
    key, cert = files.key_file.read_bytes(), files.cert_file.read_bytes()
    ca = files.client_ca_file.read_bytes() if files.client_ca_file else None
    try:
        ends_ms = chain_ends_ms(cert.decode())
    except ValueError as error:
        raise OSError(f"{files.cert_file} has a certificate whose end cannot be read: {error}") from error
    return _Read(grpc.ssl_server_certificate_configuration([(key, cert)], root_certificates=ca), context, ends_ms)


def _context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    for path in (files.cert_file, files.key_file, files.client_ca_file):
        if path is not None:
            path.read_bytes()  # its error names the file, that of OpenSSL does not
    try:
        context.load_cert_chain(files.cert_file, files.key_file)
    except ssl.SSLError as error:
        raise OSError(
            f"certificate {files.cert_file} and key {files.key_file} do not fit together ({error.reason}); both must "
            "be PEM, the key without a password, the certificate first in its chain"
        ) from error
    if files.client_ca_file is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(files.client_ca_file)
        except ssl.SSLError as error:
            raise OSError(f"{files.client_ca_file} has no certificates in PEM ({error.reason})") from error
    return context
