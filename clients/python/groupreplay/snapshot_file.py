"""Snapshot files: a table as it was at one moment.

8 bytes of magic with the format's version, then SnapshotPart messages (replay_service.proto), each after its length as
a varint. The last one has the totals, and the SHA-256 of everything before it.
"""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from google.protobuf.message import DecodeError

from groupreplay import convert, convert_tables
from groupreplay.errors import GroupReplayError, InvalidRequestError
from groupreplay.groups import RolloutGroup
from groupreplay.parts import SnapshotAssembler, varint
from groupreplay.types import GroupFeedback, GroupState, Table
from groupreplay.v1 import group_pb2
from groupreplay.v1 import replay_service_pb2 as pb

MAGIC = b"GRSNAP\x00\x01"
MAX_PART_BYTES = 4 * 2**20
"""No part is longer: it is a gRPC message."""

Progress = Callable[[int, int], None]
"""Told, now and then, how many payload bytes of how many have come."""


class SnapshotFileError(InvalidRequestError):
    """The file is not a snapshot, or it is truncated or damaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotGroup:
    """A group as it was at a snapshot's moment."""

    header: group_pb2.GroupHeader
    """What its producer said of it: ids, rewards, lengths, tags."""
    payload: bytes
    """Empty where the table kept none: a group without reward variance."""
    place: GroupState
    """Fresh, leased or replay."""
    priority: float
    """What a caller set last, else what it came with."""
    feedback: GroupFeedback
    """What callers found out about it."""
    times_sampled: int
    redeliveries: int
    inserted_ms: int

    @property
    def group(self) -> RolloutGroup:
        """The whole group; its arrays are read-only views of payload.

        Raises:
            InvalidGroupError: there is no payload, or it is foreign.
        """
        return convert.group_from_wire(self.header, self.payload)


