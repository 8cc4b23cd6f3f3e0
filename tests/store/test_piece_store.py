"""Partial groups in the store, on every Redis and on a cluster, at times of the test's choice."""

from typing import Any

import pytest
from partial_groups import read_partials
from store_user import KEYS, StoreUser, incoming

from groupreplay.errors import GroupClosedError, InvalidGroupError, UnknownTableError
from groupreplay.merge import PieceTerms
from groupreplay.types import InsertOutcome
from groupreplay_server.store.keys import PAYLOADS
from groupreplay_server.store.orphans import OrphanStore
from groupreplay_server.store.piece_store import PieceStore
from groupreplay_server.store.records import IncomingPiece
from groupreplay_server.sweeper import Sweeper

NAMES = ("run", "train")
TERMS = PieceTerms(prompt_id="p", prompt_token_ids="d", prompt_text="", task="", columns="", rows="")


def piece(piece_id: str, group_id: str = "g", **fields: Any) -> IncomingPiece:
    """Return a piece as the store takes it."""
    values: dict[str, Any] = {
        "group_id": group_id,
        "piece_id": piece_id,
        "header": b"header of " + piece_id.encode(),
        "payload": b"payload of " + piece_id.encode(),
        "merged_bytes": 5,
        "rollouts": 1,
        "policy_version_min": 0,
        "policy_version_max": 0,
        "producer_id": "",
        "terms": TERMS,
        "group_size": 3,
        "min_rollouts": 2,
        "close_after_ms": 1000,
    }
    return IncomingPiece(**values | fields)


class Clock:
    """A wall clock that the test moves."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    """The clock of the test's store of pieces."""
    return Clock()


@pytest.fixture
def pieces(store: StoreUser, clock: Clock) -> PieceStore:
    """A store of pieces on the test's Redis."""
    return PieceStore(store.connection, clock, lambda: "0123456789abcdef" * 2)


async def push(pieces: PieceStore, *pushed: IncomingPiece) -> list[tuple[str, int, int]]:
    """Push pieces; return what became of each, and how many rollouts of how many there are."""
    return [(reply.what, reply.rollouts, reply.group_size) for reply in await pieces.push(*NAMES, pushed)]


async def test_a_claimed_group_has_its_pieces_in_order_of_arrival(store: StoreUser, pieces: PieceStore) -> None:
    """The last piece claims for its pusher; others wait for the claim to end, unless they insist."""
    assert await push(pieces, piece("b"), piece("a"), piece("b")) == [
        ("KEPT", 1, 3), ("KEPT", 2, 3), ("DUPLICATE", 2, 3),
    ]  # fmt: skip
    assert (await pieces.claim(*NAMES, "g", insist=True)).what == "OPEN"
    assert await push(pieces, piece("c")) == [("FULL", 3, 3)]
    assert (await pieces.claim(*NAMES, "g", insist=False)).what == "OPEN"
    claim = await pieces.claim(*NAMES, "g", insist=True)
    assert [stored.header for stored in claim.pieces] == [b"header of b", b"header of a", b"header of c"]
    assert await pieces.read_payloads(*NAMES, "g", claim.pieces) == [b"payload of b", b"payload of a", b"payload of c"]
    assert len(list(store.redis.scan_iter("gr1:payload:*"))) == 3


async def test_inserting_the_group_forgets_its_pieces(store: StoreUser, pieces: PieceStore) -> None:
    """In the same script: at no moment are both there, and the payloads of pieces become garbage."""
    await push(pieces, *map(piece, "abc"))
    claim = await pieces.claim(*NAMES, "g", insist=True)
    await store.insert_ids("g")
    assert read_partials(store.redis, KEYS).groups == {}
    assert (await pieces.claim(*NAMES, "g", insist=True)).what == "GONE"
    assert await push(pieces, piece("a")) == [("KNOWN", 0, 0)]
    await store.store.collect_garbage(*NAMES)
    assert await pieces.read_payloads(*NAMES, "g", claim.pieces) is None
    assert (await store.describe()).counters["partial_closed"] == 1


