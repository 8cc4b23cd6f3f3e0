"""What `groupreplay doctor` finds out about certificates: those that are served, and files that shall be."""

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

from groupreplay.certificate_dates import chain_ends_ms
from groupreplay.groups import now_ms
from groupreplay_admin.checks import Check, check_certificate, ok, problem
from groupreplay_admin.connection import ServiceSettings


def client_context(settings: ServiceSettings) -> ssl.SSLContext | None:
    """Return how to connect to the service by TLS; None = without.

    Raises:
        OSError: a file cannot be read, or is no certificate or key.
    """
    if not (settings.tls or settings.ca_file or settings.cert_file):
        return None
    context = ssl.create_default_context(cafile=settings.ca_file)
    if settings.cert_file is not None:
        context.load_cert_chain(settings.cert_file, settings.key_file)
    return context


def check_served(address: str, context: ssl.SSLContext, *, timeout_s: float) -> Check:
    """Judge the certificate that a gRPC service shows."""
    host, _, port = address.rpartition(":")
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((host, int(port)), timeout_s) as plain,
            context.wrap_socket(plain, server_hostname=host) as secured,
        ):
            shown = secured.getpeercert() or {}
    except (OSError, ValueError) as error:
        advice = "see that --ca-file has signed it, that it names the host, and that the service runs with TLS"
        return problem("certificate", f"no TLS with {address}: {error}", advice)
    return check_certificate(address, int(ssl.cert_time_to_seconds(str(shown["notAfter"])) * 1000), now_ms=now_ms())


def check_files(cert_file: Path, key_file: Path | None) -> Iterator[Check]:
    """Judge a certificate in a file, and whether a key fits it."""
    try:
        ends_ms = chain_ends_ms(cert_file.read_text())
    except (OSError, ValueError) as error:
        yield problem("certificate", f"{cert_file} is no certificate in PEM: {error}", "write it as PEM, its own first")
        return
    yield check_certificate(str(cert_file), ends_ms, now_ms=now_ms())
    if key_file is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert_file, key_file)
    except OSError as error:
        advice = "take the key that the certificate was made for, in PEM, without a password"
        yield problem("certificate_key", f"{key_file} does not fit {cert_file}: {error}", advice)
    else:
        yield ok("certificate_key", f"{key_file} fits {cert_file}")
