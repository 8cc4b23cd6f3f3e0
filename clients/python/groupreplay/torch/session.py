"""A trainer's batches: leased once for all its ranks, read by each rank in part, committed once."""

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

from groupreplay.client import Client
from groupreplay.errors import BatchNotReadyError, GroupReplayError
from groupreplay.groups import check_name
from groupreplay.shares import share_groups
from groupreplay.torch.lease_keeper import ENDED, LeaseKeeper
from groupreplay.torch.ranks import Ranks, Share
from groupreplay.types import Batch, BatchOutline, GroupFeedback

POLL_S: Final = 2.0
"""Longest single wait for a batch: within this time an iteration that ends early takes notice."""
REPORT_S: Final = 60.0
BRISK_S: Final = 10.0
"""Longest try of calls that nobody shall wait for: the lease ends by itself in any case."""

_log = logging.getLogger(__name__)


class IterationEndedError(Exception):
    """The iteration ended while this batch was waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSource:
    """Which batches a trainer takes, and under which leases. See GroupDataset."""

    address: str
    run: str
    table: str
    batch_size: int
    lease_prefix: str
    lease_s: float
    timeout_s: float
    call_timeout_s: float
    holder: str

    def __post_init__(self) -> None:
        check_name(self.lease_id(0), "lease_prefix")

    def lease_id(self, step: int) -> str:
        """Name the lease of a step: the same after a restart, so that it has the same groups."""
        return f"{self.lease_prefix}-{step:06d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedBatch:
    """One rank's part of a batch."""

    outline: BatchOutline
    """Of the whole batch."""
    batch: Batch
    """With the groups of this rank; every other field is that of the whole batch."""


class Session:
    """The connection of one process. Only the first rank leases, extends, commits and releases."""

    def __init__(self, source: BatchSource, share: Share) -> None:
        """Connect; with torch.distributed, every process must."""
        self._source = source
        self._share = share
        self._names: dict[str, Any] = {"run": source.run, "table": source.table}
        self._opened = ExitStack()
        self._client = self._opened.enter_context(Client(source.address, timeout_s=source.call_timeout_s))
        brisk_s = min(BRISK_S, source.lease_s / 3)
        self._brisk = self._opened.enter_context(Client(source.address, timeout_s=brisk_s))
        self._begun: set[str] = set()
        self._takes, self._commits = Ranks(), Ranks()
        self._keeper = LeaseKeeper(self._brisk, lease_s=source.lease_s, **self._names)
        self.is_first = self._takes.is_first

    def take(self, step: int, stop: threading.Event) -> SharedBatch:
        """Return this rank's part of the batch of a step; the same step again has the same batch.

        Raises:
            IterationEndedError: stop was set.
            BatchNotReadyError: no complete batch within timeout_s.
            StepConflictError: the step was committed before.
        """
        outline = self._takes.from_first(lambda: self._lease(step, stop))
        if outline is None:
            raise IterationEndedError
        mine = share_groups(outline.groups, self._share.world_size)[self._share.rank]
        groups = self._client.read_lease(mine, lease_id=outline.lease_id, **self._names)
        fields = {name: getattr(outline, name) for name in BatchOutline.__slots__}
        return SharedBatch(outline=outline, batch=Batch(**fields | {"groups": tuple(groups)}))

    def end_takes(self) -> None:
        """Let the other ranks know, or wait to hear, that the first takes no more batches in this iteration."""
        if self.is_first:
            self._takes.from_first(lambda: None)
            return
        while True:
            try:
                if self._takes.from_first(lambda: None) is None:
                    return
            except (GroupReplayError, IterationEndedError):
                continue  # of a batch that nobody waits for any more

    def _lease(self, step: int, stop: threading.Event) -> BatchOutline | None:
        source = self._source
        lease_id = source.lease_id(step)
        self._begun.add(lease_id)  # before it is given: the answer may be lost
        deadline, report_at = time.monotonic() + source.timeout_s, time.monotonic() + REPORT_S
        while not stop.is_set():
            left_s = deadline - time.monotonic()
            try:
                outline = self._client.lease_batch(
                    batch_size=source.batch_size,
                    lease_id=lease_id,
                    lease_s=source.lease_s,
                    timeout_s=max(0.0, min(POLL_S, left_s)),
                    holder=source.holder,
                    **self._names,
                )
            except BatchNotReadyError as error:
                if left_s <= POLL_S:
                    raise
                if time.monotonic() >= report_at:
                    _log.info("step %d waits for its batch: %s", step, error)
                    report_at = time.monotonic() + REPORT_S
            else:
                self._keeper.hold(lease_id)
                return outline
        return None

    def commit(self, step: int, feedback: Sequence[GroupFeedback]) -> bool:
        """Commit a step when every rank is here; return, on each, whether it was committed before."""
        # Whatever comes of it, the trainer has the step: its groups do not go back any more.
        self._begun.discard(self._source.lease_id(step))
        found = self._commits.gather(list(feedback))
        return self._commits.from_first(lambda: self._commit(step, found))

    def _commit(self, step: int, found: Sequence[GroupFeedback]) -> bool:
        lease_id = self._source.lease_id(step)
        repeated = self._client.commit(
            lease_id=lease_id,
            step=step,
            # Ranks that share a part of the batch may report on the same group.
            feedback=tuple({item.group_id: item for item in found}.values()),
            **self._names,
        )
        self._keeper.drop(lease_id)
        return repeated

    def give_back(self) -> None:
        """Release what is leased and was not to be committed."""
        for lease_id in sorted(self._begun):
            self._keeper.drop(lease_id)
            self._begun.discard(lease_id)
            try:
                returned = self._brisk.release(lease_id=lease_id, **self._names)
            except ENDED:
                continue
            except GroupReplayError as error:
                _log.warning("lease %s was not released, and ends by itself: %s", lease_id, error)
            else:
                _log.info("released lease %s: %d fresh groups went back", lease_id, returned)

    def close(self) -> None:
        """Give back what is not committed, and disconnect."""
        self.give_back()
        self._keeper.close()
        self._opened.close()
        for line in (self._takes, self._commits):
            line.close()
