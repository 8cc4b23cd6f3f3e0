"""Partial groups: their rollouts come in pieces, and are inserted as one group when it is complete or its time is over.

Nothing of a group is in a server's memory between two calls: whoever looks next goes on where a dead server stopped.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from groupreplay.convert import group_from_wire, group_to_wire
from groupreplay.errors import GroupClosedError, GroupReplayError, InvalidGroupError, PayloadLostError
from groupreplay.merge import merge_groups
from groupreplay.table_config import Durability, TableConfig
from groupreplay.types import GroupState, InsertOutcome, InsertResult, PushOutcome, PushResult
from groupreplay.v1 import group_pb2
from groupreplay_server.headers import read_group
from groupreplay_server.janitor import Janitor
from groupreplay_server.limits import check_names
from groupreplay_server.pieces import ArrivedPiece, read_piece
from groupreplay_server.store.records import Claim, IncomingGroup, IncomingPiece, PieceReply, StoredPiece
from groupreplay_server.store.redis_store import RedisStore

_log = logging.getLogger(__name__)

TableConfigOf = Callable[[str, str], Awaitable[TableConfig]]


class PartialGroups:
    """Takes pieces, and closes groups."""

    def __init__(self, store: RedisStore, janitor: Janitor, table_config: TableConfigOf) -> None:
        self._store = store
        self._janitor = janitor
        self._table_config = table_config

    async def push(self, run: str, table: str, pieces: Sequence[ArrivedPiece]) -> tuple[list[PushResult], Durability]:
        """Store pieces, and close the groups that they complete; a refused piece does not hold up the others."""
        check_names(run, table)
        config = await self._table_config(run, table)
        results: dict[int, PushResult] = {}
        accepted: list[tuple[int, IncomingPiece]] = []
        for index, piece in enumerate(pieces):
            try:
                accepted.append((index, await asyncio.to_thread(read_piece, piece, config)))
            except GroupReplayError as error:
                results[index] = PushResult(
                    group_id=piece.rollouts.header.group_id[:128],
                    piece_id=piece.piece.piece_id[:128],
                    outcome=PushOutcome.REFUSED,
                    error=error,
                )
        if accepted:
            incoming = [piece for _, piece in accepted]
            replies = await self._store.pieces.push(run, table, incoming, config.durability)
            for (index, _), reply in zip(accepted, replies, strict=True):
                results[index] = await self._result(run, table, reply)
        return [results[index] for index in range(len(pieces))], config.durability

    async def _result(self, run: str, table: str, reply: PieceReply) -> PushResult:
        insert = None
        if reply.what in {"FULL", "DUE"}:
            insert = await self.close(run, table, reply.group_id, insist=True)
        elif reply.what == "KNOWN":
            insert = InsertResult(group_id=reply.group_id, outcome=InsertOutcome.DUPLICATE)
        return PushResult(
            group_id=reply.group_id,
            piece_id=reply.piece_id,
            outcome=_outcome(reply, insert),
            rollouts=reply.rollouts,
            group_size=reply.group_size,
            insert=insert,
            error=reply.error,
        )

    async def close(self, run: str, table: str, group_id: str, *, insist: bool = False) -> InsertResult | None:
        """Insert a group that is due, from its pieces; return what became of it, None where it is not due.

        A refusal that may pass leaves the pieces where they are, to be tried again. insist = also when another server
        is at it.

        Raises:
            DurabilityNotReachedError: the group is inserted.
        """
        claim = await self._store.pieces.claim(run, table, group_id, insist=insist)
        if claim.what == "OPEN":
            return None
        if claim.what == "CLAIMED":
            return await self._insert(run, table, group_id, claim.pieces)
        self._janitor.mark(run, table)
        if claim.what == "DROPPED":
            return _refused(group_id, GroupClosedError(_dropped(group_id, claim)))
        return await self._find(run, table, group_id)

    async def _insert(self, run: str, table: str, group_id: str, pieces: Sequence[StoredPiece]) -> InsertResult:
        try:
            group = await self._put_together(run, table, group_id, pieces)
            config = await self._table_config(run, table)
            [result] = await self._store.insert_groups(run, table, [group], durability=config.durability)
        except (InvalidGroupError, PayloadLostError) as error:
            result = _refused(group_id, error)
        finally:
            self._janitor.mark(run, table)
        if result.error is not None and not result.error.retryable:
            if not await self._store.pieces.drop(run, table, group_id):
                result = await self._find(run, table, group_id)  # another server was faster
            else:
                _log.warning("partial group %s of table %s/%s is dropped: %s", group_id, run, table, result.error)
                self._janitor.mark(run, table)
        return result

    async def _put_together(self, run: str, table: str, group_id: str, pieces: Sequence[StoredPiece]) -> IncomingGroup:
        payloads = await self._store.pieces.read_payloads(run, table, group_id, pieces)
        if payloads is None:
            raise PayloadLostError(f"group {group_id}: a payload of its {len(pieces)} pieces is gone from Redis")
        config = await self._table_config(run, table)
        return await asyncio.to_thread(_merge, pieces, payloads, config)

    async def _find(self, run: str, table: str, group_id: str) -> InsertResult:
        """Return what somebody else made of a group that is not open any more."""
        [place] = await self._store.locate_groups(run, table, [group_id])
        if place is GroupState.UNKNOWN:
            return _refused(group_id, GroupClosedError(f"group {group_id} was dropped; generate a new group"))
        return InsertResult(group_id=group_id, outcome=InsertOutcome.DUPLICATE)


def _outcome(reply: PieceReply, insert: InsertResult | None) -> PushOutcome:
    if reply.error is not None:
        return PushOutcome.REFUSED
    if reply.what in {"DUPLICATE", "KNOWN"}:
        return PushOutcome.DUPLICATE
    if insert is None or (insert.error is not None and insert.error.retryable):
        return PushOutcome.PENDING
    return PushOutcome.CLOSED


def _refused(group_id: str, error: GroupReplayError) -> InsertResult:
    return InsertResult(group_id=group_id, outcome=InsertOutcome.REFUSED, error=error)


def _dropped(group_id: str, claim: Claim) -> str:
    return (
        f"group {group_id} is dropped: {claim.rollouts} of {claim.group_size} rollouts came in time, min_rollouts is "
        f"{claim.min_rollouts}; allow more time with close_after_s, or fewer rollouts with min_rollouts"
    )


def _merge(pieces: Sequence[StoredPiece], payloads: Sequence[bytes], config: TableConfig) -> IncomingGroup:
    try:
        groups = [
            group_from_wire(group_pb2.GroupHeader.FromString(piece.header), payload)
            for piece, payload in zip(pieces, payloads, strict=True)
        ]
        header, payload = group_to_wire(merge_groups(groups))
    except ValueError as error:  # all pieces were read when they came: this is a fault of ours
        raise InvalidGroupError(f"the pieces cannot be put together: {error}") from error
    return read_group(header, payload, config)
