"""What clients count while they push or pull."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Groups moved, by one client or by several that began together."""

    groups: int
    payload_bytes: int
    seconds: float
    """From the start to the last answer."""
    latencies_s: Sequence[float] = ()
    """Of each call."""
    cpu_s: float = 0.0
    """Of the clients."""

    @property
    def groups_per_s(self) -> float:
        """Rate over all clients."""
        return self.groups / self.seconds if self.seconds else 0.0

    @property
    def mb_per_s(self) -> float:
        """Payload, in millions of bytes."""
        return self.payload_bytes / self.seconds / 1e6 if self.seconds else 0.0

    def latency_ms(self, percentile: float) -> float | None:
        """Return a percentile of the calls' latencies; None where no call was timed."""
        return 1e3 * float(np.percentile(self.latencies_s, percentile)) if self.latencies_s else None


def together(tallies: Iterable[Tally]) -> Tally:
    """Return the tally of clients that began together; the slowest says how long it took."""
    found = list(tallies)
    return Tally(
        groups=sum(tally.groups for tally in found),
        payload_bytes=sum(tally.payload_bytes for tally in found),
        seconds=max((tally.seconds for tally in found), default=0.0),
        latencies_s=[latency for tally in found for latency in tally.latencies_s],
        cpu_s=sum(tally.cpu_s for tally in found),
    )
