"""The trainer's calls to the replay service: it outlives the service's restarts, and never waits in silence."""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from typing import Any, Final, TypeVar

from groupreplay import (
    Batch,
    BatchNotReadyError,
    CallDeadlineExceededError,
    Client,
    DurabilityNotReachedError,
    GroupFeedback,
    GroupReplayError,
    LeaseExpiredError,
    Policy,
    ServiceUnavailableError,
    Severity,
    ShuttingDownError,
    StoreUnavailableError,
    TableExistsError,
    UnknownLeaseError,
)
from groupreplay.shares import share_groups
from groupreplay.table_config import FIXED_FIELDS
from groupreplay_trainer.ranks import Ranks
from groupreplay_trainer.settings import TrainerSettings

POLL_S: Final = 5.0
"""Longest single wait for a batch: within this time a trainer that is told to stop takes notice."""
RETRY_S: Final = 1.0

_AWAY = (
    ServiceUnavailableError,
    StoreUnavailableError,
    ShuttingDownError,
    CallDeadlineExceededError,
    DurabilityNotReachedError,
)
"""The service, or its replicas, will come back, and every call may be repeated."""

_ALONE: Final = Ranks()
_log = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")


class StopRequestedError(Exception):
    """The trainer was told to stop while it waited or worked."""


class StarvedError(RuntimeError):
    """No batch became ready within max_wait_s."""


