"""What Redis has of partial groups, and what must hold for it."""

from dataclasses import dataclass
from typing import Any, cast

import redis

from groupreplay_server.store.connection import text
from groupreplay_server.store.keys import TableKeys

_READ = """
local groups, stored, flat = {}, {}, redis.call('HGETALL', KEYS[2])
for i = 1, #flat, 2 do
  local piece = cmsgpack.unpack(flat[i + 1])
  stored[#stored + 1] = { flat[i], piece.ref, piece.rollouts, piece.bytes }
end
flat = redis.call('HGETALL', KEYS[1])
for i = 1, #flat, 2 do
  local group = cmsgpack.unpack(flat[i + 1])
  groups[#groups + 1] = { flat[i], group.pieces, group.rollouts, group.group_size, group.bytes, group.merged_bytes }
end
return { groups, stored, redis.call('ZRANGE', KEYS[3], 0, -1), redis.call('HKEYS', KEYS[4]),
  redis.call('ZRANGE', KEYS[5], 0, -1) }
"""


@dataclass(frozen=True, slots=True)
class OpenGroup:
    """A partial group that waits for pieces."""

    pieces: tuple[str, ...]
    """In order of arrival."""
    rollouts: int
    group_size: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Partials:
    """All partial groups of a table."""

    groups: dict[str, OpenGroup]
    payloads: dict[str, int]
    """group_id/payload_ref -> bytes"""

    @property
    def bytes(self) -> int:
        """Payload of all pieces."""
        return sum(group.bytes for group in self.groups.values())


def read_partials(connection: redis.Redis, keys: TableKeys) -> Partials:
    """Return the partial groups of a table, after checking that what is known of them agrees."""
    names = [keys.key(name) for name in ("opened", "pieces", "closing", "closed", "closed_at")]
    groups, stored, closing, closed, closed_at = cast(list[Any], connection.eval(_READ, len(names), *names))
    pieces = {text(name): (text(ref), rollouts, size) for name, ref, rollouts, size in stored}
    found = {}
    for name, piece_ids, rollouts, group_size, size, merged_bytes in groups:
        group_id = text(name)
        members = [f"{group_id}/{text(piece_id)}" for piece_id in piece_ids]
        assert len(set(members)) == len(members), f"{group_id}: a piece is twice"
        own = [pieces[member] for member in members]
        assert sum(piece[1] for piece in own) == rollouts <= group_size, group_id
        assert sum(piece[2] for piece in own) == size >= merged_bytes, group_id
        found[group_id] = OpenGroup(tuple(map(text, piece_ids)), rollouts, group_size, size)
    assert pieces.keys() == {f"{name}/{piece}" for name, group in found.items() for piece in group.pieces}
    assert {text(name) for name in closing} == found.keys(), "every open group will be looked at, and no other"
    assert set(closed) == set(closed_at), keys.topic
    return Partials(found, {f"{name.partition('/')[0]}/{ref}": size for name, (ref, _, size) in pieces.items()})
