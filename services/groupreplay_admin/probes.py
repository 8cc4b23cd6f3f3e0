"""What `groupreplay doctor` finds out by itself, without the service: HTTP, ports, a Redis of one's own."""

import json
import socket
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from groupreplay import InvalidRequestError, RedisServer
from groupreplay.server_info import redis_server_from_info
from groupreplay_admin.checks import Check, ok, problem, warning

PINGS = 50


def check_http(address: str, *, is_named: bool, timeout_s: float, context: ssl.SSLContext | None = None) -> Check:
    """Ask the service over HTTP whether it is ready; an address that is only guessed may be wrong."""
    url = f"https://{address}/readyz" if context else f"http://{address}/readyz"
    try:
        with urlopen(url, timeout=timeout_s, context=context) as answer:  # noqa: S310  the scheme is ours
            answer.read()
    except HTTPError as error:
        return problem("http", f"{url} says that it is not ready: {_obstacle(error)}", "see the log of the service")
    except (URLError, OSError) as error:
        advice = "see that the service runs, pass its --http-listen as --http, or --http none to leave this out"
        return (problem if is_named else warning)(
            "http", f"no answer from {url} ({getattr(error, 'reason', error)})", advice
        )
    return ok("http", f"{url} says that the service is ready")


def _obstacle(error: HTTPError) -> str:
    try:
        return str(json.loads(error.read())["obstacle"])
    except (ValueError, KeyError):
        return f"status {error.code}"


def check_port(name: str, address: str) -> Check:
    """Say whether a service could listen on host:port."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise InvalidRequestError(f"{address} is not host:port, such as 127.0.0.1:50051")
    try:
        socket.create_server((host or "127.0.0.1", int(port))).close()
    except OSError as error:
        advice = "stop what has it, or pass another address to groupreplay serve"
        return problem(name, f"nothing can listen on {address}: {error.strerror}", advice)
    return ok(name, f"{address} is free")


def ask_redis(url: str, *, timeout_s: float, ca_file: Path | None) -> RedisServer:
    """Return what a single Redis says of itself.

    Raises:
        OSError: it does not answer, or refuses us.
        InvalidRequestError: the URL is not of a single Redis.
        ImportError: the redis package is not installed.
    """
    from redis import Redis, RedisError, ResponseError  # noqa: PLC0415  not part of the extra admin

    options: dict[str, Any] = {"ssl_ca_certs": str(ca_file)} if ca_file else {}
    try:
        client = Redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, protocol=2, **options)
    except ValueError as error:
        raise InvalidRequestError(
            "--redis-url is not redis://, rediss:// or unix://; a service on Sentinels or a cluster tells of its own"
        ) from error
    with client:
        try:
            ping_ms = [_ping_ms(client) for _ in range(PINGS)]
            asked_ms = time.time() * 1000
            seconds, microseconds = client.time()
            ahead_ms = seconds * 1000 + microseconds / 1000 - (asked_ms + time.time() * 1000) / 2
            info = cast(Mapping[str, Any], client.info())
            try:
                config = cast(dict[str, str], client.config_get("append*"))
            except ResponseError:  # managed ones keep their settings to themselves
                config = {}
        except RedisError as error:
            raise OSError(f"Redis does not answer as it should: {error}") from error
        return redis_server_from_info(
            info,
            {_text(name): _text(value) for name, value in config.items()},
            address=_address(client),
            clock_ahead_ms=ahead_ms,
            ping_ms=ping_ms,
            certificate_ends_ms=_certificate_ends_ms(client, ca_file, timeout_s),
        )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _ping_ms(client: Any) -> float:
    started = time.perf_counter()
    client.ping()
    return (time.perf_counter() - started) * 1000


def _address(client: Any) -> str:
    options = client.connection_pool.connection_kwargs
    return str(options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}")


def _certificate_ends_ms(client: Any, ca_file: Path | None, timeout_s: float) -> int:
    from redis import SSLConnection  # noqa: PLC0415  not part of the extra admin

    pool = client.connection_pool
    if not issubclass(pool.connection_class, SSLConnection):
        return 0
    options = pool.connection_kwargs
    where = (options.get("host", "localhost"), options.get("port", 6379))
    context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    with (
        socket.create_connection(where, timeout_s) as plain,
        context.wrap_socket(plain, server_hostname=where[0]) as secured,
    ):
        certificate = secured.getpeercert()
    assert certificate is not None
    return int(ssl.cert_time_to_seconds(str(certificate["notAfter"])) * 1000)
