"""Connections to Redis: how they are opened, listened on, and how their errors come out."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from groupreplay.errors import ERRORS, InternalError, StoreUnavailableError, error_from_reason

CONNECT_TIMEOUT_S = 2.0
REPLY_TIMEOUT_S = 10.0
RECONNECT_S = 0.2


@asynccontextmanager
async def open_redis(url: str, *, reply_timeout_s: float | None = REPLY_TIMEOUT_S) -> AsyncIterator[Redis]:
    """Open a pool of connections; the first is made by the first command.

    A command is repeated once when its connection turns out to be dead, which is what a restart of Redis leaves
    behind. That is safe: every script may be repeated.
    """
    try:
        redis = Redis.from_url(
            url,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            socket_timeout=reply_timeout_s,
            retry=Retry(NoBackoff(), 1),
            protocol=2,
        )
    except ValueError as error:
        raise OSError(f"the URL of Redis cannot be used: {error}; pass --redis-url redis://HOST:PORT/0") from error
    try:
        yield redis
    finally:
        await redis.aclose()


async def listen(redis: Redis, channel: str) -> AsyncIterator[str | None]:
    """Yield each message of a channel; None after every (re)connection, since messages may have been missed.

    The client must have no reply timeout: a quiet channel is no fault.
    """
    while True:
        try:
            async with redis.pubsub(ignore_subscribe_messages=True) as subscription:
                await subscription.subscribe(channel)
                yield None
                async for message in subscription.listen():
                    yield text(message["data"])
        except (RedisError, OSError):
            await asyncio.sleep(RECONNECT_S)


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn what redis-py raises into GroupReplayError; the reason is the first word of a script's error."""
    try:
        yield
    except (RedisConnectionError, RedisTimeoutError, OSError, ReadOnlyError, OutOfMemoryError) as error:
        raise StoreUnavailableError(
            f"Redis did not take the call ({error}); call again, or see that it runs"
        ) from error
    except ResponseError as error:
        reason, _, message = str(error).partition(" ")
        if reason in ERRORS:
            raise error_from_reason(reason, message) from None
        raise InternalError(f"Redis answered: {error}") from error
    except RedisError as error:
        raise InternalError(f"Redis failed: {error}") from error


def text(value: object) -> str:
    """Return what Redis sent as text; we never let redis-py decode, since payloads are bytes."""
    if not isinstance(value, bytes):
        raise TypeError(f"Redis sent {type(value).__name__} where bytes were expected")
    return value.decode()