class ServiceCalls:
    """The calls of one trainer, on its table. While the service is away they wait, until `stop` is set."""

    def __init__(
        self, client: Client, *, settings: TrainerSettings, stop: threading.Event, ranks: Ranks = _ALONE
    ) -> None:
        """Wrap an open client. All ranks must make each call, `release` apart; the first makes it for all."""
        self._client = client
        self._settings = settings
        self._stop = stop
        self._ranks = ranks
        self._extend_at = 0.0
        self._away = False
        self._away_s = 0.0

    def create_table(self) -> None:
        """Create the table, or find it with the same fill rule, order and weights. Its limits may be others by now.

        Raises:
            TableExistsError: the table is there with another configuration; the message has the difference.
            StopRequestedError: as every call here.
        """
        names, config = {"run": self._settings.run, "table": self._settings.table}, self._settings.table_config()
        try:
            self._patiently("create the table", lambda: self._client.create_table(config=config, **names))
        except TableExistsError as error:
            found = self._patiently("read the table", lambda: self._client.describe_table(**names)).config
            if any(getattr(found, name) != getattr(config, name) for name in FIXED_FIELDS):
                raise
            _log.info("training on the table as it is: %s", error)

    def get_policy(self) -> Policy:
        """Return the run's policy clock."""
        return self._patiently("read the policy clock", lambda: self._client.get_policy(run=self._settings.run))

    def advance_policy(self, policy: Policy) -> None:
        """Announce published weights.

        Raises:
            PolicyVersionConflictError: the clock stands at or beyond this version, with other weights.
        """
        self._patiently("advance the policy", lambda: self._client.advance_policy(policy))

    def next_batch(self, step: int) -> Batch:
        """Wait for the batch of a step, saying now and then what is missing. The same step again: the same batch.

        Raises:
            StarvedError: no batch within max_wait_s; the message has what is missing.
            StepConflictError: the step is committed.
            StopRequestedError: told to stop; the lease may have been given all the same.
        """
        settings = self._settings
        started, away_before_s = time.monotonic(), self._away_s
        report_at = started + settings.report_s

        def waited_s() -> float:
            return time.monotonic() - started - (self._away_s - away_before_s)

        while True:
            try:
                batch = self._take_batch(step)
            except BatchNotReadyError as error:
                report_at = self._ranks.first(partial(self._wait_on, step, error, waited_s(), report_at))
                self.check_stop()
            else:
                # After a restart this may be a lease that the trainer before had held for long.
                left_s = min(batch.lease_deadline_ms / 1000 - time.time(), settings.lease_s)
                self._extend_at = time.monotonic() + left_s - settings.lease_s / 2
                return batch

    def _take_batch(self, step: int) -> Batch:
        """Return the batch of a step if it is ready soon; with several ranks, each reads its share for all.

        Raises:
            BatchNotReadyError: it is not.
        """
        settings = self._settings
        longest_s = POLL_S if settings.max_wait_s is None else min(POLL_S, settings.max_wait_s)
        names: dict[str, Any] = {"run": settings.run, "table": settings.table, "lease_id": settings.lease_id(step)}
        lease = names | {
            "batch_size": settings.batch_size,
            "lease_s": settings.lease_s,
            "timeout_s": min(longest_s, settings.report_s),
            "holder": settings.trainer_id,
        }
        if self._ranks.size == 1:
            return self._patiently("take a batch", lambda: self._client.next_batch(**lease))
        outline = self._patiently("take a batch", lambda: self._client.lease_batch(**lease))
        own = share_groups(outline.groups, self._ranks.size)[self._ranks.rank]
        shares = self._ranks.exchange(
            lambda: self._until_answered("read a share of a batch", lambda: self._client.read_lease(own, **names))
        )
        read = {item.group.group_id: item for share in shares for item in share}
        groups = tuple(read[item.group_id] for item in outline.groups)
        return Batch(**{field.name: getattr(outline, field.name) for field in fields(outline)} | {"groups": groups})

    def _wait_on(self, step: int, error: BatchNotReadyError, waited_s: float, report_at: float) -> float:
        """Say now and then what is missing; return when to say it next.

        Raises:
            StarvedError: max_wait_s are over.
        """
        settings = self._settings
        if settings.max_wait_s is not None and waited_s >= settings.max_wait_s:
            raise StarvedError(
                f"step {step} has waited {waited_s:.0f} s for its batch, and max_wait_s is {settings.max_wait_s:g}: "
                f"{self._what_is_missing(error)}"
            ) from error
        if time.monotonic() < report_at:
            return report_at
        _log.info("step %d has waited %.0f s for its batch: %s", step, waited_s, self._what_is_missing(error))
        return time.monotonic() + settings.report_s

    def _what_is_missing(self, error: BatchNotReadyError) -> str:
        """Return what the service's diagnosis says in words, or the last answer where it cannot be had."""
        settings = self._settings
        try:
            found = self._client.diagnose(run=settings.run, table=settings.table, batch_size=settings.batch_size)
        except GroupReplayError:
            return str(error)
        # It says no_demand where nobody waits for a batch: this trainer does, but asks the question between two calls.
        serious = [it.text for it in found.findings if it.severity is not Severity.INFO and it.code != "no_demand"]
        return " ".join(serious) or str(error)

    def keep_lease(self, step: int) -> None:
        """Extend the lease of a step if less than half its time is left. Failure is logged: the commit decides."""
        if not self._ranks.is_first or time.monotonic() < self._extend_at:
            return
        self._extend_at = time.monotonic() + self._settings.lease_s / 2
        lease_id = self._settings.lease_id(step)
        try:
            self._client.extend_lease(
                run=self._settings.run, table=self._settings.table, lease_id=lease_id, lease_s=self._settings.lease_s
            )
        except GroupReplayError as error:
            _log.warning("lease %s was not extended: %s. Training goes on; the commit will tell", lease_id, error)

    def rewind_policy(self, policy: Policy, *, step: int) -> Policy:
        """Move the run's policy clock back to the checkpoint of a step; return where it stands."""
        rewind_id = uuid.uuid4().hex
        return self._patiently(
            "move the policy clock back",
            lambda: self._client.rewind_policy(policy, step=step, rewind_id=rewind_id),
        )

    def commit(self, step: int, lease_id: str, feedback: Sequence[GroupFeedback] = ()) -> None:
        """Record that a step has trained on the groups of a lease, and what it found out; again changes nothing.

        Raises:
            LeaseExpiredError, UnknownLeaseError: the groups are, or may be, somebody else's.
            StepConflictError: the step was committed with another lease.
        """
        self._patiently(
            "commit the step",
            lambda: self._client.commit(
                run=self._settings.run, table=self._settings.table, lease_id=lease_id, step=step, feedback=feedback
            ),
        )

    def release(self, step: int) -> None:
        """Give the groups of an unfinished step back. One try: the lease ends by itself in any case."""
        if not self._ranks.is_first:
            return
        lease_id = self._settings.lease_id(step)
        if self._away:
            # The client would try for call_timeout_s, and whoever stops a trainer waits for it to end.
            _log.warning("lease %s was not released, because the service is away; it ends by itself", lease_id)
            return
        try:
            returned = self._client.release(run=self._settings.run, table=self._settings.table, lease_id=lease_id)
        except (UnknownLeaseError, LeaseExpiredError):
            return
        except GroupReplayError as error:
            _log.warning("lease %s was not released, and ends by itself: %s", lease_id, error)
        else:
            _log.info("released lease %s: %d fresh groups went back", lease_id, returned)

    def check_stop(self) -> None:
        """Raise StopRequestedError if the trainer was told to stop."""
        if self._ranks.any(self._stop.is_set()):
            raise StopRequestedError

    def _patiently(self, what: str, call: Callable[[], ResultT]) -> ResultT:
        return self._ranks.first(lambda: self._until_answered(what, call))

    def _until_answered(self, what: str, call: Callable[[], ResultT]) -> ResultT:
        """Return what `call` returns, trying again for as long as the service is away."""
        away_since: float | None = None
        report_at = 0.0
        while True:
            try:
                result = call()
            except _AWAY as error:
                away_since = time.monotonic() if away_since is None else away_since
                self._away = True
                if time.monotonic() >= report_at:
                    _log.warning("cannot %s now, trying on until the service answers: %s", what, error)
                    report_at = time.monotonic() + self._settings.report_s
                if self._stop.wait(RETRY_S):
                    raise StopRequestedError from error
            except GroupReplayError:
                self._answered(away_since)
                raise
            else:
                self._answered(away_since)
                return result

    def _answered(self, away_since: float | None) -> None:
        self._away = False
        if away_since is not None:
            away_s = time.monotonic() - away_since
            self._away_s += away_s
            _log.warning("the service answers again after %.0f s", away_s)
