"""Payloads that this server wrote or read lately, so that a draw need not fetch them from Redis.

A payload key has a random part, and what is under it never changes: a cached payload cannot be out of date, however
many servers there are. Which keys to ask for is said by the index alone, so what left a table is never handed out.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from groupreplay_server.store.records import Payload

_LEAST_USED: Final = 0.5
"""Part of a message that payloads must be for the message to be kept; of less they are copied out."""


class _Block:
    """Memory that is freed as a whole: a message that came with several payloads, or one payload."""

    __slots__ = ("keys", "size_bytes")

    def __init__(self, size_bytes: int, keys: Iterable[str]) -> None:
        self.size_bytes = size_bytes
        self.keys = set(keys)
        """Of the payloads in it that may still be asked for."""


class PayloadCache:
    """The payloads that were used last, in up to max_bytes of memory.

    A message that came is kept as it is, with views of it as payloads: to copy them out costs a tenth of the CPU time
    of an insert. It counts whole until its last payload has left.
    """

    def __init__(self, max_bytes: int = 0) -> None:
        """max_bytes=0 keeps nothing."""
        self._max_bytes = max_bytes
        self._payloads: dict[str, tuple[_Block, Payload]] = {}
        self._blocks: OrderedDict[_Block, None] = OrderedDict()
        self.size_bytes = 0
        """Of the memory kept; allocator and index take some per cent more."""
        self.hits = self.misses = 0
        """How many payloads were asked for, and how many of these were not there."""

    def put(self, payloads: Mapping[str, Payload]) -> None:
        """Keep payloads that came together, by key."""
        if not self._max_bytes:
            return
        for size_bytes, block_payloads in _by_block(payloads):
            new = {key: payload for key, payload in block_payloads.items() if key not in self._payloads}
            if new and 0 < size_bytes <= self._max_bytes:
                self._add(_Block(size_bytes, new), new)

    def get(self, key: str) -> Payload | None:
        """Return a payload; None = it is not here."""
        found = self._payloads.get(key)
        if found is None:
            self.misses += 1
            return None
        self.hits += 1
        block, payload = found
        self._blocks.move_to_end(block)
        return payload

    def drop(self, keys: Iterable[str]) -> None:
        """Forget what nobody will ask for again."""
        for key in keys:
            if key in self._payloads:
                block, _ = self._payloads.pop(key)
                block.keys.discard(key)
                if not block.keys:
                    self._free(block)

    def _add(self, block: _Block, payloads: Mapping[str, Payload]) -> None:
        self._blocks[block] = None
        self.size_bytes += block.size_bytes
        for key, payload in payloads.items():
            self._payloads[key] = (block, payload)
        while self.size_bytes > self._max_bytes:
            self._free(next(iter(self._blocks)))

    def _free(self, block: _Block) -> None:
        del self._blocks[block]
        self.size_bytes -= block.size_bytes
        for key in block.keys:
            del self._payloads[key]


def _by_block(payloads: Mapping[str, Payload]) -> Iterator[tuple[int, dict[str, Payload]]]:
    """Yield the payloads that share a block of memory, and its size; where most of it is something else, copies."""
    views: dict[int, dict[str, memoryview]] = defaultdict(dict)
    for key, payload in payloads.items():
        if isinstance(payload, memoryview):
            views[id(payload.obj)][key] = payload
        else:
            yield len(payload), {key: payload}
    for shared in views.values():
        message = next(iter(shared.values())).obj
        if isinstance(message, bytes) and sum(map(len, shared.values())) >= _LEAST_USED * len(message):
            yield len(message), dict(shared)
        else:
            for key, payload in shared.items():
                yield len(payload), {key: bytes(payload)}
