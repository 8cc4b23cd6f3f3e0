"""Serializes batches by hand: headers and payloads go out as the bytes that came in, neither parsed nor copied twice.

The result is an ordinary NextBatchResponse (replay_service.proto); a test parses it with the generated classes.
"""

from collections.abc import AsyncIterator

from groupreplay.convert import SOURCES
from groupreplay.parts import MESSAGE_BYTES
from groupreplay.v1 import group_pb2, replay_service_pb2
from groupreplay_server.store.records import LeasedBatch, LeasedGroup

_PARTS = b"\x12"  # NextBatchResponse.parts = 2
_HEADER, _DELIVERY, _PAYLOAD = b"\x0a", b"\x12", b"\x1a"  # GroupPart.header = 1, .delivery = 2, .payload = 3


async def serialize_batch(batch: LeasedBatch, groups: AsyncIterator[tuple[LeasedGroup, bytes]]) -> AsyncIterator[bytes]:
    """Yield the messages of a batch: its header first, then parts; a group's header may take one past MESSAGE_BYTES."""
    pending: list[bytes | memoryview] = [
        replay_service_pb2.NextBatchResponse(batch=_batch_header(batch)).SerializeToString()
    ]
    size = 0
    async for group, payload in groups:
        view = memoryview(payload)
        for start in range(0, max(len(view), 1), MESSAGE_BYTES):
            part = _part(group if start == 0 else None, view[start : start + MESSAGE_BYTES])
            part_bytes = sum(map(len, part))
            if size and size + part_bytes > MESSAGE_BYTES:
                yield b"".join(pending)
                pending, size = [], 0
            pending += part
            size += part_bytes
    yield b"".join(pending)


def _batch_header(batch: LeasedBatch) -> replay_service_pb2.BatchHeader:
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


def _part(group: LeasedGroup | None, piece: memoryview) -> list[bytes | memoryview]:
    first = _HEADER + _varint(len(group.header)) + group.header + _delivery(group) if group else b""
    before = first + _PAYLOAD + _varint(len(piece))
    return [_PARTS, _varint(len(before) + len(piece)), before, piece]


def _delivery(group: LeasedGroup) -> bytes:
    message = group_pb2.Delivery(
        source=SOURCES[group.source],
        staleness=group.staleness,
        times_sampled=group.times_sampled,
        probability=1.0,  # recency is deterministic
        redeliveries=group.redeliveries,
    ).SerializeToString()
    return _DELIVERY + _varint(len(message)) + message


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
