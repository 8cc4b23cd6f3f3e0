"""Uses one table of the store, without a service in between."""

from dataclasses import dataclass
from typing import Any

import redis

from groupreplay.table_config import TableConfig
from groupreplay.types import InsertOutcome, InsertResult, Policy, Table
from groupreplay_server.store.backend import Backend
from groupreplay_server.store.keys import TableKeys
from groupreplay_server.store.records import BatchNotReady, IncomingGroup, LeasedBatch
from groupreplay_server.store.redis_store import RedisStore
from groupreplay_server.store.scripts import Value, call_script

KEYS = TableKeys("run", "train")


def incoming(group_id: str, *, effective: bool = True, version: int = 0, **fields: Any) -> IncomingGroup:
    """Return a group as the store takes it."""
    values: dict[str, Any] = {
        "group_id": group_id,
        "prompt_id": f"prompt-of-{group_id}",
        "producer_id": "",
        "policy_version_min": version,
        "policy_version_max": version,
        "reward_std": 0.5 if effective else 0.0,
        "task": "",
        "priority": 1.0,
        "reward_mean": 0.5,
        "header": b"header of " + group_id.encode(),
        "payload": b"payload of " + group_id.encode() if effective else None,
    }
    return IncomingGroup(**values | fields)


@dataclass(frozen=True, slots=True)
class StoreUser:
    """A store, its connection, and a plain connection to look with."""

    store: RedisStore
    connection: Backend
    redis: redis.Redis
    names: tuple[str, str] = ("run", "train")

    async def make_table(self, config: TableConfig) -> bool:
        """Make the table."""
        return await self.store.create_table(*self.names, config)

    async def insert(self, *groups: IncomingGroup) -> list[InsertResult]:
        """Insert groups in one call."""
        return await self.store.insert_groups(*self.names, groups)

    async def insert_ids(self, *group_ids: str, **fields: Any) -> None:
        """Insert groups that must be new."""
        results = await self.insert(*(incoming(group_id, **fields) for group_id in group_ids))
        assert {result.outcome for result in results} == {InsertOutcome.INSERTED}

    async def look(self, batch_size: int, lease_id: str = "lease", **fields: Any) -> LeasedBatch | BatchNotReady:
        """Take a batch if there is one."""
        values: dict[str, Any] = {"lease_ms": 60_000, "holder": "test", "wait_ms": 60_000, "call_id": "call"}
        return await self.store.take_batch(*self.names, lease_id=lease_id, batch_size=batch_size, **values | fields)

    async def take(self, batch_size: int, lease_id: str = "lease", **fields: Any) -> list[str]:
        """Take a batch that must be there; return its group ids."""
        batch = await self.look(batch_size, lease_id, **fields)
        assert isinstance(batch, LeasedBatch)
        return [group.group_id for group in batch.groups]

    async def commit(self, lease_id: str, step: int) -> bool:
        """Commit a lease."""
        return await self.store.commit_lease(*self.names, lease_id=lease_id, step=step)

    async def advance(self, version: int) -> Policy:
        """Move the policy clock."""
        return await self.store.policies.advance(Policy(run=self.names[0], version=version, weights_uri=f"w{version}"))

    async def describe(self) -> Table:
        """Return the state of the table."""
        return await self.store.describe_table(*self.names)

    async def call(self, script: str, now_ms: int, *records: tuple[Value, ...], **values: Value) -> Any:
        """Run a script of the table at a time of the test's choice."""
        shared: dict[str, Value] = {"now_ms": now_ms, "topic": KEYS.topic, "seed": "0123456789abcdef" * 2}
        return await call_script(self.connection, script, KEYS.all(), shared | values, records)
