"""Lists the groups of a table: places one after the other, in pages of bounded work and size."""

import re
from collections.abc import Sequence

from groupreplay.errors import InvalidRequestError
from groupreplay.groups import MAX_POLICY_VERSION
from groupreplay.types import GroupState
from groupreplay_server.limits import check_names, check_range
from groupreplay_server.store.listing_store import FoundGroup, GroupFilter, ListingStore, Position

DEFAULT_LISTED = 100
MAX_LISTED = 1000
MAX_LISTED_BYTES = 2 * 2**20
"""Of headers: with one of the largest on top a page stays below gRPC's 4 MiB."""
PLACES = (GroupState.FRESH, GroupState.LEASED, GroupState.REPLAY)
_CURSOR = re.compile(r"(fresh|leased|replay):([0-9]{0,20}):([A-Za-z0-9._-]{0,128})")


class Listing:
    """Pages of groups."""

    def __init__(self, store: ListingStore) -> None:
        self._store = store

    async def page(
        self, run: str, table: str, *, states: Sequence[GroupState], wanted: GroupFilter, limit: int, cursor: str
    ) -> tuple[list[FoundGroup], str]:
        """Return groups, and the cursor of the next page; empty = that was all.

        Raises:
            InvalidRequestError: a number is out of range, no group can be in a state, or the cursor is of another call.
        """
        check_names(run, table)
        check_range("limit", limit, 1, MAX_LISTED)
        check_range("policy_version_from", wanted.policy_version_from, 0, MAX_POLICY_VERSION)
        check_range("policy_version_to", wanted.policy_version_to, 0, MAX_POLICY_VERSION)
        places = _places(states)
        position: Position | None = _position(cursor, places)
        found: list[FoundGroup] = []
        left_bytes = MAX_LISTED_BYTES
        while position is not None and len(found) < limit and left_bytes > 0:
            state = position.state
            groups, position = await self._store.list_groups(
                run, table, wanted, position, limit=limit - len(found), most_bytes=left_bytes
            )
            found += groups
            left_bytes -= sum(len(group.header) for group in groups)
            if position is not None:
                break
            position = next((Position(state=it) for it in places[places.index(state) + 1 :]), None)
        return found, f"{position.state}:{position.after}:{position.after_id}" if position else ""


def _places(states: Sequence[GroupState]) -> list[GroupState]:
    if nowhere := set(states) - set(PLACES):
        raise InvalidRequestError(
            f"states {', '.join(sorted(nowhere))} cannot be listed: a table holds fresh, leased and replay groups only"
        )
    return [place for place in PLACES if place in states or not states]


def _position(cursor: str, places: Sequence[GroupState]) -> Position:
    if not cursor:
        return Position(state=places[0])
    parts = _CURSOR.fullmatch(cursor)
    if parts is None or GroupState(parts[1]) not in places:
        raise InvalidRequestError(
            f"cursor {cursor[:200]!r} is not the next_cursor of a page of this listing; start again without one"
        )
    return Position(state=GroupState(parts[1]), after=parts[2], after_id=parts[3])
