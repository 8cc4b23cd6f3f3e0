"""Pieces of partial groups in Redis, until the group is put together and inserted."""

from collections.abc import Callable, Sequence
from secrets import token_hex
from typing import Any, cast

from groupreplay.errors import DurabilityNotReachedError, GroupReplayError, StoreUnavailableError, error_from_reason
from groupreplay.table_config import Durability
from groupreplay_server.store.backend import Backend
from groupreplay_server.store.connection import text, translated_errors
from groupreplay_server.store.keys import TableKeys
from groupreplay_server.store.records import Claim, IncomingPiece, PieceReply, StoredPiece
from groupreplay_server.store.scripts import Value, call_script

_DUE_PAGE = 100
_KEPT = {"KEPT", "FULL"}


class PieceStore:
    """Partial groups, by what is done with them. Redis errors come out as GroupReplayError."""

    def __init__(self, redis: Backend, clock: Callable[[], int], new_seed: Callable[[], str]) -> None:
        """Use this Redis, which the caller opens and closes."""
        self._redis = redis
        self._now_ms = clock
        self._new_seed = new_seed

    async def push(
        self, run: str, table: str, pieces: Sequence[IncomingPiece], durability: Durability = Durability.MEMORY
    ) -> list[PieceReply]:
        """Store pieces, in order; say for each what became of it.

        Raises:
            DurabilityNotReachedError: they may be stored; the same call finds duplicates, and waits for them.
        """
        keys = TableKeys(run, table)
        refs = [token_hex(8) for _ in pieces]
        payload_keys = [keys.payload(f"{p.group_id}/{ref}") for p, ref in zip(pieces, refs, strict=True)]
        try:
            with translated_errors():
                replies = await call_script(
                    self._redis,
                    "push_rollouts",
                    keys.all(),
                    self._shared(keys),
                    [_push_record(piece, ref) for piece, ref in zip(pieces, refs, strict=True)],
                    payloads={key: piece.payload for key, piece in zip(payload_keys, pieces, strict=True)},
                    durability=durability,
                )
        except GroupReplayError as error:
            if isinstance(error, DurabilityNotReachedError):  # its script has run, and found duplicates perhaps
                used = await self._are_used(keys, pieces, refs)
                await self._unlink([key for key, is_used in zip(payload_keys, used, strict=True) if not is_used])
            elif not isinstance(error, StoreUnavailableError):  # then the index may name them
                await self._unlink(payload_keys)
            raise
        results = [_reply(piece, reply) for piece, reply in zip(pieces, replies, strict=True)]
        await self._unlink([key for key, result in zip(payload_keys, results, strict=True) if result.what not in _KEPT])
        return results

    async def claim(self, run: str, table: str, group_id: str, *, insist: bool) -> Claim:
        """Take a group that is due, to put it together; insist = even if another server has claimed it."""
        keys = TableKeys(run, table)
        values = {**self._shared(keys), "group_id": group_id, "insist": int(insist)}
        with translated_errors():
            what, *rest = await call_script(self._redis, "claim_partial", keys.all(), values)
        if what == b"DROPPED":
            return Claim("DROPPED", (), *rest)
        pairs = zip(rest[::2], rest[1::2], strict=True)
        return Claim(text(what), tuple(StoredPiece(header, text(ref)) for header, ref in pairs))

    async def read_payloads(
        self, run: str, table: str, group_id: str, pieces: Sequence[StoredPiece]
    ) -> list[bytes] | None:
        """Return the payloads of pieces; None where one is gone, as after somebody else inserted the group."""
        keys = TableKeys(run, table)
        with translated_errors():
            payloads = await self._redis.read_payloads([keys.payload(f"{group_id}/{p.payload_ref}") for p in pieces])
        return None if None in payloads else cast(list[bytes], payloads)

    async def drop(self, run: str, table: str, group_id: str) -> bool:
        """Drop a group that cannot be inserted; return False if it is not open any more."""
        keys = TableKeys(run, table)
        with translated_errors():
            values = {**self._shared(keys), "group_id": group_id}
            return bool(await call_script(self._redis, "drop_partial", keys.all(), values))

    async def due(self, run: str, table: str) -> list[str]:
        """Return some group_ids of groups that are to be looked at now."""
        key = TableKeys(run, table).key("closing")
        with translated_errors():
            found = await self._redis.zrangebyscore(key, "-inf", self._now_ms(), start=0, num=_DUE_PAGE)
        return [text(group_id) for group_id in found]

    async def next_look_ms(self, run: str, table: str) -> int | None:
        """Return when a group of the table is to be looked at next, Unix milliseconds; None = none is open."""
        with translated_errors():
            found = await self._redis.zrange(TableKeys(run, table).key("closing"), 0, 0, withscores=True)
        return int(found[0][1]) if found else None

    async def _are_used(self, keys: TableKeys, pieces: Sequence[IncomingPiece], refs: Sequence[str]) -> list[bool]:
        with translated_errors():
            kept = await self._redis.hmget(keys.key("pieces"), [f"{p.group_id}/{p.piece_id}" for p in pieces])
        return [ref.encode() in (packed or b"") for packed, ref in zip(kept, refs, strict=True)]

    def _shared(self, keys: TableKeys) -> dict[str, Any]:
        return {"now_ms": self._now_ms(), "topic": keys.topic, "seed": self._new_seed()}

    async def _unlink(self, payload_keys: Sequence[str]) -> None:
        with translated_errors():
            await self._redis.remove_payloads(payload_keys)


def _push_record(piece: IncomingPiece, payload_ref: str) -> tuple[Value, ...]:
    terms = piece.terms
    return (
        piece.group_id,
        piece.piece_id,
        piece.header,
        payload_ref,
        len(piece.payload),
        piece.merged_bytes,
        piece.rollouts,
        piece.policy_version_min,
        piece.policy_version_max,
        piece.producer_id,
        terms.prompt_id,
        terms.prompt_token_ids,
        terms.prompt_text,
        terms.task,
        terms.columns,
        terms.rows,
        piece.group_size,
        piece.min_rollouts,
        piece.close_after_ms,
    )


def _reply(piece: IncomingPiece, reply: Sequence[Any]) -> PieceReply:
    what, rollouts, group_size = reply
    reason, _, message = what.decode(errors="replace").partition(" ")  # a message may cut a letter in two
    error = error_from_reason(reason, message) if message else None
    return PieceReply(piece.group_id, piece.piece_id, "REFUSED" if error else reason, rollouts, group_size, error)
