"""The operations of the store, at the ends of their ranges and in each other's way."""

import asyncio
from typing import Any, cast

import pytest
from store_user import KEYS, StoreUser, incoming

from groupreplay import (
    GroupSource,
    GroupState,
    InsertOutcome,
    LeaseExpiredError,
    PayloadLostError,
    StepConflictError,
    StoreUnavailableError,
    TableExistsError,
    UnknownLeaseError,
    UnknownRunError,
)
from groupreplay.groups import MAX_POLICY_VERSION
from groupreplay.table_config import Fill, TableConfig
from groupreplay_server.store.keys import TableKeys
from groupreplay_server.store.orphans import OrphanStore
from groupreplay_server.store.records import BatchNotReady, LeasedBatch
from groupreplay_server.store.redis_store import RedisStore
from groupreplay_server.store.scripts import Value, call_script
from groupreplay_server.sweeper import Sweeper

DAY_MS = 86_400_000


async def test_headers_and_payloads_come_out_as_the_bytes_that_went_in(store: StoreUser) -> None:
    """The store neither decodes nor changes them."""
    every_byte = bytes(range(256)) * 3
    await store.insert(incoming("a", header=every_byte, payload=every_byte[::-1]))
    batch = await store.look(1)
    assert isinstance(batch, LeasedBatch)
    assert batch.groups[0].header == every_byte
    assert await store.store.read_payloads(*store.names, batch.groups) == [every_byte[::-1]]


async def test_a_payload_that_redis_lost_is_an_error_with_advice(store: StoreUser) -> None:
    """Somebody deleted keys, or Redis evicts: the batch says so rather than coming short."""
    await store.insert_ids("a", "b")
    store.redis.delete(*store.redis.scan_iter("gr1:payload:*/b/*"))
    batch = await store.look(2)
    assert isinstance(batch, LeasedBatch)
    with pytest.raises(PayloadLostError, match=r"payload of 1 groups is gone from Redis, the first is b; .*noeviction"):
        await store.store.read_payloads(*store.names, batch.groups)
    assert await store.store.reset_table(*store.names) == 2  # what remains of the group can be removed


async def test_sequences_order_groups_beyond_32_bits(store: StoreUser) -> None:
    """Order of arrival and of replay stays exact after billions of groups, under the largest policy version."""
    await store.advance(MAX_POLICY_VERSION)
    store.redis.hset(KEYS.key("state"), "sequence", 2**32 - 20)
    names = [f"g{number:02}" for number in range(12)]
    await store.insert_ids(*names, version=MAX_POLICY_VERSION)
    assert await store.take(12) == names
    await store.commit("lease", 1)
    await store.insert_ids(*(f"x{number}" for number in range(7)), effective=False)
    assert await store.take(7, "other") == names[:4:-1]


async def test_version_and_sequence_are_exact_in_the_score_of_replay(store: StoreUser) -> None:
    """The newest version's first group stands above the version before's last one."""
    await store.advance(MAX_POLICY_VERSION)
    store.redis.hset(KEYS.key("state"), "sequence", 2**32 - 3)
    await store.insert_ids("before", version=MAX_POLICY_VERSION - 1)
    store.redis.hset(KEYS.key("state"), "sequence", 0)
    await store.insert_ids("first", version=MAX_POLICY_VERSION)
    await store.insert_ids("second", version=MAX_POLICY_VERSION)
    await store.take(3)
    await store.commit("lease", 1)
    scores = dict(cast(list[tuple[bytes, float]], store.redis.zrange(KEYS.key("recency"), 0, -1, withscores=True)))
    assert scores[b"second"] - scores[b"first"] == 1
    assert scores[b"first"] - scores[b"before"] == 3
    assert scores[b"second"] == MAX_POLICY_VERSION * 2**32 + 2


async def test_times_and_steps_are_exact_at_the_end_of_their_range(store: StoreUser) -> None:
    """Milliseconds of far years, and steps up to 2^53 - 1, come back digit by digit."""
    far_ms, step = 2**52 + 1, 2**53 - 1
    values: dict[str, Value] = {
        "batch_size": 1,
        "deadline_ms": far_ms,
        "holder": "",
        "wait_until_ms": far_ms,
        "call_id": "c",
    }
    await store.insert_ids("a", "b")
    reply = await store.call("take_batch", 1, lease_id="lease", **values)
    assert reply[:2] == [1, far_ms]
    assert await store.store.extend_lease(*store.names, lease_id="lease", lease_ms=2**52) > 2**52
    await store.commit("lease", step)
    assert await store.commit("lease", step) is True
    await store.take(1, "other")
    with pytest.raises(StepConflictError, match=f"step {step} "):
        await store.commit("other", step)


