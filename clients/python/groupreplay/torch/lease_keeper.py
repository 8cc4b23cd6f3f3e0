"""Extends the leases of steps that are being trained on, however long that takes."""

import logging
import threading

from groupreplay.client import Client
from groupreplay.errors import GroupReplayError, LeaseExpiredError, StepConflictError, UnknownLeaseError

ENDED = (LeaseExpiredError, StepConflictError, UnknownLeaseError)
"""The lease is not live (any more)."""

_log = logging.getLogger(__name__)


class LeaseKeeper:
    """Holds leases until they are dropped. Its thread makes no process wait for it."""

    def __init__(self, client: Client, *, run: str, table: str, lease_s: float) -> None:
        """Prepare it; the client stays open until after close()."""
        self._client = client
        self._names = {"run": run, "table": table}
        self._lease_s = lease_s
        self._held: set[str] = set()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="groupreplay-leases", daemon=True)

    def hold(self, lease_id: str) -> None:
        """Extend a lease from now on."""
        self._held.add(lease_id)
        if self._thread.ident is None:
            self._thread.start()

    def drop(self, lease_id: str) -> None:
        """Extend a lease no more."""
        self._held.discard(lease_id)

    def close(self) -> None:
        """Extend nothing any more."""
        self._closed.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _work(self) -> None:
        while not self._closed.wait(self._lease_s / 3):
            for lease_id in sorted(self._held):
                self._extend(lease_id)

    def _extend(self, lease_id: str) -> None:
        try:
            self._client.extend_lease(lease_id=lease_id, lease_s=self._lease_s, **self._names)
        except ENDED as error:
            if lease_id in self._held:  # else it was committed or given back meanwhile
                self.drop(lease_id)
                _log.warning("lease %s cannot be extended: %s. The commit will tell", lease_id, error)
        except GroupReplayError as error:
            _log.warning("lease %s was not extended, trying again: %s", lease_id, error)
