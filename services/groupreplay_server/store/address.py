"""Where Redis is and how to log in: the URL and the access settings, read once, with errors that show no password."""

import re
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from urllib.parse import unquote

from redis.asyncio.connection import parse_url

HostPort = tuple[str, int]

_SCHEMES = "redis://, rediss://, unix://, redis+sentinel://, rediss+sentinel://, redis+cluster:// or rediss+cluster://"
_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[\w.-]+):(?P<port>\d{1,5})", re.ASCII)


class Deployment(StrEnum):
    """How Redis is deployed."""

    STANDALONE = "standalone"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisAddress:
    """What a URL of Redis says."""

    deployment: Deployment
    shown: str
    """The URL for people and logs: without password and options."""
    url: str = field(repr=False)
    tls: bool
    username: str = ""
    password: str = field(default="", repr=False)
    hosts: tuple[HostPort, ...] = ()
    """The Sentinels, or some nodes of the cluster; a standalone Redis has its one in the URL."""
    service_name: str = ""
    """What the Sentinels call the master and its replicas."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisAccess:
    """Who we are to Redis and whom we trust, beyond what the URL says. Empty = as the URL and the system have it."""

    username: str = ""
    password: str = field(default="", repr=False)
    sentinel_username: str = ""
    sentinel_password: str = field(default="", repr=False)
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None


def read_address(url: str) -> RedisAddress:
    """Return what the URL says.

    Raises:
        ValueError: we cannot use it; the message has no password.
    """
    scheme, separator, rest = url.partition("://")
    transport, _, deployment = scheme.partition("+")
    shown = _without_secrets(url)
    known = {"redis", "rediss"} if deployment else {"redis", "rediss", "unix"}
    if not separator or transport not in known or deployment not in {"", "sentinel", "cluster"}:
        raise ValueError(f"{shown} does not start with {_SCHEMES}")
    credentials, _, where = rest.rpartition("@")
    if transport != "unix" and any(mark in credentials for mark in "@/?#"):
        raise ValueError(f"{shown}: one of @ / ? # is in its user or password; write them as %40 %2F %3F %23")
    username, _, password = credentials.partition(":")
    hosts: tuple[HostPort, ...] = ()
    service_name = ""
    if deployment:
        hosts, service_name = _read_hosts(deployment, where, shown)
    else:
        try:
            parse_url(url)
        except ValueError:  # its words may quote the password
            raise ValueError(f"{shown} is not {transport}://USER:PASSWORD@HOST:PORT/DATABASE") from None
    return RedisAddress(
        deployment=Deployment(deployment or "standalone"),
        shown=shown,
        url=url,
        tls=transport == "rediss",
        username=unquote(username),
        password=unquote(password),
        hosts=hosts,
        service_name=service_name,
    )


def _read_hosts(deployment: str, where: str, shown: str) -> tuple[tuple[HostPort, ...], str]:
    """Return the hosts, and the service name of Sentinels."""
    listed, _, path = where.partition("/")
    if any(mark in where for mark in "?#"):
        raise ValueError(f"{shown} takes no options after its hosts; --redis-... settings have them")
    if deployment == "sentinel" and not path:
        raise ValueError(f"{shown} names no master; end it with /SERVICE-NAME, as the Sentinels know it")
    if deployment == "cluster" and path:
        raise ValueError(f"{shown} ends with /{path}, but a cluster has neither databases nor names; leave it out")
    hosts = []
    for part in listed.split(","):
        found = _HOST.fullmatch(part)
        if found is None or not 0 < int(found["port"]) <= 65535:
            raise ValueError(f"{shown}: {part!r} is not HOST:PORT; write HOST:PORT,HOST:PORT")
        hosts.append((found["host"].strip("[]"), int(found["port"])))
    return tuple(hosts), unquote(path)


def _without_secrets(url: str) -> str:
    """Return the URL with its user, without password and options."""
    scheme, separator, rest = url.partition("://")
    credentials, at, where = rest.rpartition("@")
    return f"{scheme}{separator}{credentials.partition(':')[0]}{at}{where.partition('?')[0]}"
