"""The fresh groups of a table in order of arrival: Atropos counts its queue in sequences, and by environment."""

from collections.abc import Sequence
from dataclasses import dataclass

from groupreplay.types import GroupState
from groupreplay.v1 import group_pb2
from groupreplay_server.api.atropos.items import ENV_TAG
from groupreplay_server.listing import MAX_LISTED
from groupreplay_server.service import ReplayService
from groupreplay_server.store.listing_store import GroupFilter

_ANY = GroupFilter()


@dataclass(frozen=True, slots=True)
class QueuedGroup:
    """A group that no batch has taken yet."""

    env_id: int | None
    """None = it did not come through this API."""
    sequences: int
    effective: bool


class Arrivals:
    """Reads queues."""

    def __init__(self, service: ReplayService) -> None:
        self._service = service
        self._read: dict[tuple[str, str], tuple[tuple[int, int], list[QueuedGroup]]] = {}

    async def queue(self, run: str, table: str) -> list[QueuedGroup]:
        """Return the queue, oldest first; it is read only where it changed, as each environment asks all the time."""
        state = await self._service.describe_table(run, table)
        looks = state.fresh, state.counters.get("inserted", 0)
        known, queue = self._read.get((run, table), (None, []))
        if known != looks:
            queue = await self._list(run, table)
            self._read[run, table] = looks, queue
        return queue

    async def _list(self, run: str, table: str) -> list[QueuedGroup]:
        found: list[QueuedGroup] = []
        cursor = ""
        while True:
            page, cursor = await self._service.listing.page(
                run, table, states=[GroupState.FRESH], wanted=_ANY, limit=MAX_LISTED, cursor=cursor
            )
            found += [_queued(group.header, group.effective) for group in page]
            if not cursor:
                break
        found.reverse()  # pages begin with the latest arrival
        return found


def slots_for(queue: Sequence[QueuedGroup], batch_size: int) -> int:
    """Return how many of the first groups make up a batch of batch_size sequences; 0 = they are too few.

    The most that fit: batch_size exactly where all groups are of one size that divides it, a little less where they
    are not. A group of more than batch_size sequences is a batch of its own.
    """
    sequences = 0
    for slots, group in enumerate(queue):
        if sequences + group.sequences > batch_size:
            return max(slots, 1)
        sequences += group.sequences
        if sequences == batch_size:
            return slots + 1
    return 0


def _queued(serialized: bytes, effective: bool) -> QueuedGroup:
    header = group_pb2.GroupHeader.FromString(serialized)
    env_id = header.tags.get(ENV_TAG, "")
    return QueuedGroup(int(env_id) if env_id.isdecimal() else None, len(header.rewards), effective)