async def test_the_largest_limits_of_a_table_are_kept(store: StoreUser) -> None:
    """2^40 - 1 is no limit in practice, and no error in arithmetic."""
    most = 2**40 - 1
    config = TableConfig(
        fill=Fill.KEEP, replay_capacity=most, fresh_capacity=most, max_staleness=most, max_times_sampled=most,
        max_group_bytes=most, ahead_groups=most,
    )  # fmt: skip
    await store.store.create_table("run", "large", config)
    assert (await store.store.describe_table("run", "large")).config == config
    [result] = await store.store.insert_groups("run", "large", [incoming("a")])
    assert result.outcome is InsertOutcome.INSERTED
    granted, _ = await store.store.request_admission(
        "run", "large", producer_id="p", max_groups=65536, admission_ms=1000
    )
    assert granted == 65536


async def test_thousands_of_groups_pass_through_one_call_each(store: StoreUser) -> None:
    """Pages inside the scripts meet without gap or overlap, also where stale and repeated groups are dropped."""
    await store.store.create_table("run", "long", TableConfig(max_staleness=0, fresh_capacity=10_000))
    old = [incoming(f"old{number}") for number in range(700)]
    await store.store.insert_groups("run", "long", old)
    await store.advance(1)
    names = [f"g{number:04}" for number in range(2000)]
    new = [incoming(name, version=1, prompt_id=f"p{number % 1500}") for number, name in enumerate(names)]
    await store.store.insert_groups("run", "long", new)
    batch = await store.store.take_batch(
        "run", "long", lease_id="l", batch_size=1500, lease_ms=60_000, holder="", wait_ms=0, call_id="c"
    )
    assert isinstance(batch, LeasedBatch)
    assert [group.group_id for group in batch.groups] == names[:1500]
    state = await store.store.describe_table("run", "long")
    assert (state.fresh, state.leased, state.counters["gone_stale"]) == (500, 1500, 700)
    removed = await store.store.collect_garbage("run", "long")
    assert removed == 700


async def test_replay_skips_stale_and_repeated_groups_over_several_pages(store: StoreUser) -> None:
    """The most recent eligible group is found however many ineligible ones stand before it."""
    await store.store.create_table("run", "deep", TableConfig(replay_capacity=5000))
    groups = [incoming("wanted"), *(incoming(f"g{number}", prompt_id=f"p{number}") for number in range(300))]
    groups += [incoming(f"h{number}", prompt_id=f"p{number}") for number in range(300)]
    await store.store.insert_groups("run", "deep", groups)
    for step, size in enumerate((301, 300)):
        await store.store.take_batch(
            "run", "deep", lease_id=f"l{step}", batch_size=size, lease_ms=60_000, holder="", wait_ms=0, call_id="c"
        )
        await store.store.commit_lease("run", "deep", lease_id=f"l{step}", step=step)
    probes = [incoming(f"x{number}", effective=False) for number in range(301)]
    await store.store.insert_groups("run", "deep", probes)
    batch = await store.store.take_batch(
        "run", "deep", lease_id="last", batch_size=301, lease_ms=60_000, holder="", wait_ms=0, call_id="c"
    )
    assert isinstance(batch, LeasedBatch)
    chosen = [group.group_id for group in batch.groups]
    assert chosen == [*(f"h{number}" for number in reversed(range(300))), "wanted"]
    assert {group.source for group in batch.groups} == {GroupSource.REPLAY}


async def test_an_insert_whose_answer_was_lost_is_repeated_without_harm(store: StoreUser) -> None:
    """The connection sends the same call again: the group is inserted, and keeps the payload that this call wrote."""
    record = ("a", b"header", 0, 0, 0.5, 7, "ref", "prompt", "", "", 1.0, 0.5)
    store.redis.set(KEYS.payload("a/ref"), b"payload")
    assert await store.call("insert_groups", 1, record) == [b"INSERTED"]
    assert await store.call("insert_groups", 1, record) == [b"INSERTED"]
    other = ("a", b"header", 0, 0, 0.5, 7, "other-ref", "prompt", "", "", 1.0, 0.5)
    assert await store.call("insert_groups", 1, other) == [b"DUPLICATE"]
    assert (await store.describe()).counters == {"inserted": 1, "inserted_effective": 1, "duplicate": 1}


