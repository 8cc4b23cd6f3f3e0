"""The gRPC front door: groupreplay.v1.ReplayService, health and reflection."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from groupreplay import convert, convert_diagnosis, convert_listing, convert_pieces, convert_tables
from groupreplay.errors import GroupReplayError, InternalError, InvalidRequestError, StoreUnavailableError
from groupreplay.group_messages import InsertMessage, read_insert_request, read_insert_stream_request
from groupreplay.groups import check_name
from groupreplay.parts import AssembledGroup, PartAssembler
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
from groupreplay_server.listing import DEFAULT_LISTED
from groupreplay_server.pieces import ArrivedPiece, PieceAssembler
from groupreplay_server.service import ReplayService
from groupreplay_server.store.records import LeasedBatch

_log = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["ReplayService"]
REASON_METADATA = "groupreplay-reason"
MAX_INSERT_GROUPS = 1024
DEFAULT_BEAT_S = 10.0
_REPLY_MARGIN_S = 0.1
"""An answer that says why is sent this long before the caller's deadline, or it would never be read."""

_READ_BY_HAND = {"Insert": read_insert_request, "InsertStream": read_insert_stream_request}

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]


class GrpcApi:
    """One method per RPC: message in, message out. Blocking and errors are the guard's business."""

    def __init__(self, service: ReplayService, metrics: Metrics) -> None:
        self._service = service
        self._metrics = metrics

    async def insert(self, request: InsertMessage) -> pb.InsertResponse:
        if len(request.groups) > MAX_INSERT_GROUPS:
            raise InvalidRequestError(f"{len(request.groups)} groups in one Insert, at most {MAX_INSERT_GROUPS}")
        return await self._insert(request.run, request.table, request.groups)

    async def insert_stream(self, requests: AsyncIterator[InsertMessage]) -> AsyncIterator[pb.InsertResponse]:
        run = table = ""
        assembler: PartAssembler | None = None
        async for request in requests:
            if assembler is None:
                run, table = request.run, request.table
                assembler = PartAssembler((await self._service.table_config(run, table)).max_group_bytes)
            added = [assembler.add(part) for part in request.parts]
            if groups := [group for group in added if group is not None]:
                yield await self._insert(run, table, groups)
        if assembler is not None:
            assembler.check_complete()

    async def _insert(self, run: str, table: str, groups: Sequence[AssembledGroup]) -> pb.InsertResponse:
        self._metrics.payload("in", sum(len(group.payload or b"") for group in groups))
        results, durability = await self._service.insert(run, table, groups)
        return pb.InsertResponse(
            results=[convert.insert_result_to_proto(result) for result in results],
            durability=convert.DURABILITIES[durability],
        )

    async def push_rollouts(self, request: pb.PushRolloutsRequest) -> pb.PushRolloutsResponse:
        if len(request.pieces) > MAX_INSERT_GROUPS:
            raise InvalidRequestError(f"{len(request.pieces)} pieces in one PushRollouts, at most {MAX_INSERT_GROUPS}")
        pieces = [
            ArrivedPiece(piece, AssembledGroup(piece.rollouts.header, piece.rollouts.payload or None))
            for piece in request.pieces
        ]
        return await self._push_rollouts(request.run, request.table, pieces)

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
                yield await self._push_rollouts(run, table, pieces)
        if assembler is not None:
            assembler.check_complete()

    async def _push_rollouts(self, run: str, table: str, pieces: list[ArrivedPiece]) -> pb.PushRolloutsResponse:
        self._metrics.payload("in", sum(len(piece.rollouts.payload or b"") for piece in pieces))
        results, durability = await self._service.partial_groups.push(run, table, pieces)
        return pb.PushRolloutsResponse(
            results=[convert_pieces.push_result_to_proto(result) for result in results],
            durability=convert.DURABILITIES[durability],
        )

    async def next_batch(self, request: pb.NextBatchRequest) -> AsyncIterator[bytes]:
        batch = await self._service.batches.next_batch(request.run, request.table, **_lease_request(request))
        messages = serialize_outline(batch) if request.headers_only else self._send(request.run, request.table, batch)
        async for message in messages:
            yield message

    async def read_lease(self, request: pb.ReadLeaseRequest) -> AsyncIterator[bytes]:
        groups = await self._service.batches.read_lease(
            request.run, request.table, lease_id=request.lease_id, group_ids=_names(request.group_ids)
        )
        payloads = self._service.batches.payloads(request.run, request.table, groups)
        async for message in serialize_leased_groups(payloads):
            self._metrics.payload("out", len(message))
            yield message

    async def sample(self, request: pb.SampleRequest) -> AsyncIterator[bytes]:
        batch = await self._service.batches.sample(request.run, request.table, **_lease_request(request))
        async for message in self._send(request.run, request.table, batch):
            yield message

    async def _send(self, run: str, table: str, batch: LeasedBatch) -> AsyncIterator[bytes]:
        payloads = self._service.batches.payloads(run, table, batch.groups)
        async for message in serialize_batch(batch, payloads):
            self._metrics.payload("out", len(message))
            yield message

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
        async for message in serialize_read_groups(payloads):
            self._metrics.payload("out", len(message))
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
            async for message in serialize_snapshot(kept, groups):
                self._metrics.payload("out", len(message))
                yield message

    async def restore(self, parts: AsyncIterator[pb.SnapshotPart]) -> pb.RestoreResponse:
        kept, header = await read_header(parts)
        if header.only_ask:
            await self._service.keeping.ask_restore(kept, header.restore_id)
            return pb.RestoreResponse()
        table = await self._service.keeping.restore(kept, header.restore_id, read_groups(parts, kept))
        self._metrics.payload("in", table.payload_bytes)
        return pb.RestoreResponse(table=convert_tables.table_to_proto(table))

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return the handlers of every method in the service's descriptor."""
        snake = {
            method.name: "".join(f"_{c.lower()}" if c.isupper() else c for c in method.name)[1:]
            for method in SERVICE.methods
        }
        return grpc.method_handlers_generic_handler(
            SERVICE.full_name,
            {method.name: self._handler(method, getattr(self, snake[method.name])) for method in SERVICE.methods},
        )

    def _handler(self, method: Any, call: Callable[..., Any]) -> "grpc.RpcMethodHandler[Any, Any]":
        read = _READ_BY_HAND.get(method.name) or getattr(pb, method.input_type.name).FromString
        if not method.server_streaming:
            unary = (
                grpc.stream_unary_rpc_method_handler if method.client_streaming else grpc.unary_unary_rpc_method_handler
            )
            return unary(self._guard_unary(method.name, call), read, _serialize)
        guarded = self._guard_stream(method.name, call)
        make = (
            grpc.stream_stream_rpc_method_handler if method.client_streaming else grpc.unary_stream_rpc_method_handler
        )
        return make(guarded, read, _serialize)

    def _guard_unary(
        self, name: str, call: Callable[[Any], Awaitable[Message]]
    ) -> Callable[[Any, "Context"], Awaitable[Message]]:
        async def guarded(request: Any, context: "Context") -> Message:
            try:
                with self._metrics.call(name):
                    async with asyncio.timeout(_time_left(context)):
                        return await call(request)
            except Exception as error:
                await _abort(context, name, error)
                raise AssertionError("abort always raises") from error

        return guarded

    def _guard_stream(
        self, name: str, call: Callable[[Any], AsyncGenerator[Any]]
    ) -> Callable[[Any, "Context"], AsyncIterator[Any]]:
        async def guarded(request: Any, context: "Context") -> AsyncIterator[Any]:
            try:
                with self._metrics.call(name):
                    async with aclosing(call(request)) as messages:
                        async for message in messages:
                            yield message
            except Exception as error:  # noqa: BLE001  the boundary: every fault becomes an answer
                await _abort(context, name, error)

        return guarded


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


