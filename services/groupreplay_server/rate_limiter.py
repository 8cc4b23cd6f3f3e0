"""Limits on calls and bytes per second of each caller. Pure: the clock is a parameter."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from groupreplay.errors import RateLimitedError

BURST_S = 2.0
"""Seconds' worth that a caller who was quiet may take at once."""
MAX_CALLERS = 10_000


class TokenBucket:
    """Holds BURST_S seconds' worth at most. What is taken may exceed what it holds; it then owes the rest.

    So a call whose size is known only once it was read is charged in full, and the next one waits for it.
    """

    def __init__(self, per_s: float, clock: Callable[[], float]) -> None:
        """Begin full. clock counts seconds."""
        self._per_s = per_s
        self._clock = clock
        self._held = per_s * BURST_S
        self._at = clock()

    def wait_s(self) -> float:
        """Return after how many seconds something can be taken; 0 = now."""
        self._refill()
        return max(0.0, -self._held / self._per_s)

    def take(self, amount: float) -> None:
        """Take an amount, whether it is there or not."""
        self._refill()
        self._held -= amount

    def _refill(self) -> None:
        now = self._clock()
        self._held = min(self._per_s * BURST_S, self._held + (now - self._at) * self._per_s)
        self._at = now


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimits:
    """Of each caller, in this process. None = unlimited."""

    calls_per_s: float | None = None
    bytes_per_s: float | None = None


class RateLimiter:
    """A pair of buckets for each caller; those who have not called for longest are forgotten beyond MAX_CALLERS."""

    def __init__(self, limits: RateLimits, clock: Callable[[], float] = time.monotonic) -> None:
        """Limit every caller alike."""
        both = {"calls": limits.calls_per_s, "bytes": limits.bytes_per_s}
        self._per_s = {what: per_s for what, per_s in both.items() if per_s}
        self._clock = clock
        self._callers: OrderedDict[str, dict[str, TokenBucket]] = OrderedDict()

    @property
    def counts_bytes(self) -> bool:
        """Whether bytes are limited."""
        return "bytes" in self._per_s

    def admit(self, caller: str) -> None:
        """Count one call.

        Raises:
            RateLimitedError: the caller is over its limit; the error says when to call again.
        """
        buckets = self._buckets(caller)
        for what, bucket in buckets.items():
            if wait_s := bucket.wait_s():
                error = RateLimitedError(
                    f"caller {caller!r} is over {self._per_s[what]:g} {what}/s, the limit of each caller of this "
                    f"server; call again in {wait_s:.2f} s, or raise --max-{what}-per-s"
                )
                error.retry_after_s = wait_s
                raise error
        if calls := buckets.get("calls"):
            calls.take(1)

    def charge(self, caller: str, size: int) -> float:
        """Count bytes that came or went; return how many seconds to wait before more of a stream."""
        bucket = self._buckets(caller).get("bytes")
        if bucket is None:
            return 0.0
        bucket.take(size)
        return bucket.wait_s()

    def _buckets(self, caller: str) -> dict[str, TokenBucket]:
        if caller not in self._callers:
            self._callers[caller] = {what: TokenBucket(per_s, self._clock) for what, per_s in self._per_s.items()}
            if len(self._callers) > MAX_CALLERS:
                self._callers.popitem(last=False)
        self._callers.move_to_end(caller)
        return self._callers[caller]
