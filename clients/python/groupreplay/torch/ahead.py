"""Works ahead of a loop, in a thread."""

import logging
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Generic, TypeVar

WAIT_S = 30.0
"""How long close() waits for work that has begun: ranks that leave a loop together do so within this time."""

_log = logging.getLogger(__name__)
ItemT = TypeVar("ItemT")


class Ahead(Generic[ItemT]):
    """Makes items in a thread, up to `depth` of them beyond the one that the loop has in hand."""

    def __init__(
        self,
        make: Callable[[int], ItemT],
        steps: Iterable[int],
        *,
        depth: int,
        end: Callable[[], None],
        stop: threading.Event,
    ) -> None:
        """Start.

        Args:
            make: makes the item of a step; what it raises comes out of the loop in the item's place, and ends the work.
            steps: in their order.
            depth: at least 1.
            end: called once, in the thread, after the last call of make and before the loop ends.
            stop: set by close(); make shall end soon then.
        """
        self._make, self._steps, self._end, self._stop = make, steps, end, stop
        self._slots = threading.Semaphore(depth)
        self._items: queue.SimpleQueue[Future[ItemT] | None] = queue.SimpleQueue()
        # A daemon: what it waits for may never come, and the process must be able to end all the same.
        self._thread = threading.Thread(target=self._work, name="groupreplay-prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[ItemT]:
        while (item := self._items.get()) is not None:
            self._slots.release()
            yield item.result()

    def close(self) -> bool:
        """End the work; return False where it goes on, since the other ranks did not leave within WAIT_S."""
        self._stop.set()
        self._slots.release()
        self._thread.join(WAIT_S)
        return not self._thread.is_alive()

    def _work(self) -> None:
        for step in self._steps:
            self._slots.acquire()
            if self._stop.is_set() or not self._add(step):
                break
        try:
            self._end()
        except RuntimeError:
            # A rank has died. The loop has its items; whatever it does with the others next will tell it.
            _log.warning("the other ranks did not hear that no more batches are prefetched", exc_info=True)
        self._items.put(None)

    def _add(self, step: int) -> bool:
        item: Future[ItemT] = Future()
        try:
            item.set_result(self._make(step))
        except BaseException as error:  # noqa: BLE001 - the loop raises it
            item.set_exception(error)
        self._items.put(item)
        return item.exception() is None
