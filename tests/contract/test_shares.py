"""One lease for a trainer of several ranks: its batch without payloads, and each rank's share of them."""

from collections.abc import AsyncIterator
from typing import Any, cast

import grpc.aio
import pytest
from samples import effective, ids, make_group, same
from table_user import MakeTable

from groupreplay import (
    Fill,
    InvalidRequestError,
    LeaseExpiredError,
    StepConflictError,
    UnknownLeaseError,
)
from groupreplay.v1 import replay_service_pb2 as pb
from groupreplay.v1.replay_service_pb2_grpc import ReplayServiceStub


async def test_an_outline_is_the_batch_without_payloads(make_table: MakeTable) -> None:
    """It says which groups the batch has, how they came there, and how long they are; next_batch has the same ones."""
    table = await make_table()
    await table.insert(*effective("a"), make_group("b", rewards=(0.0, 0.5, 1.0), tokens=7))
    outline = await table.client.lease_batch(batch_size=2, lease_id="l", timeout_s=0.0, **table.names)
    batch = await table.take(2, lease_id="l")
    assert [group.group_id for group in outline.groups] == ids(batch) == ["a", "b"]
    assert outline.groups[1].rewards == (0.0, 0.5, 1.0)
    assert (outline.groups[1].prompt_length, outline.groups[1].response_lengths) == (2, (7, 7, 7))
    assert [group.tokens for group in outline.groups] == [2 * (2 + 3), 3 * (2 + 7)]
    for group, delivered in zip(outline.groups, batch.groups, strict=True):
        for name in ("source", "staleness", "times_sampled", "probability", "redeliveries", "importance_weight"):
            assert getattr(group.delivery, name) == getattr(delivered, name)
    for name in ("lease_id", "lease_deadline_ms", "policy_version", "batch_size", "fresh", "fresh_effective"):
        assert getattr(outline, name) == getattr(batch, name)


async def test_no_payload_travels_with_an_outline(make_table: MakeTable, stub: ReplayServiceStub) -> None:
    """A megabyte of tokens is some hundred bytes of outline."""
    table = await make_table()
    await table.insert(make_group("big", tokens=100_000))
    request = pb.NextBatchRequest(**table.names, batch_size=1, lease_id="l", headers_only=True)
    responses = [response async for response in cast(AsyncIterator[pb.NextBatchResponse], stub.NextBatch(request))]
    [part] = [part for response in responses for part in response.parts]
    assert part.header_only
    assert sum(response.ByteSize() for response in responses) < 1000 < part.header.payload_bytes


async def test_ranks_read_their_shares_of_a_lease(make_table: MakeTable) -> None:
    """What read_lease returns is what next_batch delivers, in the order asked; one commit ends the lease for all."""
    table = await make_table()
    await table.insert(*effective("a", "b", "c"))
    await table.client.lease_batch(batch_size=3, lease_id="l", timeout_s=0.0, **table.names)
    batch = await table.take(3, lease_id="l")
    first = await table.client.read_lease(["c", "a"], lease_id="l", **table.names)
    second = await table.client.read_lease(["b"], lease_id="l", **table.names)
    assert [delivered.group.group_id for delivered in [*first, *second]] == ["c", "a", "b"]
    for read, delivered in zip([first[1], second[0], first[0]], batch.groups, strict=True):
        same(read.group, delivered.group)
        assert (read.source, read.staleness, read.times_sampled) == (delivered.source, 0, 1)
    assert await table.client.read_lease([], lease_id="l", **table.names) == []
    assert await table.commit(batch, step=1) is False
    assert (await table.describe()).leases == 0


async def test_a_group_that_left_the_table_is_whole_for_its_lease(make_table: MakeTable) -> None:
    """A replay group that is evicted between outline and share is read all the same; get_groups has it no more."""
    table = await make_table(fill=Fill.REPLAY)
    await table.insert(*effective("old"))
    await table.train(1, step=1)
    await table.insert(make_group("x", rewards=(1.0, 1.0)))
    outline = await table.client.lease_batch(batch_size=1, lease_id="l", timeout_s=0.0, **table.names)
    assert [group.group_id for group in outline.groups] == ["old"]
    assert await table.client.delete_groups(["old"], **table.names) == 1
    assert await table.client.get_groups(["old"], **table.names) == []
    [read] = await table.client.read_lease(["old"], lease_id="l", **table.names)
    same(read.group, effective("old", created_at_ms=read.group.created_at_ms)[0])


async def test_shares_of_leases_that_are_not_live_are_refused(make_table: MakeTable) -> None:
    """A lease that ended, or never was, has no groups to read; nor has any lease those of others."""
    table = await make_table()
    await table.insert(*effective("a", "b", "c"))
    batch = await table.take(1, lease_id="l")
    with pytest.raises(InvalidRequestError, match=r"has 1 groups, and 2 of those asked for .* the first is b"):
        await table.client.read_lease(["a", "b", "c"], lease_id="l", **table.names)
    with pytest.raises(UnknownLeaseError):
        await table.client.read_lease(["a"], lease_id="never", **table.names)
    await table.release(batch)
    with pytest.raises(LeaseExpiredError, match="was released"):
        await table.client.read_lease(["a"], lease_id="l", **table.names)
    await table.commit(await table.take(1, lease_id="m"), step=1)
    with pytest.raises(StepConflictError, match="committed with step 1"):
        await table.client.read_lease(["a"], lease_id="m", **table.names)


async def test_a_share_of_nothing_and_of_too_much_are_refused(make_table: MakeTable, stub: ReplayServiceStub) -> None:
    """A call names 1 to 10000 groups."""
    table = await make_table()
    for names in ([], ["g"] * 10_001):
        request = pb.ReadLeaseRequest(**table.names, lease_id="l", group_ids=names)
        with pytest.raises(grpc.aio.AioRpcError, match=rf"number of group_ids {len(names)} is not in 1 to 10000"):
            await cast(Any, stub.ReadLease(request)).read()
