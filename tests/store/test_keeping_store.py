"""Snapshots and restores in the store, on one server and on a cluster, and repeated as a lost answer makes them."""

from dataclasses import replace

import pytest
from store_user import StoreUser

from groupreplay import FuturePolicyVersionError, GroupFeedback, LeaseExpiredError, Policy, UnknownRunError
from groupreplay.table_config import Sampler, TableConfig
from groupreplay_server.store.keeping_store import KeptGroup, KeptTable, RestoreAttempt
from groupreplay_server.store.records import Payload

HOLD_MS = 60_000
ATTEMPT = RestoreAttempt("other", "copy", "attempt", HOLD_MS)


async def kept_table(store: StoreUser) -> tuple[KeptTable, list[tuple[KeptGroup, Payload]]]:
    """Return a snapshot of a table with fresh, leased and replay groups, its hold released."""
    await store.insert_ids("a", "b", "c", "d")
    await store.take(2)
    await store.store.commit_lease(
        *store.names, lease_id="lease", step=1, feedback=[GroupFeedback(group_id="a", priority=0.1 + 0.2, kl=1e-17)]
    )
    await store.advance(3)
    await store.take(1, "other")
    kept, groups = await store.store.keeping.snapshot(*store.names, snapshot_id="s", hold_ms=HOLD_MS)
    payloads = await store.store.read_payloads(*store.names, groups)
    assert await store.store.keeping.hold(*store.names, snapshot_id="s", hold_ms=0)
    return kept, list(zip(groups, payloads, strict=True))


async def test_every_step_of_a_restore_may_be_repeated(store: StoreUser) -> None:
    """The connection sends a script again whose answer it lost: counts and groups come once."""
    kept, groups = await kept_table(store)
    keeping = store.store.keeping
    for _ in range(2):
        assert await keeping.begin_restore(ATTEMPT, kept, "id")
    for _ in range(2):
        assert await keeping.restore_groups(ATTEMPT, groups[:3]) == 3
    assert await keeping.restore_groups(ATTEMPT, groups) == 4
    with pytest.raises(UnknownRunError):
        await store.store.describe_table("other", "copy")
    for _ in range(2):
        await keeping.finish_restore(ATTEMPT, kept)
    assert not await keeping.begin_restore(ATTEMPT, kept, "id")
    table = await store.store.describe_table("other", "copy")
    assert (table.fresh, table.replay, table.payload_bytes) == (2, 2, kept.table.payload_bytes)
    assert table.counters == kept.table.counters
    quota = await store.store.policies.quota("other")
    assert (quota.groups, quota.bytes) == (4, kept.table.payload_bytes)
    again, found = await keeping.snapshot("other", "copy", snapshot_id="s", hold_ms=HOLD_MS)
    assert again.policy == replace(kept.policy, run="other")
    marks = {group.group_id: group.feedback for group in found}
    assert marks["a"] == GroupFeedback(group_id="a", priority=0.30000000000000004, kl=1e-17)
    assert [group.header for group in found] == [b"header of " + name.encode() for name in "cdab"]


async def test_an_attempt_that_was_abandoned_writes_no_more(store: StoreUser) -> None:
    """And leaves no payload either."""
    kept, groups = await kept_table(store)
    keeping = store.store.keeping
    await keeping.begin_restore(ATTEMPT, kept, "id")
    await keeping.restore_groups(ATTEMPT, groups[:2])
    assert await keeping.unfinished_restores() == [("other", "copy")]
    assert not await keeping.abandon_restore("other", "copy")  # its time is not up
    assert await keeping.abandon_restore("other", "copy", ATTEMPT.attempt)
    assert await keeping.unfinished_restores() == []
    with pytest.raises(LeaseExpiredError, match="restore of table other/copy stood still for too long"):
        await keeping.restore_groups(ATTEMPT, groups[2:])
    with pytest.raises(LeaseExpiredError):
        await keeping.finish_restore(ATTEMPT, kept)
    assert await store.store.collect_garbage("other", "copy") == 2


async def test_a_table_can_be_made_where_a_restore_was_given_up(store: StoreUser) -> None:
    """What it left is gone first."""
    kept, groups = await kept_table(store)
    attempt = replace(ATTEMPT, hold_ms=-1)
    await store.store.keeping.begin_restore(attempt, kept, "id")
    await store.store.keeping.restore_groups(attempt, groups)
    assert await store.store.create_table("other", "copy", TableConfig(sampler=Sampler.UNIFORM))
    table = await store.store.describe_table("other", "copy")
    assert (table.fresh, table.replay, table.payload_bytes, table.policy_version) == (0, 0, 0, 0)
    assert await store.store.collect_garbage("other", "copy") == 4
    assert await store.store.keeping.abandon_restore("other", "copy")


async def test_garbage_stays_while_any_snapshot_is_read(store: StoreUser) -> None:
    """Each has a hold of its own, which ends by its deadline at the latest."""
    keeping = store.store.keeping
    await store.insert_ids("a")
    for name, hold_ms in (("one", HOLD_MS), ("two", HOLD_MS), ("dead", -1)):
        await keeping.snapshot(*store.names, snapshot_id=name, hold_ms=hold_ms)
    await store.store.delete_groups(*store.names, ["a"])
    assert await keeping.hold(*store.names, snapshot_id="one", hold_ms=0)
    assert not await keeping.hold(*store.names, snapshot_id="one", hold_ms=HOLD_MS)
    assert not await keeping.hold(*store.names, snapshot_id="dead", hold_ms=HOLD_MS)
    assert await store.store.collect_garbage(*store.names) == 0
    assert await keeping.hold(*store.names, snapshot_id="two", hold_ms=HOLD_MS)
    assert await keeping.hold(*store.names, snapshot_id="two", hold_ms=0)
    assert await store.store.collect_garbage(*store.names) == 1


async def test_a_rewind_while_a_table_is_restored_is_followed(store: StoreUser) -> None:
    """A clock that went back below a group refuses the table; one that went back and is beyond does not."""
    await store.advance(2)
    await store.insert_ids("a", version=1)
    keeping = store.store.keeping
    kept, groups = await keeping.snapshot(*store.names, snapshot_id="s", hold_ms=HOLD_MS)
    payloads = await store.store.read_payloads(*store.names, groups)
    await keeping.hold(*store.names, snapshot_id="s", hold_ms=0)
    attempt = replace(ATTEMPT, run="run")
    await keeping.begin_restore(attempt, kept, "id")
    await keeping.restore_groups(attempt, list(zip(groups, payloads, strict=True)))
    await store.store.policies.rewind(Policy(run="run", version=0, weights_uri="w0"), step=0, rewind_id="r")
    with pytest.raises(LookupError):
        await store.store.describe_table("run", "copy")
    with pytest.raises(FuturePolicyVersionError, match="went back to policy version 0, and the snapshot has groups of"):
        await keeping.finish_restore(attempt, kept)
    assert await store.store.collect_garbage("run", "copy") == 1
    assert await keeping.abandon_restore("run", "copy")
    assert await keeping.unfinished_restores() == []
