"""What Redis has of log ratios that were fed back, and what must hold for it."""

from dataclasses import dataclass
from typing import Any, cast

import redis

from groupreplay_server.store.connection import text
from groupreplay_server.store.keys import TableKeys

KEPT_BYTES = 64 * 2**20
"""Of a table, as ratios.lua has it."""
_READ = """
local found, flat = {}, redis.call('HGETALL', KEYS[1])
for i = 1, #flat, 2 do
  local fields = cmsgpack.unpack(flat[i + 1])
  found[#found + 1] = { flat[i], fields[1], fields[2] }
end
return { found, redis.call('ZRANGE', KEYS[2], 0, -1), redis.call('HGET', KEYS[3], 'ratio_bytes') or '0' }
"""


@dataclass(frozen=True, slots=True)
class KeptRatios:
    """The log ratios of a table."""

    payloads: dict[str, int]
    """group_id/ref -> bytes."""
    groups: set[str]
    in_order: set[str]
    bytes: int

    def check(self, present: set[str]) -> None:
        """Assert that they are those of groups that are there, counted, in order, and not too many."""
        assert self.groups == self.in_order
        assert len(self.groups) == len(self.payloads)
        assert self.groups <= present, f"log ratios of groups that are gone: {self.groups - present}"
        assert self.bytes == sum(self.payloads.values())
        assert self.bytes <= KEPT_BYTES


def read_kept_ratios(connection: redis.Redis, keys: TableKeys) -> KeptRatios:
    """Return the log ratios of a table."""
    names = [keys.key(name) for name in ("ratios", "ratios_at", "state")]
    found, in_order, total = cast(list[Any], connection.eval(_READ, len(names), *names))
    return KeptRatios(
        payloads={f"{text(group_id)}/{text(ref)}": size for group_id, ref, size in found},
        groups={text(group_id) for group_id, _, _ in found},
        in_order={text(group_id) for group_id in in_order},
        bytes=int(total),
    )
