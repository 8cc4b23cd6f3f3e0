"""Snapshots as messages: SnapshotPart (replay_service.proto) out and in. Headers and payloads pass through as bytes."""

import math
from collections.abc import AsyncIterator

from groupreplay import convert, convert_tables
from groupreplay.errors import InvalidRequestError
from groupreplay.groups import check_name
from groupreplay.parts import SnapshotAssembler, varint
from groupreplay.types import GroupState
from groupreplay.v1 import replay_service_pb2 as pb
from groupreplay_server.api.wire import pack_groups
from groupreplay_server.keeping import Groups
from groupreplay_server.store.keeping_store import KeptGroup, KeptTable

_GROUPS = b"\x12"  # SnapshotPart.groups = 2; SnapshotGroup has its payload under the number of GroupPart's
_ENTRY, _HEADER = b"\x0a", b"\x12"  # SnapshotGroup.entry = 1, .header = 2
_PLACES = {GroupState.FRESH, GroupState.LEASED, GroupState.REPLAY}
_KEPT_FIELDS = ("taken_at_ms", "policy_version_max", "sequence", "sampled", "paced_from_version", "paced_from_inserted")
_ENTRY_FIELDS = (
    "group_id", "payload_bytes", "sequence", "effective", "policy_version_min", "policy_version_max", "prompt_id",
    "task", "priority", "inserted_ms", "times_sampled", "in_leases", "redeliveries",
)  # fmt: skip


async def serialize_snapshot(kept: KeptTable, groups: Groups) -> AsyncIterator[bytes]:
    """Yield the messages of a snapshot: header, groups, end."""
    header = pb.SnapshotHeader(
        table=convert_tables.table_to_proto(kept.table),
        policy=convert_tables.policy_to_proto(kept.policy),
        **{name: getattr(kept, name) for name in _KEPT_FIELDS},
    )
    yield pb.SnapshotPart(header=header).SerializeToString()
    async for message in pack_groups(
        b"", _GROUPS, ((_first_fields(group), payload) async for group, payload in groups)
    ):
        yield message
    end = pb.SnapshotEnd(groups=kept.groups, payload_bytes=kept.table.payload_bytes)
    yield pb.SnapshotPart(end=end).SerializeToString()


def _first_fields(group: KeptGroup) -> bytes:
    entry = pb.SnapshotEntry(
        place=convert.STATES[group.place],
        feedback=convert.feedback_to_proto(group.feedback),
        reward_mean=group.reward_mean,
        **{name: getattr(group, name) for name in _ENTRY_FIELDS},
    ).SerializeToString()
    return _ENTRY + varint(len(entry)) + entry + _HEADER + varint(len(group.header)) + group.header


async def read_header(parts: AsyncIterator[pb.SnapshotPart]) -> tuple[KeptTable, pb.SnapshotHeader]:
    """Take the first part; return the snapshot's table, named as the new one shall be, and the whole header."""
    first = await anext(parts, None)
    if first is None or not first.HasField("header"):
        raise InvalidRequestError("a snapshot begins with a part that has its header, and this one does not")
    header = first.header
    kept = KeptTable(
        table=convert_tables.table_from_proto(header.table),
        policy=convert_tables.policy_from_proto(header.policy),
        **{name: getattr(header, name) for name in _KEPT_FIELDS},
    )
    return kept, header


async def read_groups(parts: AsyncIterator[pb.SnapshotPart], kept: KeptTable) -> Groups:
    """Yield the groups of the parts that follow the header.

    Raises:
        InvalidRequestError: the stream is no snapshot, or ends before its end.
    """
    assembler = SnapshotAssembler()
    complete = False
    async for part in parts:
        for piece in part.groups:
            if (whole := assembler.add(piece)) is not None:
                yield _kept_group(whole.entry, whole.header, kept), whole.payload
        complete = part.HasField("end")
    if not complete:
        raise InvalidRequestError("the snapshot ends in the middle: its last part, which has the totals, did not come")
    assembler.check_complete()


def _kept_group(entry: pb.SnapshotEntry, header: bytes, kept: KeptTable) -> KeptGroup:
    if entry.policy_version_max > kept.policy_version_max:
        raise InvalidRequestError(
            f"group {entry.group_id} of the snapshot has policy version {entry.policy_version_max}, and its header "
            f"says that {kept.policy_version_max} is the newest: it is damaged"
        )
    [place] = convert.states_from_proto([entry.place])
    if place not in _PLACES:
        raise InvalidRequestError(f"group {entry.group_id} of the snapshot is {place}, not one of {sorted(_PLACES)}")
    check_name(entry.group_id, "group_id")
    return KeptGroup(
        place=place,
        header=header,
        payload_ref="",
        feedback=convert.feedback_from_proto(entry.feedback),
        reward_mean=entry.reward_mean if entry.HasField("reward_mean") and math.isfinite(entry.reward_mean) else None,
        **{name: getattr(entry, name) for name in _ENTRY_FIELDS},
    )
