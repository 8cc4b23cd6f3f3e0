"""Connections to Redis: how they are opened, listened on, and how their errors come out."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    ClusterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from groupreplay.errors import ERRORS, InternalError, StoreUnavailableError, error_from_reason
from groupreplay_server.store.address import Deployment, HostPort, RedisAccess, RedisAddress, read_address
from groupreplay_server.store.backend import Backend, SingleRedis
from groupreplay_server.store.cluster import RedisCluster
from groupreplay_server.store.durability import WaitLimits
from groupreplay_server.store.node import Node

CONNECT_TIMEOUT_S = 2.0
SENTINEL_TIMEOUT_S = 1.0
REPLY_TIMEOUT_S = 10.0
RECONNECT_S = 0.2
QUIET_S = 5.0
"""A subscription that was quiet for so long is tested with a ping, and left when that is not answered either."""
READ_BYTES = 2**20
"""Read at once at most, where redis-py would take 64 KiB at a time of payloads that are megabytes long."""
MAX_CONNECTIONS = 4096
"""Per server; a wait for durability holds one."""

_UNAVAILABLE = (
    RedisConnectionError,
    RedisTimeoutError,
    OSError,
    ReadOnlyError,
    OutOfMemoryError,
    ClusterDownError,
    TryAgainError,
    AskError,
)
_PASSING = {"NOREPLICAS", "UNBLOCKED", "MISCONF"}
"""First words of errors that end with a failover or when the server gets well."""
_NO_ACCESS = RedisAccess()
_USUAL_LIMITS = WaitLimits()


@asynccontextmanager
async def open_redis(
    url: str,
    *,
    access: RedisAccess = _NO_ACCESS,
    limits: WaitLimits = _USUAL_LIMITS,
    reply_timeout_s: float | None = REPLY_TIMEOUT_S,
) -> AsyncIterator[Backend]:
    """Open pools of connections to Redis, however the URL says it is deployed; the first command makes the first one.

    A command is repeated once when its connection turns out to be dead, which is what a restart of Redis leaves
    behind. That is safe: every script may be repeated.

    Raises:
        OSError: the URL or the files of the access settings cannot be used.
    """
    try:
        address = read_address(url)
        options = _connection_options(address, access)
    except ValueError as error:
        raise OSError(f"the URL of Redis cannot be used: {error}") from error
    if reply_timeout_s is not None:
        options["socket_timeout"] = reply_timeout_s + limits.timeout_s
    async with AsyncExitStack() as stack:
        backend = _make_backend(address, access, options, limits, stack)
        stack.push_async_callback(backend.close)
        yield backend


def _connection_options(address: RedisAddress, access: RedisAccess) -> dict[str, Any]:
    if access.password and address.password:
        raise ValueError(f"{address.shown} has a password, and so have the settings; keep one of them")
    options: dict[str, Any] = {
        "username": address.username or access.username or None,
        "password": address.password or access.password or None,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "socket_timeout": None,
        "retry": Retry(NoBackoff(), 1),
        "protocol": 2,
        "max_connections": MAX_CONNECTIONS,
        "socket_read_size": READ_BYTES,
    }
    return options | _tls_options(address, access)


def _tls_options(address: RedisAddress, access: RedisAccess) -> dict[str, Any]:
    files = {"ssl_ca_certs": access.ca_file, "ssl_certfile": access.cert_file, "ssl_keyfile": access.key_file}
    given = {name: str(path) for name, path in files.items() if path is not None}
    if given and not address.tls:
        raise ValueError(f"{address.shown} is not encrypted, but certificates are set; write rediss in place of redis")
    for path in given.values():
        Path(path).read_bytes()  # or every call would fail with an error of OpenSSL that names no file
    return given


def _make_backend(
    address: RedisAddress, access: RedisAccess, options: dict[str, Any], limits: WaitLimits, stack: AsyncExitStack
) -> Backend:
    if address.deployment is Deployment.STANDALONE:
        return SingleRedis(Node(Redis.from_url(address.url, **options), limits))
    tls = {name: value for name, value in options.items() if name.startswith("ssl_")} | {"ssl": address.tls}
    if address.deployment is Deployment.CLUSTER:

        def connect(where: HostPort) -> Node:
            return Node(Redis(host=where[0], port=where[1], ssl=address.tls, **options), limits)

        return RedisCluster(address.hosts, connect)
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        address.hosts,
        sentinel_kwargs={
            "username": access.sentinel_username or None,
            "password": access.sentinel_password or None,
            "socket_connect_timeout": SENTINEL_TIMEOUT_S,
            "socket_timeout": SENTINEL_TIMEOUT_S,
            "retry": Retry(NoBackoff(), 0),
            **tls,
        },
    )
    for client in sentinel.sentinels:
        stack.push_async_callback(client.aclose)
    master = sentinel.master_for(address.service_name, connection_pool_class=_MasterPool, ssl=address.tls, **options)
    return SingleRedis(Node(master, limits, moves=True))


class _MasterPool(SentinelConnectionPool):
    """Says in plain words that no Sentinel knows a master."""

    async def get_master_address(self) -> HostPort:
        try:
            found: HostPort = await super().get_master_address()  # type: ignore[no-untyped-call]
        except MasterNotFoundError as error:
            raise MasterNotFoundError(
                f"no Sentinel knows a living master of service {self.service_name}; see that they run, and that they "
                "call it so (SENTINEL MASTERS)"
            ) from error
        return found


async def listen(redis: Backend, channel: str, *, quiet_s: float = QUIET_S) -> AsyncIterator[str | None]:
    """Yield each message of a channel; None whenever messages may have been missed, as after every (re)connection."""
    task = asyncio.current_task()
    while task is None or not task.cancelling():  # a reconnecting client may swallow the cancellation
        try:
            client = await redis.subscriber()
            async with client.pubsub() as subscription:
                await subscription.subscribe(channel)
                async for message in _messages(subscription, quiet_s):
                    if message["type"] == "message":
                        yield text(message["data"])
                    elif message["type"] == "subscribe" or redis.may_miss_messages:
                        yield None
        except (RedisError, OSError):
            await asyncio.sleep(RECONNECT_S)


async def _messages(subscription: PubSub, quiet_s: float) -> AsyncIterator[dict[str, Any]]:
    """Yield what comes, answers to our own pings included; end with an error when the other side does not answer."""
    pinged = False
    while True:
        message = await subscription.get_message(timeout=quiet_s)
        if message is not None:
            pinged = False
            yield message
        elif pinged:
            raise RedisConnectionError(f"Redis did not answer a ping of a subscription within {quiet_s:g} s")
        else:
            await subscription.ping()
            pinged = True


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn what redis-py raises into GroupReplayError; the reason is the first word of a script's error."""
    try:
        yield
    except _UNAVAILABLE as error:
        raise StoreUnavailableError(
            f"Redis did not take the call ({error}); call again, or see that it runs"
        ) from error
    except ResponseError as error:
        reason, _, message = str(error).partition(" ")
        if reason in ERRORS:
            raise error_from_reason(reason, message) from None
        if reason in _PASSING:
            raise StoreUnavailableError(f"Redis did not take the call ({error}); call again") from error
        raise InternalError(f"Redis answered: {error}") from error
    except RedisError as error:
        raise InternalError(f"Redis failed: {error}") from error


def text(value: object) -> str:
    """Return what Redis sent as text; we never let redis-py decode, since payloads are bytes."""
    if not isinstance(value, bytes):
        raise TypeError(f"Redis sent {type(value).__name__} where bytes were expected")
    return value.decode()
