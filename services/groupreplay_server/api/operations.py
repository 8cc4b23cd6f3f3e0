"""What both front doors offer: each RPC of groupreplay.v1.ReplayService as a method on its messages."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from groupreplay import (
    convert,
    convert_diagnosis,
    convert_history,
    convert_listing,
    convert_pieces,
    convert_tables,
    tracing,
)
from groupreplay.errors import GroupReplayError, InternalError, InvalidRequestError, StoreUnavailableError
from groupreplay.group_messages import InsertMessage
from groupreplay.groups import check_name
from groupreplay.parts import AssembledGroup, PartAssembler
from groupreplay.request_ids import current_request_id
from groupreplay.tokens import token_from_proto, token_to_proto
from groupreplay.v1 import replay_service_pb2 as pb
from groupreplay_server.api.listing import group_filter, listed_group
from groupreplay_server.api.metrics import Metrics
from groupreplay_server.api.snapshots import read_groups, read_header, serialize_snapshot
from groupreplay_server.api.wire import (
    batch_header,
    delivery,
    serialize_batch,
    serialize_leased_groups,
    serialize_outline,
    serialize_read_groups,
)
from groupreplay_server.batches import DEFAULT_ADMISSION_S, DEFAULT_LEASE_S
from groupreplay_server.headers import CheckedGroups
from groupreplay_server.history import MAX_STEPS
from groupreplay_server.listing import DEFAULT_LISTED
from groupreplay_server.pieces import ArrivedPiece, PieceAssembler
from groupreplay_server.service import ReplayService
from groupreplay_server.store.records import LeasedBatch, Payload

_log = logging.getLogger(__name__)
_Group = TypeVar("_Group")

SERVICE = pb.DESCRIPTOR.services_by_name["ReplayService"]
MAX_INSERT_GROUPS = 1024
DEFAULT_BEAT_S = 10.0
MessageT = TypeVar("MessageT")


class Operations:
    """One method per RPC of the protocol: message in, message out.

    Errors are raised; deadlines, metrics and the words of a transport are the business of the doors.
    """

    def __init__(self, service: ReplayService, metrics: Metrics) -> None:
        self._service = service
        self._metrics = metrics

    async def check_table(self, run: str, table: str) -> None:
        """Raise UnknownTableError, or UnknownRunError, unless the table is there."""
        await self._service.table_config(run, table)

    async def insert(self, request: InsertMessage) -> pb.InsertResponse:
        check_at_once(len(request.groups), "groups", "Insert")
        return await self.insert_groups(request.run, request.table, request.groups)

    async def insert_stream(self, requests: AsyncIterator[InsertMessage]) -> AsyncIterator[pb.InsertResponse]:
        async with aclosing(one_ahead(self._checked(requests))) as ahead:
            async for groups in ahead:
                yield await self._insert_checked(groups)

    async def _checked(self, requests: AsyncIterator[InsertMessage]) -> AsyncGenerator[CheckedGroups]:
        """Put groups together from the messages of a stream, and check them."""
        run = table = ""
        assembler: PartAssembler | None = None
        async for request in requests:
            if assembler is None:
                run, table = request.run, request.table
                assembler = PartAssembler((await self._service.table_config(run, table)).max_group_bytes)
            added = [assembler.add(part) for part in request.parts]
            if groups := [group for group in added if group is not None]:
                yield await self._service.check(run, table, groups)
        if assembler is not None:
            assembler.check_complete()

    async def insert_groups(self, run: str, table: str, groups: Sequence[AssembledGroup]) -> pb.InsertResponse:
        """Store groups that have all come, however they came."""
        return await self._insert_checked(await self._service.check(run, table, groups))

    async def _insert_checked(self, groups: CheckedGroups) -> pb.InsertResponse:
        self._metrics.payload("in", groups.payload_bytes)
        tracing.current().count(groups=len(groups))
        results, durability = await self._service.insert_checked(groups)
        return pb.InsertResponse(
            results=[convert.insert_result_to_proto(result) for result in results],
            durability=convert.DURABILITIES[durability],
        )

    async def push_rollouts(self, request: pb.PushRolloutsRequest) -> pb.PushRolloutsResponse:
        check_at_once(len(request.pieces), "pieces", "PushRollouts")
        pieces = [
            ArrivedPiece(piece, AssembledGroup(piece.rollouts.header, piece.rollouts.payload or None))
            for piece in request.pieces
        ]
        return await self.push_pieces(request.run, request.table, pieces)

    async def push_rollouts_stream(
        self, requests: AsyncIterator[pb.PushRolloutsStreamRequest]
    ) -> AsyncIterator[pb.PushRolloutsResponse]:
        run = table = ""
        assembler: PieceAssembler | None = None
        async for request in requests:
            if assembler is None:
                run, table = request.run, request.table
                assembler = PieceAssembler((await self._service.table_config(run, table)).max_group_bytes)
            added = [assembler.add(part) for part in request.parts]
            if pieces := [piece for piece in added if piece is not None]:
                yield await self.push_pieces(run, table, pieces)
        if assembler is not None:
            assembler.check_complete()

    async def push_pieces(self, run: str, table: str, pieces: Sequence[ArrivedPiece]) -> pb.PushRolloutsResponse:
        """Store pieces that have all come, however they came."""
        self._metrics.payload("in", sum(len(piece.rollouts.payload or b"") for piece in pieces))
        tracing.current().count(pieces=len(pieces))
        results, durability = await self._service.partial_groups.push(run, table, pieces)
        return pb.PushRolloutsResponse(
            results=[convert_pieces.push_result_to_proto(result) for result in results],
            durability=convert.DURABILITIES[durability],
        )

    async def next_batch(self, request: pb.NextBatchRequest) -> AsyncIterator[bytes]:
        batch = await self._service.batches.next_batch(request.run, request.table, **_lease_request(request))
        self._metrics.delivered(request.run, request.table, batch)
        tracing.current().count(groups=len(batch.groups))
        messages = serialize_outline(batch) if request.headers_only else self._send(request.run, request.table, batch)
        async for message in messages:
            yield message

    async def read_lease(self, request: pb.ReadLeaseRequest) -> AsyncIterator[bytes]:
        groups = await self._service.batches.read_lease(
            request.run, request.table, lease_id=request.lease_id, group_ids=_names(request.group_ids)
        )
        tracing.current().count(groups=len(groups))
        payloads = self._service.batches.payloads(request.run, request.table, groups)
        async for message in serialize_leased_groups(self._counted(payloads)):
            yield message

    async def sample(self, request: pb.SampleRequest) -> AsyncIterator[bytes]:
        batch = await self._service.batches.sample(request.run, request.table, **_lease_request(request))
        self._metrics.delivered(request.run, request.table, batch)
        tracing.current().count(groups=len(batch.groups))
        async for message in self._send(request.run, request.table, batch):
            yield message

    async def _send(self, run: str, table: str, batch: LeasedBatch) -> AsyncIterator[bytes]:
        payloads = self._service.batches.payloads(run, table, batch.groups)
        async for message in serialize_batch(batch, self._counted(payloads)):
            yield message

    async def _counted(self, groups: AsyncIterator[tuple[_Group, Payload]]) -> AsyncIterator[tuple[_Group, Payload]]:
        """Pass groups on that leave the service."""
        async for group, payload in groups:
            self._metrics.payload("out", len(payload))
            yield group, payload

    async def commit(self, request: pb.CommitRequest) -> pb.CommitResponse:
        config = await self._service.table_config(request.run, request.table)
        repeated = await self._service.batches.commit(
            request.run,
            request.table,
            lease_id=request.lease_id,
            step=request.step,
            feedback=[convert.feedback_from_proto(item) for item in request.feedback],
            durability=config.durability,
        )
        return pb.CommitResponse(already_committed=repeated, durability=convert.DURABILITIES[config.durability])

    async def release(self, request: pb.ReleaseRequest) -> pb.ReleaseResponse:
        returned = await self._service.batches.release(request.run, request.table, lease_id=request.lease_id)
        return pb.ReleaseResponse(returned=returned)

    async def extend_lease(self, request: pb.ExtendLeaseRequest) -> pb.ExtendLeaseResponse:
        deadline_ms = await self._service.batches.extend_lease(
            request.run, request.table, lease_id=request.lease_id, lease_s=request.lease_s
        )
        return pb.ExtendLeaseResponse(lease_deadline_ms=deadline_ms)

    async def request_admission(self, request: pb.RequestAdmissionRequest) -> pb.RequestAdmissionResponse:
        admission = await self._service.batches.request_admission(
            request.run,
            request.table,
            producer_id=request.producer_id,
            max_groups=request.max_groups,
            timeout_s=request.timeout_s,
            admission_s=request.admission_s or DEFAULT_ADMISSION_S,
        )
        return pb.RequestAdmissionResponse(
            groups=admission.groups, policy=convert_tables.policy_to_proto(admission.policy)
        )

    async def get_lineage(self, request: pb.GetLineageRequest) -> pb.GetLineageResponse:
        logged = await self._service.lineage(request.run, request.table, request.step)
        return pb.GetLineageResponse(
            step=logged.step,
            batch=batch_header(logged.batch),
            holder=logged.holder,
            seed=logged.seed,
            committed_at_ms=logged.committed_at_ms,
            groups=[
                pb.LineageGroup(group_id=group.group_id, delivery=delivery(group)) for group in logged.batch.groups
            ],
            undelivered_group_ids=logged.undelivered,
        )

    async def replay_step(self, request: pb.ReplayStepRequest) -> AsyncIterator[bytes]:
        batch = await self._service.step_to_replay(request.run, request.table, request.step)
        async for message in self._send(request.run, request.table, batch):
            yield message

    async def get_table_history(self, request: pb.GetTableHistoryRequest) -> pb.GetTableHistoryResponse:
        history = await self._service.histories.read(
            request.run,
            request.table,
            after_step=request.after_step if request.HasField("after_step") else -1,
            limit=request.limit or MAX_STEPS,
        )
        return convert_history.history_to_proto(history)

    async def beat(self, request: pb.BeatRequest) -> pb.BeatResponse:
        policy = await self._service.beat(
            request.run,
            request.table,
            producer_id=request.producer_id,
            interval_s=request.interval_s or DEFAULT_BEAT_S,
            status=request.status,
        )
        return pb.BeatResponse(policy=convert_tables.policy_to_proto(policy))

    async def diagnose(self, request: pb.DiagnoseRequest) -> pb.DiagnoseResponse:
        diagnosis = await self._service.diagnose(request.run, request.table, request.batch_size)
        return convert_diagnosis.diagnosis_to_proto(diagnosis)

    async def update_priorities(self, request: pb.UpdatePrioritiesRequest) -> pb.UpdatePrioritiesResponse:
        feedback = [convert.feedback_from_proto(item) for item in request.feedback]
        unknown = await self._service.update_priorities(request.run, request.table, feedback)
        return pb.UpdatePrioritiesResponse(unknown_group_ids=unknown)

    async def locate_groups(self, request: pb.LocateGroupsRequest) -> pb.LocateGroupsResponse:
        states = await self._service.locate_groups(request.run, request.table, _names(request.group_ids))
        return pb.LocateGroupsResponse(states=[convert.STATES[state] for state in states])

    async def get_groups(self, request: pb.GetGroupsRequest) -> AsyncIterator[bytes]:
        groups = await self._service.read_groups(request.run, request.table, _names(request.group_ids))
        payloads = self._service.batches.payloads(request.run, request.table, groups)
        if request.log_ratios:
            payloads = self._service.batches.with_log_ratios(request.run, request.table, payloads)
        async for message in serialize_read_groups(self._counted(payloads)):
            yield message

    async def list_groups(self, request: pb.ListGroupsRequest) -> pb.ListGroupsResponse:
        groups, next_cursor = await self._service.listing.page(
            request.run,
            request.table,
            states=[convert_listing.state_from_proto(state) for state in request.states],
            wanted=group_filter(request),
            limit=request.limit or DEFAULT_LISTED,
            cursor=request.cursor,
        )
        return pb.ListGroupsResponse(groups=map(listed_group, groups), next_cursor=next_cursor)

    async def get_server_info(self, _: pb.GetServerInfoRequest) -> pb.GetServerInfoResponse:
        return convert_listing.server_info_to_proto(await self._service.about.info())

    async def delete_groups(self, request: pb.DeleteGroupsRequest) -> pb.DeleteGroupsResponse:
        deleted = await self._service.delete_groups(request.run, request.table, _names(request.group_ids))
        return pb.DeleteGroupsResponse(deleted=deleted)

    async def create_table(self, request: pb.CreateTableRequest) -> pb.CreateTableResponse:
        config = convert_tables.config_from_proto(request.config)
        table, created = await self._service.create_table(request.run, request.table, config)
        return pb.CreateTableResponse(table=convert_tables.table_to_proto(table), created=created)

    async def describe_table(self, request: pb.DescribeTableRequest) -> pb.DescribeTableResponse:
        table = await self._service.describe_table(request.run, request.table)
        return pb.DescribeTableResponse(table=convert_tables.table_to_proto(table))

    async def list_tables(self, request: pb.ListTablesRequest) -> pb.ListTablesResponse:
        tables = await self._service.list_tables(request.run)
        return pb.ListTablesResponse(tables=[convert_tables.table_to_proto(table) for table in tables])

    async def update_table(self, request: pb.UpdateTableRequest) -> pb.UpdateTableResponse:
        config = convert_tables.config_from_proto(request.config)
        table = await self._service.update_table(request.run, request.table, config)
        return pb.UpdateTableResponse(table=convert_tables.table_to_proto(table))

    async def reset_table(self, request: pb.ResetTableRequest) -> pb.ResetTableResponse:
        return pb.ResetTableResponse(removed=await self._service.reset_table(request.run, request.table))

    async def rewind_policy(self, request: pb.RewindPolicyRequest) -> pb.RewindPolicyResponse:
        policy = await self._service.rewind_policy(
            convert_tables.policy_from_proto(request.policy), step=request.step, rewind_id=request.rewind_id
        )
        return pb.RewindPolicyResponse(policy=convert_tables.policy_to_proto(policy))

    async def resolve_policy(self, request: pb.ResolvePolicyRequest) -> pb.ResolvePolicyResponse:
        return pb.ResolvePolicyResponse(version=await self._service.resolve_policy(request.run, request.label))

    async def set_quota(self, request: pb.SetQuotaRequest) -> pb.SetQuotaResponse:
        quota = await self._service.set_quota(
            request.run,
            max_groups=request.max_groups if request.HasField("max_groups") else None,
            max_bytes=request.max_bytes if request.HasField("max_bytes") else None,
        )
        return pb.SetQuotaResponse(quota=convert_tables.quota_to_proto(quota))

    async def get_quota(self, request: pb.GetQuotaRequest) -> pb.GetQuotaResponse:
        return pb.GetQuotaResponse(quota=convert_tables.quota_to_proto(await self._service.get_quota(request.run)))

    async def advance_policy(self, request: pb.AdvancePolicyRequest) -> pb.AdvancePolicyResponse:
        policy = await self._service.advance_policy(convert_tables.policy_from_proto(request.policy))
        return pb.AdvancePolicyResponse(policy=convert_tables.policy_to_proto(policy))

    async def get_policy(self, request: pb.GetPolicyRequest) -> pb.GetPolicyResponse:
        policy = await self._service.get_policy(request.run)
        return pb.GetPolicyResponse(policy=convert_tables.policy_to_proto(policy))

    async def watch_policy(self, request: pb.WatchPolicyRequest) -> AsyncIterator[pb.WatchPolicyResponse]:
        async for policy in self._service.watch_policy(request.run, request.after_version):
            yield pb.WatchPolicyResponse(policy=convert_tables.policy_to_proto(policy))

    async def snapshot(self, request: pb.SnapshotRequest) -> AsyncIterator[bytes]:
        async with self._service.keeping.snapshot(request.run, request.table) as (kept, groups):
            async for message in serialize_snapshot(kept, self._counted(groups)):
                yield message

    async def restore(self, parts: AsyncIterator[pb.SnapshotPart]) -> pb.RestoreResponse:
        kept, header = await read_header(parts)
        if header.only_ask:
            await self._service.keeping.ask_restore(kept, header.restore_id)
            return pb.RestoreResponse()
        table = await self._service.keeping.restore(kept, header.restore_id, read_groups(parts, kept))
        self._metrics.payload("in", table.payload_bytes)
        return pb.RestoreResponse(table=convert_tables.table_to_proto(table))

    async def create_token(self, request: pb.CreateTokenRequest) -> pb.CreateTokenResponse:
        created = await self._service.tokens.create(token_from_proto(request.token), request.secret_sha256)
        return pb.CreateTokenResponse(token=token_to_proto(created))

    async def list_tokens(self, _: pb.ListTokensRequest) -> pb.ListTokensResponse:
        return pb.ListTokensResponse(tokens=map(token_to_proto, await self._service.tokens.list()))

    async def revoke_token(self, request: pb.RevokeTokenRequest) -> pb.RevokeTokenResponse:
        return pb.RevokeTokenResponse(token=token_to_proto(await self._service.tokens.revoke(request.name)))

    def method(self, rpc: str) -> Callable[..., Any]:
        """Return the method of an RPC by its name in the protocol."""
        method: Callable[..., Any] = getattr(self, "".join(f"_{c.lower()}" if c.isupper() else c for c in rpc)[1:])
        return method


def _lease_request(request: pb.NextBatchRequest | pb.SampleRequest) -> dict[str, Any]:
    return {
        "batch_size": request.batch_size,
        "lease_id": request.lease_id,
        "lease_s": request.lease_s or DEFAULT_LEASE_S,
        "timeout_s": request.timeout_s,
        "holder": request.holder,
    }


def _names(group_ids: Sequence[str]) -> Sequence[str]:
    for group_id in group_ids:
        check_name(group_id, "group_id")
    return group_ids


async def one_ahead(messages: AsyncIterator[MessageT]) -> AsyncGenerator[MessageT]:
    """Yield messages; while one is worked on, the next is received, read, and whatever else makes it."""
    coming = asyncio.ensure_future(anext(messages, None))
    try:
        while (message := await coming) is not None:
            coming = asyncio.ensure_future(anext(messages, None))
            yield message
    finally:
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)


def check_at_once(count: int, what: str, rpc: str) -> None:
    """Raise InvalidRequestError when one call has more groups or pieces than it takes."""
    if count > MAX_INSERT_GROUPS:
        raise InvalidRequestError(f"{count} {what} in one {rpc}, at most {MAX_INSERT_GROUPS}")


def typed_error(rpc: str, error: Exception) -> GroupReplayError:
    """Return what a caller is told of a failure; a fault of ours goes to the log, and its words stay there."""
    if isinstance(error, GroupReplayError):
        return error
    if isinstance(error, TimeoutError):
        return StoreUnavailableError(f"{rpc} did not end within the caller's deadline; Redis is slow or away")
    _log.error("%s failed", rpc, exc_info=error)
    return InternalError(
        f"{rpc} failed with {type(error).__name__}; the service's log has the details, under request id "
        f"{current_request_id()}"
    )
