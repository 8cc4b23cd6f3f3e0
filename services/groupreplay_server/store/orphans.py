"""Payloads that no group names: found by looking at every payload key, removed only once they can never be named."""

from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from groupreplay.groups import now_ms
from groupreplay_server.store.backend import Backend
from groupreplay_server.store.connection import text, translated_errors
from groupreplay_server.store.keys import PAYLOADS, SWEEPER, TableKeys, payload_parts
from groupreplay_server.store.scripts import call_script


@dataclass(frozen=True, slots=True)
class PayloadName:
    """What a payload key says."""

    run: str
    table: str
    group_id: str
    payload_ref: str

    @property
    def key(self) -> str:
        """Return the key."""
        return TableKeys(self.run, self.table).payload(f"{self.group_id}/{self.payload_ref}")


NO_SEED = "0" * 32
"""Nothing is drawn here."""


class OrphanStore:
    """The store's side of sweeping."""

    def __init__(self, redis: Backend) -> None:
        self._redis = redis

    async def hold_office(self, holder: str, term_ms: int) -> bool:
        """Become, or stay, the one server that sweeps; return whether it is this one."""
        with translated_errors():
            if await self._redis.set(SWEEPER, holder, nx=True, px=term_ms):
                return True
            current = await self._redis.get(SWEEPER)
            if current is None or text(current) != holder:
                return False
            return bool(await self._redis.pexpire(SWEEPER, term_ms))

    async def pages(self, count: int) -> AsyncGenerator[list[PayloadName]]:
        """Yield all payloads that are in Redis, some `count` keys looked at per page."""
        with translated_errors():
            async for keys in self._redis.scan_pages(f"{PAYLOADS}*", count):
                yield [PayloadName(*payload_parts(key)) for key in keys]

    async def unnamed(self, payloads: Sequence[PayloadName]) -> set[PayloadName]:
        """Return those that no group names now. An insert under way may still do so."""
        return await self._claim(payloads, 0)

    async def remove(self, payloads: Sequence[PayloadName], begun_until_ms: int) -> int:
        """Remove those that still no group names; return how many.

        The inserts that wrote them must have begun by begun_until_ms, on the clock of any server: such inserts are
        refused from now on, so that none of them can name what is removed.
        """
        orphans = await self._claim(payloads, begun_until_ms)
        with translated_errors():
            await self._redis.remove_payloads(payload.key for payload in orphans)
        return len(orphans)

    async def _claim(self, payloads: Sequence[PayloadName], begun_until_ms: int) -> set[PayloadName]:
        by_table = defaultdict(list)
        for payload in payloads:
            by_table[payload.run, payload.table].append(payload)
        orphans = set()
        for names, members in by_table.items():
            keys = TableKeys(*names)
            with translated_errors():
                found = await call_script(
                    self._redis,
                    "claim_orphans",
                    keys.all(),
                    {"now_ms": now_ms(), "topic": keys.topic, "seed": NO_SEED, "begun_until_ms": begun_until_ms},
                    [(payload.group_id, payload.payload_ref) for payload in members],
                )
            orphans |= {payload for payload, unnamed in zip(members, found, strict=True) if unnamed}
        return orphans
