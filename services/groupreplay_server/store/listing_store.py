"""Listing the groups of a table, a page at a time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from groupreplay.groups import MAX_POLICY_VERSION
from groupreplay.types import GroupState
from groupreplay_server.store.backend import Backend
from groupreplay_server.store.connection import translated_errors
from groupreplay_server.store.keys import TableKeys
from groupreplay_server.store.scripts import Value, call_script


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupFilter:
    """Which groups to list; None and empty = any."""

    task: str | None = None
    prompt_id: str = ""
    effective: bool | None = None
    policy_version_from: int = 0
    policy_version_to: int = MAX_POLICY_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a listing goes on."""

    state: GroupState
    """The place that is being listed."""
    after: str = ""
    """As list_groups.lua says; empty = from the start."""
    after_id: str = ""


@dataclass(frozen=True, slots=True)
class FoundGroup:
    """A group of a listing, without its payload."""

    header: bytes
    state: GroupState
    has_payload: bool
    effective: bool
    staleness: int
    times_sampled: int
    redeliveries: int
    inserted_ms: int
    priority: float
    kl: float | None
    ess: float | None
    lease_id: str


class ListingStore:
    """Reads pages."""

    def __init__(self, redis: Backend, shared: Callable[[TableKeys], Mapping[str, Value]]) -> None:
        self._redis = redis
        self._shared = shared

    async def list_groups(
        self, run: str, table: str, wanted: GroupFilter, position: Position, *, limit: int, most_bytes: int
    ) -> tuple[list[FoundGroup], Position | None]:
        """Return groups of one place, and where to go on there; None = the place is done with."""
        keys = TableKeys(run, table)
        values: dict[str, Value] = {
            **self._shared(keys),
            "place": position.state.value,
            "after": position.after,
            "after_id": position.after_id,
            "limit": limit,
            "most_bytes": most_bytes,
            "task": "" if wanted.task is None else f"={wanted.task}",
            "prompt_id": wanted.prompt_id,
            "effective": "" if wanted.effective is None else int(wanted.effective),
            "oldest": wanted.policy_version_from,
            "newest": wanted.policy_version_to,
        }
        with translated_errors():
            groups, after, after_id = await call_script(self._redis, "list_groups", keys.all(), values)
        found = [_found(group, position.state) for group in groups]
        if not after:
            return found, None
        return found, Position(state=position.state, after=after.decode(), after_id=after_id.decode())


def _found(reply: Sequence[Any], state: GroupState) -> FoundGroup:
    header, kept, effective, staleness, times_sampled, returns, inserted_ms, priority, kl, ess, lease_id = reply
    return FoundGroup(
        header=header,
        state=state,
        has_payload=bool(kept),
        effective=bool(effective),
        staleness=staleness,
        times_sampled=times_sampled,
        redeliveries=returns,
        inserted_ms=inserted_ms,
        priority=float(priority),
        kl=float(kl) if kl else None,
        ess=float(ess) if ess else None,
        lease_id=lease_id.decode(),
    )
