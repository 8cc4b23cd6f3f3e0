"""How a change is made to outlive a crash: the command that follows it on its connection, and what the answer means."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from redis.exceptions import ResponseError

from groupreplay.errors import DurabilityNotReachedError, InvalidRequestError

Command = tuple[str | bytes | memoryview | int | float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitLimits:
    """How much is waited for, and how long."""

    min_replicas: int = 1
    """Replicas that must have a change of durability `replicas`."""
    timeout_s: float = 5.0
    """Seconds until a wait is given up; the caller's deadline may end it sooner."""

    def __post_init__(self) -> None:
        if self.min_replicas < 1:
            raise ValueError(f"durability_min_replicas is {self.min_replicas}; durability replicas needs at least 1")
        if self.timeout_s < 0.001:  # Redis takes whole milliseconds, and 0 as for ever
            raise ValueError(f"durability_wait_s is {self.timeout_s:g}; it must be at least 0.001")


@dataclass(frozen=True, slots=True)
class Wait:
    """A command that waits until what its connection wrote has come far enough, and how to read its answer."""

    command: Command
    shortfall: Callable[[Any], str]
    """Says what is missing; empty = nothing."""

    def check(self, reply: Any) -> None:
        """Raise unless Redis answers that enough was reached.

        Raises:
            DurabilityNotReachedError: not in time; it may be reached later.
            InvalidRequestError: this Redis cannot do it.
        """
        if isinstance(reply, ResponseError):
            refuse_without_aof(reply)
            missing = f"Redis stopped waiting ({reply}); call again"
        elif isinstance(reply, Exception):
            raise reply
        else:
            missing = self.shortfall(reply)
        if missing:
            raise DurabilityNotReachedError(f"Redis took the change, but it is not yet as durable as asked: {missing}")


def wait_for_replicas(limits: WaitLimits) -> Wait:
    """Wait until enough replicas have what the connection wrote."""

    def shortfall(acknowledged: int) -> str:
        if acknowledged >= limits.min_replicas:
            return ""
        return (
            f"{acknowledged} of {limits.min_replicas} replicas had it after {limits.timeout_s:g} s; "
            "see that they run (INFO replication), or ask for durability aof or memory"
        )

    return Wait(("WAIT", limits.min_replicas, _milliseconds(limits)), shortfall)


def wait_for_disk(limits: WaitLimits) -> Wait:
    """Wait until the append-only file on disk has what the connection wrote."""

    def shortfall(synced: list[int]) -> str:
        if synced[0] >= 1:
            return ""
        return f"it was not on disk after {limits.timeout_s:g} s; see that the disk keeps up (INFO persistence)"

    return Wait(("WAITAOF", 1, 0, _milliseconds(limits)), shortfall)


def check_synced_always() -> Wait:
    """Wait for nothing: Redis that runs with appendfsync always has synced each write before it answers."""

    def shortfall(settings: list[bytes]) -> str:
        found = {name.decode(): value.decode() for name, value in zip(settings[::2], settings[1::2], strict=True)}
        if (found.get("appendonly"), found.get("appendfsync")) == ("yes", "always"):
            return ""
        raise InvalidRequestError(
            f"durability aof was asked for, but Redis runs with appendonly {found.get('appendonly')} and appendfsync "
            f"{found.get('appendfsync')}, and this version cannot say when a write is on disk; set appendonly yes and "
            "appendfsync always (--redis-appendfsync always where the service runs it), run Redis 7.2 or 8, or ask for "
            "durability memory or replicas"
        )

    return Wait(("CONFIG", "GET", "append*"), shortfall)


def refuse_without_aof(error: ResponseError) -> None:
    """Raise InvalidRequestError if Redis says that it keeps no append-only file."""
    if "appendonly is disabled" in str(error):
        raise InvalidRequestError(
            "durability aof was asked for, but Redis keeps no append-only file; set appendonly yes on it, "
            "or ask for durability memory or replicas"
        ) from error


def _milliseconds(limits: WaitLimits) -> int:
    return round(limits.timeout_s * 1000)
