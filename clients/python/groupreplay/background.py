"""Calls that go on while their caller does something else: as a task in AsyncClient, in a thread in Client."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextvars import copy_context
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class BackgroundTask(Generic[T]):
    """A coroutine that runs."""

    def __init__(self, call: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> None:
        """Start it."""
        self._task = asyncio.create_task(call(*arguments))

    async def result(self) -> T:
        """Wait for what it returns, or raise what it raised."""
        return await self._task

    async def end(self) -> None:
        """Cancel it, and wait until it has ended."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


class BackgroundThread(Generic[T]):
    """A function that runs in a thread."""

    def __init__(self, call: Callable[..., T], *arguments: Any) -> None:
        """Start it, with the context variables of its caller."""
        self._future: Future[T] = Future()
        run = copy_context().run
        # A daemon: a process that ends need not wait for a service that is away.
        threading.Thread(target=run, args=(self._run, call, arguments), name="groupreplay-call", daemon=True).start()

    def result(self) -> T:
        """Wait for what it returns, or raise what it raised."""
        return self._future.result()

    def end(self) -> None:
        """Wait until it has ended: a thread cannot be cancelled."""
        self._future.exception()

    def _run(self, call: Callable[..., T], arguments: tuple[Any, ...]) -> None:
        try:
            self._future.set_result(call(*arguments))
        except BaseException as error:  # noqa: BLE001 - result() raises it
            self._future.set_exception(error)