async def test_a_group_that_left_is_remembered_for_a_day(store: StoreUser) -> None:
    """A retry within a day finds it; afterwards the id is free again, so that memory stays bounded."""
    record = ("x", b"header", 0, 0, 0.0, 0, "", "prompt", "", "", 1.0, 0.5)
    now = 10 * DAY_MS
    await store.call("insert_groups", now, record)
    taking: dict[str, Value] = {
        "batch_size": 1,
        "deadline_ms": now + 1000,
        "holder": "",
        "wait_until_ms": now,
        "call_id": "c",
    }
    await store.call("take_batch", now, lease_id="l", **taking)
    await store.call("commit_lease", now, lease_id="l", step=1)
    assert await store.call("insert_groups", now + DAY_MS - 1, record) == [b"DUPLICATE"]
    assert await store.call("locate_groups", now, ("x",)) == [b"gone"]
    await store.call("insert_groups", now + DAY_MS, ("y", *record[1:]))
    assert await store.call("insert_groups", now + DAY_MS, record) == [b"INSERTED"]


async def test_an_ended_lease_is_remembered_for_a_day(store: StoreUser) -> None:
    """A repeated commit is recognised for a day; the step stays taken for longer."""
    now = 10 * DAY_MS
    await store.insert_ids("a", "b", "c")
    taking: dict[str, Value] = {
        "batch_size": 1,
        "deadline_ms": now + 1000,
        "holder": "",
        "wait_until_ms": now,
        "call_id": "c",
    }
    for step, lease_id in enumerate(("one", "two")):
        later = now + step * (DAY_MS + 1)
        await store.call("take_batch", later, lease_id=lease_id, **taking | {"deadline_ms": later + 1000})
        await store.call("commit_lease", later, lease_id=lease_id, step=step)
    with pytest.raises(UnknownLeaseError, match="never gave a lease one, or forgot it a day after its end"):
        await store.commit("one", 0)
    assert await store.commit("two", 1) is True
    await store.take(1, "three")
    with pytest.raises(StepConflictError, match=r"step 0 .* with lease one"):
        await store.commit("three", 0)


async def test_leases_expire_at_their_deadline_and_not_before(store: StoreUser) -> None:
    """One millisecond decides; more than a hundred leases take several looks, and all end."""
    now = 1000
    names = [f"g{number:03}" for number in range(150)]
    await store.insert_ids(*names)
    for name in names:
        taking: dict[str, Value] = {
            "batch_size": 1,
            "deadline_ms": now + 10,
            "holder": "",
            "wait_until_ms": now,
            "call_id": "c",
        }
        await store.call("take_batch", now, lease_id=f"of-{name}", **taking)
    assert set(await store.call("locate_groups", now + 9, *((name,) for name in names))) == {b"leased"}
    assert (await store.call("locate_groups", now + 10, *((name,) for name in names))).count(b"fresh") == 100
    assert set(await store.call("locate_groups", now + 10, *((name,) for name in names))) == {b"fresh"}
    assert await store.take(150) == names
    with pytest.raises(LeaseExpiredError):
        await store.commit("of-g000", 1)


async def test_what_is_missing_is_told_to_the_caller_and_to_admission(store: StoreUser) -> None:
    """The wait of each call counts until its end, whatever becomes of its process."""
    await store.insert_ids("a")
    found = await store.look(3, wait_ms=60_000)
    assert found == BatchNotReady(wanted=3, available=1, next_deadline_ms=0)
    assert (await store.describe()).missing == 2
    await store.look(4, "other", call_id="dead", wait_ms=0)
    assert (await store.describe()).missing == 2
    await store.store.stop_waiting(*store.names, "call")
    assert (await store.describe()).missing == 0


async def test_concurrent_batches_never_share_a_fresh_group(store: StoreUser) -> None:
    """Many trainers at once: each group goes to one, in order."""
    names = [f"g{number:03}" for number in range(120)]
    await store.insert_ids(*names)
    taken = await asyncio.gather(*(store.take(4, f"lease-{number}") for number in range(30)))
    assert sorted(name for batch in taken for name in batch) == names


async def test_garbage_is_collected_once_and_only_of_groups_that_left(store: StoreUser) -> None:
    """Payloads of groups that can still be delivered stay."""
    await store.store.create_table("run", "none", TableConfig(fill=Fill.NONE))
    await store.store.insert_groups("run", "none", [incoming("a"), incoming("b")])
    await store.store.take_batch(
        "run", "none", lease_id="l", batch_size=1, lease_ms=60_000, holder="", wait_ms=0, call_id="c"
    )
    assert await store.store.collect_garbage("run", "none") == 0
    await store.store.commit_lease("run", "none", lease_id="l", step=1)
    assert await store.store.collect_garbage("run", "none") == 1
    assert await store.store.collect_garbage("run", "none") == 0
    assert [key.split(b"/")[2] for key in store.redis.scan_iter("gr1:payload:*")] == [b"b"]


