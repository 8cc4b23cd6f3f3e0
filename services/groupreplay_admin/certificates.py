"""What `groupreplay doctor` finds out about certificates: those that are served, and files that shall be."""

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

from groupreplay.groups import now_ms
from groupreplay_admin.checks import Check, check_certificate, ok, problem
from groupreplay_admin.connection import ServiceSettings

_SEQUENCE, _VERSION, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0xA0, 0x17, 0x18


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
        ends_ms = certificate_ends_ms(ssl.PEM_cert_to_DER_cert(_first_certificate(cert_file)))
    except (OSError, ValueError, IndexError) as error:
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


def _first_certificate(path: Path) -> str:
    text = path.read_text()
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    if begin not in text or end not in text:
        raise ValueError("it has no BEGIN CERTIFICATE")
    return begin + text.split(begin, 1)[1].split(end, 1)[0] + end


def certificate_ends_ms(der: bytes) -> int:
    """Return the notAfter of a certificate (RFC 5280), Unix milliseconds. The standard library reads it only over TLS.

    Raises:
        ValueError, IndexError: it is no certificate.
    """
    _, certificate, _ = _element(der)
    _, inner, _ = _element(certificate)
    tag, _, rest = _element(inner)
    fields = rest if tag == _VERSION else inner
    for _ in range(3):  # serial number, algorithm, issuer
        fields = _element(fields)[2]
    tag, validity, _ = _element(fields)
    if tag != _SEQUENCE:
        raise ValueError("it has no validity where a certificate has one")
    tag, ends, _ = _element(_element(validity)[2])
    text = ends.decode("ascii")
    if tag == _UTC_TIME:
        text = ("20" if int(text[:2]) < 50 else "19") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError("its end is no time")
    year, month, day, hour, minute, second = (text[:4], *(text[at : at + 2] for at in range(4, 14, 2)))
    months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
    gmt = f"{months[int(month) - 1]} {int(day):2d} {hour}:{minute}:{second} {year} GMT"
    return int(ssl.cert_time_to_seconds(gmt) * 1000)


def _element(der: bytes) -> tuple[int, bytes, bytes]:
    """Return tag and content of the first element, and what follows it."""
    tag, length, start = der[0], der[1], 2
    if length & 0x80:
        octets = length & 0x7F
        length, start = int.from_bytes(der[2 : 2 + octets], "big"), 2 + octets
    if start + length > len(der):
        raise ValueError("it ends too soon")
    return tag, der[start : start + length], der[start + length :]
