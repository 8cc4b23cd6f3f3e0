"""Serializes batches by hand: headers and payloads go out as the bytes that came in, neither parsed nor copied twice.

The result is an ordinary NextBatchResponse (replay_service.proto); a test parses it with the generated classes.
"""

from collections.abc import AsyncIterator, Sequence

from groupreplay.convert import SOURCES
from groupreplay.group_messages import (
    BATCH_PARTS,
    DELIVERY,
    HEADER,
    HEADER_ONLY,
    LOG_RATIOS,
    READ_PARTS,
    MessagePacker,
    delimited,
)
from groupreplay.v1 import group_pb2, replay_service_pb2
from groupreplay_server.store.records import LeasedBatch, LeasedGroup, Payload, ReadGroup


async def serialize_batch(
    batch: LeasedBatch, groups: AsyncIterator[tuple[LeasedGroup, Payload]]
) -> AsyncIterator[bytes]:
    """Yield the messages of a batch: its header first, then parts; a group's header may take one past MESSAGE_BYTES."""
    async for message in pack_groups(
        _first_message(batch), BATCH_PARTS, ((_first_fields(group), payload) async for group, payload in groups)
    ):
        yield message


async def serialize_outline(batch: LeasedBatch) -> AsyncIterator[bytes]:
    """Yield the messages of a batch whose payloads are left out."""
    parts = _without_payloads(batch.groups)
    async for message in pack_groups(_first_message(batch), BATCH_PARTS, parts):
        yield message


async def serialize_leased_groups(groups: AsyncIterator[tuple[LeasedGroup, Payload]]) -> AsyncIterator[bytes]:
    """Yield the ReadLeaseResponse messages of groups of a lease."""
    parts = ((_first_fields(group), payload) async for group, payload in groups)
    async for message in pack_groups(b"", READ_PARTS, parts):
        yield message


async def serialize_read_groups(groups: AsyncIterator[tuple[ReadGroup, Payload]]) -> AsyncIterator[bytes]:
    """Yield the GetGroupsResponse messages of groups; a payload that is not kept is left out."""
    parts = ((_read_fields(group), payload) async for group, payload in groups)
    async for message in pack_groups(b"", READ_PARTS, parts):
        yield message


async def pack_groups(first: bytes, tag: bytes, groups: AsyncIterator[tuple[bytes, Payload]]) -> AsyncIterator[bytes]:
    """Yield messages of parts: each group's fields with the first piece of its payload, then the other pieces."""
    packer = MessagePacker(first, tag)
    async for fields, payload in groups:
        for message in packer.add(fields, payload):
            yield message
    yield packer.finish()


def batch_header(batch: LeasedBatch) -> replay_service_pb2.BatchHeader:
    """Return the message that begins a batch."""
    return replay_service_pb2.BatchHeader(
        lease_id=batch.lease_id,
        lease_deadline_ms=batch.deadline_ms,
        policy_version=batch.policy_version,
        batch_size=batch.batch_size,
        groups=len(batch.groups),
        fresh=batch.fresh,
        fresh_effective=batch.fresh_effective,
        refilled=batch.refilled,
        shortfall=batch.batch_size - len(batch.groups),
    )


def delivery(group: LeasedGroup) -> group_pb2.Delivery:
    """Return the message of how a group came into a batch."""
    return group_pb2.Delivery(
        source=SOURCES[group.source],
        staleness=group.staleness,
        times_sampled=group.times_sampled,
        probability=group.probability,
        redeliveries=group.redeliveries,
        importance_weight=group.importance_weight,
    )


def _first_message(batch: LeasedBatch) -> bytes:
    return replay_service_pb2.NextBatchResponse(batch=batch_header(batch)).SerializeToString()


async def _without_payloads(groups: Sequence[LeasedGroup]) -> AsyncIterator[tuple[bytes, Payload]]:
    for group in groups:
        yield _first_fields(group) + HEADER_ONLY, b""


def _first_fields(group: LeasedGroup) -> bytes:
    return _header_and_delivery(group.header, delivery(group))


def _read_fields(group: ReadGroup) -> bytes:
    read = group_pb2.Delivery(staleness=group.staleness, times_sampled=group.times_sampled)
    fields = _header_and_delivery(group.header, read) + (b"" if group.payload_ref else HEADER_ONLY)
    kept = group.log_ratios
    if kept is None or kept.data is None:
        return fields
    step = kept.step if kept.step >= 0 else None
    ratios = group_pb2.LogRatios(values=kept.data, policy_version=kept.policy_version, step=step)
    return fields + delimited(LOG_RATIOS, ratios.SerializeToString())


def _header_and_delivery(header: bytes, how: group_pb2.Delivery) -> bytes:
    return delimited(HEADER, header) + delimited(DELIVERY, how.SerializeToString())