class SnapshotWriter:
    """Writes a snapshot file. Under its name it appears when it is whole, and replaces what was there."""

    def __init__(self, path: str | os.PathLike[str], progress: Progress | None = None) -> None:
        self._path = Path(path)
        self._partial = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}.partial")
        self._progress = progress
        self._sha = hashlib.sha256()
        self._header: pb.SnapshotHeader | None = None
        self._written = 0
        self._complete = False

    def __enter__(self) -> Self:
        """Open a file beside the one to write.

        Raises:
            OSError: it cannot be written there.
        """
        self._file: BinaryIO = self._partial.open("xb")
        self._write(MAGIC)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._file:
                if self._complete and kind is None:
                    self._file.flush()
                    os.fsync(self._file.fileno())
            if self._complete and kind is None:
                self._partial.replace(self._path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                self._partial.unlink()

    def add(self, part: pb.SnapshotPart) -> None:
        """Write the next part."""
        if part.HasField("header"):
            self._header = part.header
        if part.HasField("end"):
            part.end.sha256 = self._sha.digest()
            self._complete = True
        message = part.SerializeToString()
        self._write(varint(len(message)) + message)
        self._written += sum(len(piece.payload) for piece in part.groups)
        if self._progress and self._header:
            self._progress(self._written, self._header.table.payload_bytes)

    def table(self) -> Table:
        """Return the table at the snapshot's moment, once all has come.

        Raises:
            SnapshotFileError: it has not.
        """
        if self._header is None or not self._complete:
            raise SnapshotFileError(f"the snapshot for {self._path} broke off; nothing is kept of it, take it again")
        return convert_tables.table_from_proto(self._header.table)

    def _write(self, data: bytes) -> None:
        self._sha.update(data)
        self._file.write(data)


class SnapshotFile:
    """A snapshot file to be read; it has been checked from end to end.

    Raises:
        OSError: it cannot be read.
        SnapshotFileError: it is not a snapshot, or it is truncated or damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        with self._path.open("rb") as file:
            totals = self._check(file)
        header = next(self.parts()).header
        if (header.table.fresh + header.table.leased + header.table.replay, header.table.payload_bytes) != totals:
            raise self._damaged(f"it says to end with {totals[0]} groups and {totals[1]} payload bytes: it is damaged")
        self.table = convert_tables.table_from_proto(header.table)
        """The table at the snapshot's moment."""
        self.policy = convert_tables.policy_from_proto(header.policy)
        """Its run's policy clock."""
        self.taken_at_ms = header.taken_at_ms
        """Milliseconds since the Unix epoch."""

    def parts(self) -> Iterator[pb.SnapshotPart]:
        """Yield the messages of the file."""
        with self._path.open("rb") as file:
            file.seek(len(MAGIC))
            while (length := self._read_length(file)) is not None:
                yield self._parse(file.read(length))

    def groups(self) -> Iterator[SnapshotGroup]:
        """Yield the groups: fresh ones in order of arrival, leased ones, then replay from the oldest on."""
        assembler = SnapshotAssembler()
        for part in self.parts():
            for piece in part.groups:
                if (whole := assembler.add(piece)) is not None:
                    yield _snapshot_group(whole.entry, whole.header, whole.payload)

    def restore_question(self, run: str, table: str, restore_id: str) -> Iterator[pb.SnapshotPart]:
        """Yield the message that asks whether Restore would refuse to make run/table of it."""
        first = next(self.restore_parts(run, table, restore_id))
        first.header.only_ask = True
        yield first

    def restore_parts(
        self, run: str, table: str, restore_id: str, progress: Progress | None = None
    ) -> Iterator[pb.SnapshotPart]:
        """Yield the messages that Restore takes, to make run/table of it."""
        sent = 0
        for part in self.parts():
            if part.HasField("header"):
                part.header.table.run, part.header.table.table = run, table
                part.header.restore_id = restore_id
            yield part
            sent += sum(len(piece.payload) for piece in part.groups)
            if progress:
                progress(sent, self.table.payload_bytes)

    def _check(self, file: BinaryIO) -> tuple[int, int]:
        """Compare the file with the SHA-256 in its last part; return the groups and payload bytes that this names."""
        magic = file.read(len(MAGIC))
        if magic[:6] == MAGIC[:6] and len(magic) == len(MAGIC) and magic != MAGIC:
            raise SnapshotFileError(
                f"{self._path} has version {magic[7]} of the snapshot format, this groupreplay reads {MAGIC[7]}; "
                "upgrade it"
            )
        if magic != MAGIC:
            raise SnapshotFileError(f"{self._path} is not a snapshot: it begins with {magic!r}, not {MAGIC!r}")
        sha, size = hashlib.sha256(magic), os.fstat(file.fileno()).st_size
        while True:
            start = file.tell()
            length = self._read_length(file)
            if length is None or file.tell() + length > size:
                raise self._damaged("it ends in the middle: it is truncated")
            body_start = file.tell()
            if body_start + length == size:
                break
            file.seek(start)
            sha.update(file.read(body_start + length - start))
        last = self._parse(file.read(length))
        if not last.HasField("end"):
            raise self._damaged("its last part, which has the totals, is missing: it is truncated")
        if last.end.sha256 != sha.digest():
            raise self._damaged("its content does not have the SHA-256 that it ends with: it is damaged")
        return last.end.groups, last.end.payload_bytes

    def _read_length(self, file: BinaryIO) -> int | None:
        """Return the length before the next part, None at the end of the file."""
        length = shift = 0
        while byte := file.read(1):
            length |= (byte[0] & 0x7F) << shift
            shift += 7
            if length > MAX_PART_BYTES or shift > 35:
                raise self._damaged(f"a part of it would be over {MAX_PART_BYTES} bytes long: it is damaged")
            if byte[0] < 0x80:
                return length
        return None

    def _parse(self, message: bytes) -> pb.SnapshotPart:
        try:
            return pb.SnapshotPart.FromString(message)
        except DecodeError:
            raise self._damaged("one of its parts is no message of ours: it is damaged") from None

    def _damaged(self, how: str) -> GroupReplayError:
        return SnapshotFileError(
            f"{self._path} cannot be used as a snapshot: {how}; take the snapshot, or copy it, again"
        )


def _snapshot_group(entry: pb.SnapshotEntry, header: bytes, payload: bytes) -> SnapshotGroup:
    feedback = convert.feedback_from_proto(entry.feedback)
    return SnapshotGroup(
        header=group_pb2.GroupHeader.FromString(header),
        payload=payload,
        place=convert.states_from_proto([entry.place])[0],
        priority=entry.priority if feedback.priority is None else feedback.priority,
        feedback=feedback,
        times_sampled=entry.times_sampled,
        redeliveries=entry.redeliveries,
        inserted_ms=entry.inserted_ms,
    )
