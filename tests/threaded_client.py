"""The plain Client behind the methods of AsyncClient, so that one test holds for both."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from typing import Any

from groupreplay import Client, InsertResult, Policy, RolloutGroup


class ThreadedClient:
    """Runs each call of a Client in a thread."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        return partial(asyncio.to_thread, getattr(self._client, name))

    async def insert_many(self, groups: AsyncIterable[RolloutGroup], **options: Any) -> AsyncIterator[InsertResult]:
        """Store groups, and yield their results."""
        collected = [group async for group in groups]
        for result in await asyncio.to_thread(lambda: list(self._client.insert_many(iter(collected), **options))):
            yield result

    async def watch_policy(self, **options: Any) -> AsyncIterator[Policy]:
        """Yield policies; close it only between two of them, since a thread cannot be interrupted."""
        policies: Iterator[Policy] = self._client.watch_policy(**options)
        while (policy := await asyncio.to_thread(next, policies, None)) is not None:
            yield policy
