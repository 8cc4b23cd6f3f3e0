"""Whether others than this machine could reach the service, and whether they may."""

import ipaddress
import logging
import re
import socket

from groupreplay_server.settings import ServerSettings

_HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:.%]*\]|[^:/\[\]]*):\w+")

_log = logging.getLogger(__name__)


def check_exposure(settings: ServerSettings) -> None:
    """Refuse to listen where others can reach the service while it asks nobody who they are.

    Raises:
        OSError: it would; the message says what to set.
    """
    for door, flag, address in (
        ("gRPC", "--grpc-listen", settings.grpc_listen),
        ("HTTP", "--http-listen", settings.http_listen),
    ):
        if is_loopback(door, address):
            continue
        if not settings.asks_for_tokens and not settings.insecure:
            raise OSError(
                f"{flag} {address} is no loopback address, and the service asks for no tokens: whoever reaches it "
                "could read and change everything. Write a token with `openssl rand -hex 32 > admin.token` and pass "
                "--admin-token-file admin.token, or pass --insecure if everybody who can reach it may"
            )
        if settings.tls_files() is None and not settings.insecure:
            _log.warning("%s %s is without TLS: tokens and groups cross the network for all to read", flag, address)


def is_loopback(door: str, address: str) -> bool:
    """Return whether only this machine can reach an address, host:port or unix:path.

    A host that cannot be resolved counts as loopback: to listen there fails by itself.

    Raises:
        OSError: it is neither.
    """
    if address.startswith("unix:"):
        return True
    if not _HOST_AND_PORT.fullmatch(address):  # gRPC knows other forms, and listens everywhere for some of them
        raise OSError(f"{door} cannot listen on {address}: it is not host:port, [IPv6 address]:port or unix:path")
    host = address.rpartition(":")[0]
    if not host:
        return False
    try:
        found = socket.getaddrinfo(host.strip("[]"), None)
    except OSError:
        return True
    return all(ipaddress.ip_address(str(where[0]).partition("%")[0]).is_loopback for *_, where in found)
