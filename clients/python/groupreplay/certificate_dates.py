"""When certificates end: the standard library tells it of a peer's only, over TLS."""

import re
import ssl

_SEQUENCE, _VERSION, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0xA0, 0x17, 0x18
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


def chain_ends_ms(pem: str) -> int:
    """Return when the first of the certificates in a PEM file ends, Unix milliseconds.

    Raises:
        ValueError: there is none, or one cannot be read.
    """
    found = _PEM.findall(pem)
    if not found:
        raise ValueError("it has no BEGIN CERTIFICATE")
    return min(certificate_ends_ms(ssl.PEM_cert_to_DER_cert(one)) for one in found)


def certificate_ends_ms(der: bytes) -> int:
    """Return the notAfter of a certificate (RFC 5280), Unix milliseconds.

    Raises:
        ValueError: it is no certificate.
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
    if len(der) < 2:
        raise ValueError("it ends too soon")
    tag, length, start = der[0], der[1], 2
    if length & 0x80:
        octets = length & 0x7F
        length, start = int.from_bytes(der[2 : 2 + octets], "big"), 2 + octets
    if start + length > len(der):
        raise ValueError("it ends too soon")
    return tag, der[start : start + length], der[start + length :]
