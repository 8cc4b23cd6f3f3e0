"""Payloads that this server wrote or read lately, so that a draw need not fetch them from Redis.

A payload key has a random part, and what is under it never changes: a cached payload cannot be out of date, however
many servers there are. Which keys to ask for is said by the index alone, so what left a table is never handed out.
"""

from collections import OrderedDict
from collections.abc import Iterable


class PayloadCache:
    """The payloads that were used last, up to max_bytes of them."""

    def __init__(self, max_bytes: int = 0) -> None:
        """max_bytes=0 keeps nothing."""
        self._max_bytes = max_bytes
        self._payloads: OrderedDict[str, bytes] = OrderedDict()
        self.size_bytes = 0
        """Of the payloads; allocator and index take some per cent more."""
        self.hits = self.misses = 0
        """How many payloads were asked for, and how many of these were not there."""

    def put(self, key: str, payload: bytes | memoryview) -> None:
        """Keep a payload; a view of a message is copied, or the whole message would stay for it."""
        if key in self._payloads or not 0 < len(payload) <= self._max_bytes:
            return
        self._payloads[key] = bytes(payload)
        self.size_bytes += len(payload)
        while self.size_bytes > self._max_bytes:
            _, oldest = self._payloads.popitem(last=False)
            self.size_bytes -= len(oldest)

    def get(self, key: str) -> bytes | None:
        """Return a payload; None = it is not here."""
        payload = self._payloads.get(key)
        if payload is None:
            self.misses += 1
        else:
            self.hits += 1
            self._payloads.move_to_end(key)
        return payload

    def drop(self, keys: Iterable[str]) -> None:
        """Free what nobody will ask for again."""
        for key in keys:
            self.size_bytes -= len(self._payloads.pop(key, b""))