async def test_claims_last_longer_with_every_attempt_in_vain(
    store: StoreUser, pieces: PieceStore, clock: Clock
) -> None:
    """A group that finds no room is put together more and more seldom, once in a minute at least."""
    await push(pieces, *map(piece, "abc"))
    waits = []
    for _ in range(8):
        next_ms = await pieces.next_look_ms(*NAMES)
        assert next_ms is not None
        clock.now_ms = next_ms - 1
        assert await pieces.due(*NAMES) == []
        assert (await pieces.claim(*NAMES, "g", insist=False)).what == "OPEN"
        clock.now_ms = next_ms
        assert await pieces.due(*NAMES) == ["g"]
        assert (await pieces.claim(*NAMES, "g", insist=False)).what == "CLAIMED"
        waits.append((await pieces.next_look_ms(*NAMES) or 0) - next_ms)
    assert waits == [2000, 4000, 8000, 16000, 32000, 60000, 60000, 60000]


async def test_no_piece_gets_into_a_group_that_is_being_closed(
    store: StoreUser, pieces: PieceStore, clock: Clock
) -> None:
    """Also not from a server whose clock is behind: what was claimed is what is inserted."""
    await push(pieces, *map(piece, "ab"))
    clock.now_ms += 1000
    assert len((await pieces.claim(*NAMES, "g", insist=False)).pieces) == 2
    clock.now_ms -= 500
    [reply] = await pieces.push(*NAMES, [piece("c")])
    assert isinstance(reply.error, GroupClosedError)
    assert await push(pieces, piece("a")) == [("DUE", 2, 3)]
    await store.insert_ids("g")
    assert (await store.describe()).counters["partial_closed_short"] == 1


async def test_a_group_below_its_minimum_is_dropped_when_it_is_claimed(
    store: StoreUser, pieces: PieceStore, clock: Clock
) -> None:
    """Its id is not opened anew by a straggler; a day later it is forgotten."""
    await push(pieces, piece("a"))
    clock.now_ms += 1000
    claim = await pieces.claim(*NAMES, "g", insist=False)
    assert (claim.what, claim.rollouts, claim.min_rollouts, claim.group_size) == ("DROPPED", 1, 2, 3)
    for piece_id in ("a", "b"):
        [reply] = await pieces.push(*NAMES, [piece(piece_id)])
        assert isinstance(reply.error, GroupClosedError)
    clock.now_ms += 86_400_000 + 1
    await push(pieces, piece("a", "h"))
    assert await pieces.drop(*NAMES, "h") is True
    assert await pieces.drop(*NAMES, "h") is False
    assert await push(pieces, piece("a")) == [("KEPT", 1, 3)]


async def test_a_piece_that_disagrees_leaves_no_payload(store: StoreUser, pieces: PieceStore) -> None:
    """Refused pieces and duplicates cost nothing, and long values are cut in the message."""
    await push(pieces, piece("a"))
    other = PieceTerms(prompt_id="ä" * 100, prompt_token_ids="d", prompt_text="", task="", columns="", rows="")
    [refused, duplicate] = await pieces.push(*NAMES, [piece("b", terms=other), piece("a")])
    assert isinstance(refused.error, InvalidGroupError)
    assert len(str(refused.error)) < 400
    assert duplicate.what == "DUPLICATE"
    assert len(list(store.redis.scan_iter("gr1:payload:*"))) == 1


async def test_a_piece_of_a_group_that_was_inserted_is_known(store: StoreUser, pieces: PieceStore) -> None:
    """However the group came there."""
    await store.insert(incoming("g"))
    assert await push(pieces, piece("a")) == [("KNOWN", 0, 0)]
    [result] = await store.insert(incoming("g"))
    assert result.outcome is InsertOutcome.DUPLICATE


async def test_pieces_need_a_table(pieces: PieceStore) -> None:
    """As groups do."""
    with pytest.raises(UnknownTableError):
        await pieces.push("run", "nowhere", [piece("a")])


async def test_pieces_of_an_open_group_are_no_orphans(store: StoreUser, pieces: PieceStore) -> None:
    """No group names their payloads yet, and sweeping must not take them; only what no piece names either."""
    await pieces.push(*NAMES, [piece("one"), piece("two")])
    store.redis.set(KEYS.payload("g/stray"), b"of a server that died")
    sweeper = Sweeper(OrphanStore(store.connection), grace_s=0.0, keys_per_s=10**9)
    assert [await sweeper.sweep(), await sweeper.sweep()] == [0, 1]
    assert len(list(store.redis.scan_iter(f"{PAYLOADS}*"))) == 2
