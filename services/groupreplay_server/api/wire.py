"""Serializes batches by hand: headers and payloads go out as the bytes that came in, neither parsed nor copied twice.

The result is an ordinary NextBatchResponse (replay_service.proto); a test parses it with the generated classes.
"""

from collections.abc import AsyncIterator, Sequence

from groupreplay.convert import SOURCES
from groupreplay.parts import MESSAGE_BYTES, varint
from groupreplay.v1 import group_pb2, replay_service_pb2
from groupreplay_server.store.records import LeasedBatch, LeasedGroup, ReadGroup

_PARTS = b"\x12"  # NextBatchResponse.parts = 2
_READ_PARTS = b"\x0a"  # GetGroupsResponse.parts = 1, ReadLeaseResponse.parts = 1
_HEADER_ONLY = b"\x20\x01"  # GroupPart.header_only = 4, true
_HEADER, _DELIVERY, _PAYLOAD = b"\x0a", b"\x12", b"\x1a"  # GroupPart.header = 1, .delivery = 2, .payload = 3


async def serialize_batch(batch: LeasedBatch, groups: AsyncIterator[tuple[LeasedGroup, bytes]]) -> AsyncIterator[bytes]:
    """Yield the messages of a batch: its header first, then parts; a group's header may take one past MESSAGE_BYTES."""
    async for message in pack_groups(
        _first_message(batch), _PARTS, ((_first_fields(group), payload) async for group, payload in groups)
    ):
        yield message


async def serialize_outline(batch: LeasedBatch) -> AsyncIterator[bytes]:
    """Yield the messages of a batch whose payloads are left out."""
    parts = _without_payloads(batch.groups)
    async for message in pack_groups(_first_message(batch), _PARTS, parts):
        yield message


async def serialize_leased_groups(groups: AsyncIterator[tuple[LeasedGroup, bytes]]) -> AsyncIterator[bytes]:
    """Yield the ReadLeaseResponse messages of groups of a lease."""
    parts = ((_first_fields(group), payload) async for group, payload in groups)
    async for message in pack_groups(b"", _READ_PARTS, parts):
        yield message


async def serialize_read_groups(groups: AsyncIterator[tuple[ReadGroup, bytes]]) -> AsyncIterator[bytes]:
    """Yield the GetGroupsResponse messages of groups; a payload that is not kept is left out."""
    parts = ((_read_fields(group), payload) async for group, payload in groups)
    async for message in pack_groups(b"", _READ_PARTS, parts):
        yield message


async def pack_groups(first: bytes, tag: bytes, groups: AsyncIterator[tuple[bytes, bytes]]) -> AsyncIterator[bytes]:
    """Yield messages of parts: each group's fields with the first piece of its payload, then the other pieces."""
    pending: list[bytes | memoryview] = [first]
    size = 0
    async for fields, payload in groups:
        view = memoryview(payload)
        for start in range(0, max(len(view), 1), MESSAGE_BYTES):
            part = _part(tag, fields if start == 0 else b"", view[start : start + MESSAGE_BYTES])
            part_bytes = sum(map(len, part))
            if size and size + part_bytes > MESSAGE_BYTES:
                yield b"".join(pending)
                pending, size = [], 0
            pending += part
            size += part_bytes
    yield b"".join(pending)


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


def _part(tag: bytes, fields: bytes, piece: memoryview) -> list[bytes | memoryview]:
    before = fields + _PAYLOAD + varint(len(piece))
    return [tag, varint(len(before) + len(piece)), before, piece]


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


async def _without_payloads(groups: Sequence[LeasedGroup]) -> AsyncIterator[tuple[bytes, bytes]]:
    for group in groups:
        yield _first_fields(group) + _HEADER_ONLY, b""


def _first_fields(group: LeasedGroup) -> bytes:
    return _header_and_delivery(group.header, delivery(group))


def _read_fields(group: ReadGroup) -> bytes:
    read = group_pb2.Delivery(staleness=group.staleness, times_sampled=group.times_sampled)
    return _header_and_delivery(group.header, read) + (b"" if group.payload_ref else _HEADER_ONLY)


def _header_and_delivery(header: bytes, how: group_pb2.Delivery) -> bytes:
    message = how.SerializeToString()
    return _HEADER + varint(len(header)) + header + _DELIVERY + varint(len(message)) + message
