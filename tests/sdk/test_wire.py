"""Batches are serialized by hand; what comes out is what the generated classes would make."""

from collections.abc import AsyncIterator

import pytest

from groupreplay.parts import MESSAGE_BYTES, Part, PartAssembler
from groupreplay.types import GroupSource
from groupreplay.v1 import group_pb2
from groupreplay.v1 import replay_service_pb2 as pb
from groupreplay_server.api.wire import serialize_batch
from groupreplay_server.store.records import LeasedBatch, LeasedGroup

GRPC_LIMIT = 4 * 2**20


def leased(number: int, size: int, note_bytes: int = 10) -> tuple[LeasedGroup, bytes]:
    """Return a group of a batch with its payload."""
    header = group_pb2.GroupHeader(group_id=f"g{number}", payload_bytes=size, tags={"note": "n" * note_bytes})
    source = GroupSource.REPLAY if number % 2 else GroupSource.FRESH
    group = LeasedGroup(
        f"g{number}", header.SerializeToString(), "ref", source, number * 300, number + 1, number, 1 / (number + 1), 1.0
    )
    return group, bytes([number % 256]) * size


async def messages_of(groups: list[tuple[LeasedGroup, bytes]]) -> list[bytes]:
    """Serialize a batch of these groups."""

    async def payloads() -> AsyncIterator[tuple[LeasedGroup, bytes]]:
        for each in groups:
            yield each

    batch = LeasedBatch(
        lease_id="lease", deadline_ms=2**45, policy_version=2**20 - 1, batch_size=70_000, fresh=9, fresh_effective=8,
        groups=tuple(group for group, _ in groups),
    )  # fmt: skip
    return [message async for message in serialize_batch(batch, payloads())]


@pytest.mark.parametrize(
    "sizes",
    [
        [],
        [0],
        [1, 0, 127, 128, 129],
        [MESSAGE_BYTES - 1, MESSAGE_BYTES, MESSAGE_BYTES + 1],
        [2 * MESSAGE_BYTES, 5, 3 * MESSAGE_BYTES + 7, 0],
        [16_383, 16_384, 2**21 - 1, 2**21],
        [100] * 500,
    ],
    ids=lambda sizes: f"{len(sizes)}-groups",
)
async def test_the_generated_classes_read_what_was_serialized(sizes: list[int]) -> None:
    """Header, deliveries and payloads, with lengths around every size of their encoding."""
    groups = [leased(number, size) for number, size in enumerate(sizes)]
    responses = [pb.NextBatchResponse.FromString(message) for message in await messages_of(groups)]
    assert [response.HasField("batch") for response in responses] == [True] + [False] * (len(responses) - 1)
    assert responses[0].batch == pb.BatchHeader(
        lease_id="lease", lease_deadline_ms=2**45, policy_version=2**20 - 1, batch_size=70_000, groups=len(sizes),
        fresh=9, fresh_effective=8, refilled=len(sizes) // 2, shortfall=70_000 - len(sizes),
    )  # fmt: skip
    assembler = PartAssembler()
    found = [
        whole for response in responses for part in response.parts if (whole := assembler.add(Part.from_proto(part)))
    ]
    assembler.check_complete()
    for (group, payload), read in zip(groups, found, strict=True):
        assert read.header.SerializeToString() == group.header
        assert (read.payload or b"") == payload
        assert read.delivery == group_pb2.Delivery(
            source=group_pb2.REPLAY if group.source is GroupSource.REPLAY else group_pb2.FRESH,
            staleness=group.staleness,
            times_sampled=group.times_sampled,
            probability=group.probability,
            redeliveries=group.redeliveries,
            importance_weight=group.importance_weight,
        )
    assert all(response.SerializeToString() for response in responses)


@pytest.mark.parametrize(
    ("count", "size", "note_bytes"),
    [(5000, 50, 1000), (20, 2**20, 10), (30, MESSAGE_BYTES + 9, 250_000), (400, 0, 9000)],
)
async def test_no_message_exceeds_the_limit_of_grpc(count: int, size: int, note_bytes: int) -> None:
    """Also where headers outweigh payloads."""
    messages = await messages_of([leased(number, size, note_bytes) for number in range(count)])
    assert max(map(len, messages)) < GRPC_LIMIT
    total = sum(map(len, messages))
    assert len(messages) <= 2 * (total // MESSAGE_BYTES + 1)