async def test_a_run_without_tables_and_a_table_without_its_run_are_unknown(store: StoreUser) -> None:
    """Nothing is made by looking."""
    with pytest.raises(UnknownRunError):
        await store.store.describe_table("nobody", "train")
    with pytest.raises(UnknownRunError):
        await store.store.list_tables("nobody")
    assert await store.store.list_tables() == [("run", "train")]


async def test_a_table_that_exists_otherwise_stays_as_it_is(store: StoreUser) -> None:
    """The first configuration wins; the same one again is no error."""
    assert await store.make_table(TableConfig()) is False
    with pytest.raises(TableExistsError, match="fill is replay, not keep; take another name"):
        await store.make_table(TableConfig(fill=Fill.KEEP))


async def test_redis_out_of_memory_is_an_error_that_passes(store: StoreUser) -> None:
    """Nothing is stored, nothing is half stored, and the same insert succeeds when there is memory."""
    store.redis.config_set("maxmemory", "1")
    try:
        with pytest.raises(
            StoreUnavailableError, match=r"^Redis did not take the call \(.?command not allowed when used memory"
        ):
            await store.insert(incoming("a"))
    finally:
        store.redis.config_set("maxmemory", "0")
    assert await store.store.locate_groups(*store.names, ["a"]) == [GroupState.UNKNOWN]
    await store.insert_ids("a")
    # On a cluster a payload may be on a shard that had memory: it is swept.
    sweeper = Sweeper(OrphanStore(store.connection), grace_s=0.0, keys_per_s=10**9)
    for _ in range(2):
        await sweeper.sweep()


async def test_more_expired_groups_than_one_call_clears_are_not_delivered(store: StoreUser) -> None:
    """A batch meets those that are left, fresh and in replay, and takes none of them."""
    now = 10 * DAY_MS
    await store.store.create_table("run", "brief", TableConfig(ttl_s=1.0))
    brief = TableKeys("run", "brief")

    async def call(script: str, at_ms: int, *records: tuple[Value, ...], **values: Value) -> Any:
        shared: dict[str, Value] = {"now_ms": at_ms, "topic": brief.topic, "seed": "0123456789abcdef" * 2}
        return await call_script(store.connection, script, brief.all(), shared | values, records)

    taking: dict[str, Value] = {"deadline_ms": now + DAY_MS, "holder": "", "wait_until_ms": now, "call_id": "c"}
    groups = [(f"g{n:03}", b"h", 0, 0, 0.5, 0, "", f"p{n}", "", "", 1.0, 0.5) for n in range(500)]
    await call("insert_groups", now, *groups)
    await call("take_batch", now, lease_id="one", batch_size=250, **taking)
    await call("commit_lease", now, lease_id="one", step=1)
    await call(
        "insert_groups", now + 900, *((f"x{n}", b"h", 0, 0, 0.5, 0, "", f"x{n}", "", "", 1.0, 0.5) for n in range(2))
    )
    reply = await call("take_batch", now + 1000, lease_id="two", batch_size=2, **taking)
    assert [group[1] for group in reply[6]] == [b"x0", b"x1"]
    reply = await call("take_batch", now + 1001, lease_id="three", batch_size=1, **taking)
    assert reply[:3] == [0, 1, 0]


async def test_many_cancelled_calls_leave_the_connections_in_order(store: StoreUser) -> None:
    """A caller that leaves in the middle of a command must not give its answer to the next one."""
    await store.insert_ids(*(f"g{number}" for number in range(50)))
    for number in range(100):
        task = asyncio.create_task(store.describe())
        for _ in range(number % 10):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    states = await asyncio.gather(*(store.store.locate_groups(*store.names, [f"g{n}", f"no{n}"]) for n in range(20)))
    assert states == [[GroupState.FRESH, GroupState.UNKNOWN]] * 20


async def test_the_store_works_over_any_client_that_decodes_nothing(store: StoreUser) -> None:
    """Two stores on one Redis see the same."""
    other = RedisStore(store.connection)
    await store.insert_ids("a")
    assert await other.locate_groups(*store.names, ["a"]) == [GroupState.FRESH]