def _serialize(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


def _time_left(context: "Context") -> float | None:
    left_s = context.time_remaining()
    return None if left_s is None else max(left_s - _REPLY_MARGIN_S, 0)


async def _abort(context: "Context", name: str, error: Exception) -> None:
    if isinstance(error, TimeoutError) and not isinstance(error, GroupReplayError):
        error = StoreUnavailableError(f"{name} did not end within the caller's deadline; Redis is slow or away")
    if not isinstance(error, GroupReplayError):
        _log.exception("%s failed", name, exc_info=error)
        error = InternalError(f"{name} failed with {type(error).__name__}; the service's log has the details")
    await context.abort(error.grpc_code, str(error), ((REASON_METADATA, error.reason),))


class GrpcServer:
    """The listening server. Health is per process: SERVING from start to drain."""

    def __init__(self, api: GrpcApi) -> None:
        self._server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
            ]
        )
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self._server.add_generic_rpc_handlers((api.handlers(),))

    def bind(self, address: str) -> int:
        """Listen on host:port (0 = any free port) or unix:path; return the port."""
        try:
            return self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(
                f"gRPC cannot listen on {address}: another process has the port, or the address is not ours; "
                "stop it or pass --grpc-listen"
            ) from error

    async def start(self) -> None:
        """Serve, and say so to health checks."""
        await self._server.start()
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)

    async def refuse(self) -> None:
        """Tell health checks to send no more calls."""
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)

    async def stop(self, grace_s: float) -> None:
        """Take no new calls; let running ones end within grace_s."""
        await self._server.stop(grace_s)

    async def _set_health(self, status: int) -> None:
        for name in ("", SERVICE.full_name):
            await self._health.set(name, status)
