"""AsyncClient: the service's operations as coroutines. `make sync-client` generates client.py from this file."""

import asyncio
import os
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import grpc.aio

from groupreplay import convert, convert_diagnosis, convert_history, convert_listing, convert_pieces, convert_tables
from groupreplay.background import BackgroundTask
from groupreplay.connection import Login, open_async_channel
from groupreplay.errors import GroupReplayError, InternalError, QuotaExceededError
from groupreplay.group_messages import Window, insert_request, insert_stream_requests
from groupreplay.groups import RolloutGroup
from groupreplay.history import TableHistory
from groupreplay.parts import MESSAGE_BYTES, AssembledGroup, PartAssembler, pack_parts, split_group
from groupreplay.retry import Attempts, error_from_rpc
from groupreplay.server_info import ServerInfo
from groupreplay.snapshot_file import Progress, SnapshotFile, SnapshotWriter
from groupreplay.table_config import TableConfig
from groupreplay.tokens import NewToken, Token, token_from_proto, token_to_proto
from groupreplay.types import (
    Admission,
    Batch,
    BatchOutline,
    DeliveredGroup,
    Diagnosis,
    GroupFeedback,
    GroupOutline,
    GroupPage,
    GroupState,
    InsertOutcome,
    InsertResult,
    Lineage,
    Policy,
    PushOutcome,
    PushResult,
    Quota,
    RolloutPiece,
    StoredGroup,
    Table,
)
from groupreplay.v1 import group_pb2
from groupreplay.v1 import replay_service_pb2 as pb

DEFAULT_TIMEOUT_S = 30.0
TRANSFER_TIMEOUT_S = 3600.0
"""For a whole table."""
WINDOW_BYTES = 16 * 2**20
"""Payload bytes that insert_many sends before it waits for their results; as many more are encoded meanwhile."""
WINDOW_GROUPS = 256
_TURN_BYTES = 2**20
"""Encoded at a time, before what is under way has its turn."""
MAX_PIECES = 1024
"""Pieces of partial groups in one message."""

_Taken = TypeVar("_Taken", Batch, BatchOutline)
_Read = TypeVar("_Read", DeliveredGroup, GroupOutline)


class AsyncClient:
    """A connection to a groupreplay service.

    Every call is made again, with backoff, after an error that may pass (the service restarts, Redis is away, the
    table is full), until its timeout; repeating is safe, since the service applies each call once. All calls raise
    GroupReplayError, one class per reason.

        async with AsyncClient("127.0.0.1:50051") as client:
            await client.insert(group, run="demo", table="train")
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        token: str = "",
        tls: bool = False,
        ca_file: str | os.PathLike[str] | None = None,
        cert_file: str | os.PathLike[str] | None = None,
        key_file: str | os.PathLike[str] | None = None,
    ) -> None:
        """Prepare a connection to a service; files are read when it opens.

        Args:
            address: host:port or unix:path; dns:///host:port where the name stands for several servers, or
                ipv4:host:port,host:port: calls go to each of them in turn.
            timeout_s: holds for each call that does not pass its own.
            token: shown with every call, grt.NAME.SECRET. Without TLS whoever sees the traffic can take it.
            tls: connect by TLS and trust the certificates that come with grpc.
            ca_file: connect by TLS and trust these certificates (PEM).
            cert_file, key_file: our own certificate and its key (PEM), where the service asks for one.

        Raises:
            InvalidRequestError: a cert_file without a key_file, or a token that cannot travel in a header.
        """
        self._address = address
        self._timeout_s = timeout_s
        self._login = Login(token=token, tls=tls, ca_file=ca_file, cert_file=cert_file, key_file=key_file)
        self._channel: grpc.aio.Channel | None = None

    async def __aenter__(self) -> Self:
        self._channel = open_async_channel(self._address, self._login)
        self._stub = self._login.stub(self._channel)
        self._groups = self._login.group_stub(self._channel)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._channel is not None:
            await self._channel.close()

    # Groups

    async def insert(
        self, group: RolloutGroup, *, run: str, table: str, timeout_s: float | None = None
    ) -> InsertOutcome:
        """Store one group as fresh; return whether it was inserted or there before.

        Raises:
            GroupReplayError: it was refused; TableFullError after trying until the timeout.
        """
        result = (await self._insert_window([convert.group_to_wire(group)], run, table, timeout_s))[0]
        if result.error is not None:
            raise result.error
        return result.outcome

    async def insert_many(
        self, groups: AsyncIterable[RolloutGroup], *, run: str, table: str, timeout_s: float | None = None
    ) -> AsyncIterator[InsertResult]:
        """Store groups as fresh, in order; yield a result for each. A refused group does not hold up the others.

        Groups travel in windows of some megabytes; timeout_s holds for each window. While one is stored, the groups of
        the next are asked for: what `groups` raises comes out when the results of the window before have.
        """
        windows = _windows(groups)
        under_way: BackgroundTask[list[InsertResult]] | None = None
        try:
            while True:
                window, failure = None, None
                try:
                    window = await anext(windows, None)
                except Exception as error:  # noqa: BLE001 - raised below
                    failure = error
                if under_way is not None:
                    for result in await under_way.result():
                        yield result
                if failure is not None:
                    raise failure
                if window is None:
                    return
                under_way = BackgroundTask(self._insert_window, window, run, table, timeout_s)
        finally:
            if under_way is not None:
                await under_way.end()

    async def get_groups(
        self, group_ids: Sequence[str], *, run: str, table: str, log_ratios: bool = False
    ) -> list[StoredGroup]:
        """Read groups without taking them; those that the table does not hold (any more) are left out.

        A group whose payload the table does not keep has no tokens to show, and is left out too.

        log_ratios: return those that a trainer fed back, too.
        """
        request = pb.GetGroupsRequest(run=run, table=table, group_ids=group_ids, log_ratios=log_ratios)
        attempts = Attempts(self._timeout_s)
        while True:
            try:
                return await self._read_groups(request, attempts.left_s())
            except grpc.RpcError as failure:
                pause_s = attempts.pause_after(error_from_rpc(failure, self._address))
            await asyncio.sleep(pause_s)

    async def list_groups(
        self,
        *,
        run: str,
        table: str,
        states: Sequence[GroupState] = (),
        task: str | None = None,
        prompt_id: str = "",
        effective: bool | None = None,
        policy_version_from: int | None = None,
        policy_version_to: int | None = None,
        limit: int = 100,
        cursor: str = "",
    ) -> GroupPage:
        """Return a page of groups without their payloads, and without taking them.

        Fresh groups come first, latest arrival first; then leased ones, in no order; then replay, newest policy version
        first. A page may hold few groups, or none, and not be the last: go on with its next_cursor until that is empty.

        Args:
            states: fresh, leased, replay; none = all three.
            task, prompt_id, effective: only such groups; a task "" is that of groups that name none.
            policy_version_from, policy_version_to: range of the groups' oldest policy version, which staleness goes by.
            limit: groups in the page, 1 to 1000.
            cursor: next_cursor of the page before, with all else as it was then.
        """
        request = pb.ListGroupsRequest(
            run=run,
            table=table,
            states=[convert.STATES[state] for state in states],
            task=task,
            prompt_id=prompt_id,
            effective=effective,
            policy_version_from=policy_version_from,
            policy_version_to=policy_version_to,
            limit=limit,
            cursor=cursor,
        )
        return convert_listing.page_from_proto(await self._unary(self._stub.ListGroups, request))

    async def delete_groups(self, group_ids: Sequence[str], *, run: str, table: str) -> int:
        """Remove groups; return how many left. Those in a lease as fresh stay, since somebody trains on them."""
        request = pb.DeleteGroupsRequest(run=run, table=table, group_ids=group_ids)
        response: pb.DeleteGroupsResponse = await self._unary(self._stub.DeleteGroups, request)
        return response.deleted

    async def update_priorities(self, feedback: Sequence[GroupFeedback], *, run: str, table: str) -> list[str]:
        """Tell the table what was found out about groups; return the ids that it does not hold (any more).

        Raises:
            InvalidRequestError: as at commit, for log ratios.
        """
        request = pb.UpdatePrioritiesRequest(run=run, table=table, feedback=map(convert.feedback_to_proto, feedback))
        response: pb.UpdatePrioritiesResponse = await self._unary(self._stub.UpdatePriorities, request)
        return list(response.unknown_group_ids)

    async def locate_groups(self, group_ids: Sequence[str], *, run: str, table: str) -> list[GroupState]:
        """Say where each group is: fresh, leased, replay, gone, or unknown."""
        request = pb.LocateGroupsRequest(run=run, table=table, group_ids=group_ids)
        response: pb.LocateGroupsResponse = await self._unary(self._stub.LocateGroups, request)
        return convert.states_from_proto(response.states)

    # Partial groups

    async def push_rollout(
        self,
        group: RolloutGroup,
        *,
        run: str,
        table: str,
        group_size: int,
        piece_id: str,
        min_rollouts: int | None = None,
        close_after_s: float = 600.0,
        timeout_s: float | None = None,
    ) -> PushResult:
        """Store one piece of a group, with one or more of its rollouts; the service puts the group together.

        The group is inserted when group_size rollouts have come, in the order of their arrival; or close_after_s after
        its first piece with what is there, if that is min_rollouts (None = group_size) at least: otherwise it is
        dropped. Pushing a piece_id again changes nothing.

        Raises:
            InvalidGroupError: the piece disagrees with those before on prompt, task, group_size or columns.
            GroupClosedError: the group closed without this piece, or was dropped.
            GroupReplayError: the piece, or the group that it completed, was refused for another reason.
        """
        piece = RolloutPiece(
            group=group,
            piece_id=piece_id,
            group_size=group_size,
            min_rollouts=min_rollouts,
            close_after_s=close_after_s,
        )
        [result] = await self.push_rollouts([piece], run=run, table=table, timeout_s=timeout_s)
        if result.error is not None:
            raise result.error
        if result.outcome is PushOutcome.CLOSED and result.insert is not None and result.insert.error is not None:
            raise result.insert.error
        return result

    async def push_rollouts(
        self, pieces: Sequence[RolloutPiece], *, run: str, table: str, timeout_s: float | None = None
    ) -> list[PushResult]:
        """Store pieces of groups, in order; return a result for each. A refused piece does not hold up the others."""
        attempts = Attempts(timeout_s or self._timeout_s)
        wire = [convert_pieces.piece_to_wire(piece) for piece in pieces]
        results: dict[int, PushResult] = {}
        pending = list(range(len(wire)))
        while True:
            try:
                responses = await self._push([wire[index] for index in pending], run, table, attempts.left_s())
            except grpc.RpcError as failure:
                error = error_from_rpc(failure, self._address)
                late = attempts.pause_unless_late(error)
                if late is None and len(results) < len(wire):
                    raise error from failure
            else:
                read = [convert_pieces.push_result_from_proto(*response) for response in responses]
                results |= dict(zip(pending, read, strict=True))
                pending = [index for index in pending if passing_error(results[index])]
                passing = next((passing_error(results[index]) for index in pending), None)
                late = attempts.pause_unless_late(passing) if passing is not None else None
            if late is None:
                return [results[index] for index in range(len(wire))]
            await asyncio.sleep(late)

    # Batches and leases

    async def next_batch(
        self,
        *,
        run: str,
        table: str,
        batch_size: int,
        lease_id: str | None = None,
        lease_s: float = 600.0,
        timeout_s: float = 60.0,
        holder: str = "",
    ) -> Batch:
        """Wait up to timeout_s for a complete batch and lease it for lease_s.

        The groups go back unless the lease is committed or extended in time. A lease_id of your own makes this safe
        to repeat after a crash: while the lease lives, the same id returns the same batch.

        Raises:
            BatchNotReadyError: no complete batch within timeout_s; the message says what is missing.
            StepConflictError: the lease was committed before.
        """
        request = pb.NextBatchRequest(
            run=run,
            table=table,
            batch_size=batch_size,
            lease_id=lease_id or uuid.uuid4().hex,
            lease_s=lease_s,
            timeout_s=timeout_s,
            holder=holder,
        )
        return await self._take(lambda left_s: self._read_batch(self._groups.next_batch, request, left_s), request)

    async def lease_batch(
        self,
        *,
        run: str,
        table: str,
        batch_size: int,
        lease_id: str | None = None,
        lease_s: float = 600.0,
        timeout_s: float = 60.0,
        holder: str = "",
    ) -> BatchOutline:
        """Do what next_batch does, and return the batch without its payloads: read_lease has those.

        For trainers of several ranks: one leases the batch, and each reads its share of the groups.

        Raises:
            BatchNotReadyError, StepConflictError: as next_batch.
        """
        request = pb.NextBatchRequest(
            run=run,
            table=table,
            batch_size=batch_size,
            lease_id=lease_id or uuid.uuid4().hex,
            lease_s=lease_s,
            timeout_s=timeout_s,
            holder=holder,
            headers_only=True,
        )
        return await self._take(lambda left_s: self._read_outline(request, left_s), request)

    async def read_lease(
        self, group_ids: Sequence[str], *, run: str, table: str, lease_id: str, timeout_s: float | None = None
    ) -> list[DeliveredGroup]:
        """Read groups of a live lease, with their payloads, in the order asked; whoever knows its id may.

        At most 10000 in one call.

        Raises:
            InvalidRequestError: a group is not in the lease.
            LeaseExpiredError: the lease ended before.
            StepConflictError: the lease was committed before.
        """
        if not group_ids:
            return []
        request = pb.ReadLeaseRequest(run=run, table=table, lease_id=lease_id, group_ids=group_ids)
        attempts = Attempts(timeout_s or self._timeout_s)
        while True:
            try:
                _, groups = await self._read_parts(self._groups.read_lease, request, attempts.left_s(), _delivered)
            except grpc.RpcError as failure:
                pause_s = attempts.pause_after(error_from_rpc(failure, self._address))
            else:
                return groups
            await asyncio.sleep(pause_s)

    async def sample(
        self,
        *,
        run: str,
        table: str,
        batch_size: int,
        lease_id: str | None = None,
        lease_s: float = 600.0,
        timeout_s: float = 60.0,
        holder: str = "",
    ) -> Batch:
        """Draw up to batch_size replay groups by the table's sampler, and lease them for lease_s.

        For tables of Fill.SAMPLE (groups join replay as they come) and Fill.REPLAY. Waits up to timeout_s while the
        table has too few groups or its rate limit holds samples back. As with next_batch, commit or release the lease.

        Raises:
            BatchNotReadyError: no draw within timeout_s; the message says what is missing.
            StepConflictError: the lease was committed before.
        """
        request = pb.SampleRequest(
            run=run,
            table=table,
            batch_size=batch_size,
            lease_id=lease_id or uuid.uuid4().hex,
            lease_s=lease_s,
            timeout_s=timeout_s,
            holder=holder,
        )
        return await self._take(lambda left_s: self._read_batch(self._groups.sample, request, left_s), request)

    async def commit(
        self, *, run: str, table: str, lease_id: str, step: int, feedback: Sequence[GroupFeedback] = ()
    ) -> bool:
        """End a lease after training; return True if this very commit was made before.

        feedback: what the step found out about groups; tables that weigh by priority, KL or ESS draw by it.

        Raises:
            InvalidRequestError: the log ratios of a group are not as many as its response tokens, or all those of the
                call are more than it takes; nothing is committed.
            LeaseExpiredError: the lease ended before, and its groups went to somebody else.
            StepConflictError: the step, or the lease, was committed before with another partner.
        """
        request = pb.CommitRequest(
            run=run, table=table, lease_id=lease_id, step=step, feedback=map(convert.feedback_to_proto, feedback)
        )
        response: pb.CommitResponse = await self._unary(self._stub.Commit, request)
        return response.already_committed

    async def release(self, *, run: str, table: str, lease_id: str) -> int:
        """End a lease without training; return how many fresh groups went back to their place."""
        request = pb.ReleaseRequest(run=run, table=table, lease_id=lease_id)
        response: pb.ReleaseResponse = await self._unary(self._stub.Release, request)
        return response.returned

    async def extend_lease(self, *, run: str, table: str, lease_id: str, lease_s: float) -> int:
        """Move a lease's deadline to lease_s from now; return it in Unix milliseconds.

        Raises:
            LeaseExpiredError: the lease ended before.
        """
        request = pb.ExtendLeaseRequest(run=run, table=table, lease_id=lease_id, lease_s=lease_s)
        response: pb.ExtendLeaseResponse = await self._unary(self._stub.ExtendLease, request)
        return response.lease_deadline_ms

    async def request_admission(
        self,
        *,
        run: str,
        table: str,
        producer_id: str,
        max_groups: int,
        timeout_s: float = 60.0,
        admission_s: float = 120.0,
    ) -> Admission:
        """Wait until the table wants groups; return how many to generate (0 after timeout_s), and with which policy.

        An admission counts until its groups are inserted, admission_s have passed, or this producer asks again.
        """
        request = pb.RequestAdmissionRequest(
            run=run,
            table=table,
            producer_id=producer_id,
            max_groups=max_groups,
            timeout_s=timeout_s,
            admission_s=admission_s,
        )
        response: pb.RequestAdmissionResponse = await self._unary(
            self._stub.RequestAdmission, request, timeout_s + self._timeout_s
        )
        return Admission(groups=response.groups, policy=convert_tables.policy_from_proto(response.policy))

    # Tables

    async def create_table(self, *, run: str, table: str, config: TableConfig | None = None) -> Table:
        """Make a table, and its run where it is the first; the same call again changes nothing.

        Raises:
            TableExistsError: it exists with another configuration.
        """
        message = convert_tables.config_to_proto(config or TableConfig())
        request = pb.CreateTableRequest(run=run, table=table, config=message)
        response: pb.CreateTableResponse = await self._unary(self._stub.CreateTable, request)
        return convert_tables.table_from_proto(response.table)

    async def update_table(self, *, run: str, table: str, config: TableConfig) -> Table:
        """Change the limits of a table while it runs, to those of config; return the table.

        Raises:
            InvalidRequestError: the change concerns what decides over order or weight (fill, sampler, remover,
                priority, alpha, decays, min_reward_std), which cannot change while a table lives.
        """
        request = pb.UpdateTableRequest(run=run, table=table, config=convert_tables.config_to_proto(config))
        response: pb.UpdateTableResponse = await self._unary(self._stub.UpdateTable, request)
        return convert_tables.table_from_proto(response.table)

    async def reset_table(self, *, run: str, table: str) -> int:
        """Remove every group of a table, leased ones included; return how many."""
        response: pb.ResetTableResponse = await self._unary(
            self._stub.ResetTable, pb.ResetTableRequest(run=run, table=table)
        )
        return response.removed

    async def describe_table(self, *, run: str, table: str) -> Table:
        """Return a table's configuration, sizes and counts at one moment."""
        request = pb.DescribeTableRequest(run=run, table=table)
        response: pb.DescribeTableResponse = await self._unary(self._stub.DescribeTable, request)
        return convert_tables.table_from_proto(response.table)

    async def list_tables(self, *, run: str = "") -> list[Table]:
        """Return all tables, or those of one run."""
        response: pb.ListTablesResponse = await self._unary(self._stub.ListTables, pb.ListTablesRequest(run=run))
        return [convert_tables.table_from_proto(table) for table in response.tables]

    # The policy clock

    async def advance_policy(self, policy: Policy) -> Policy:
        """Publish a policy version; the same call again changes nothing. Only the trainer does this.

        Raises:
            PolicyVersionConflictError: the clock stands at or beyond the version, with other weights.
        """
        request = pb.AdvancePolicyRequest(policy=convert_tables.policy_to_proto(policy))
        response: pb.AdvancePolicyResponse = await self._unary(self._stub.AdvancePolicy, request)
        return convert_tables.policy_from_proto(response.policy)

    async def rewind_policy(self, policy: Policy, *, step: int, rewind_id: str | None = None) -> Policy:
        """Move the clock back to policy, for a trainer that restarts from the checkpoint of `step`.

        Groups of the versions that are undone leave every table of the run, live leases end, and the steps after
        `step` may be committed anew. A rewind_id of your own makes this safe to repeat after a crash.

        Raises:
            PolicyVersionConflictError: the clock stands below the version.
        """
        request = pb.RewindPolicyRequest(
            policy=convert_tables.policy_to_proto(policy), step=step, rewind_id=rewind_id or uuid.uuid4().hex
        )
        response: pb.RewindPolicyResponse = await self._unary(self._stub.RewindPolicy, request)
        return convert_tables.policy_from_proto(response.policy)

    async def resolve_policy(self, *, run: str, label: str) -> int:
        """Return the policy version that inference engines call `label`.

        Raises:
            FuturePolicyVersionError: no version is called so.
        """
        request = pb.ResolvePolicyRequest(run=run, label=label)
        response: pb.ResolvePolicyResponse = await self._unary(self._stub.ResolvePolicy, request)
        return response.version

    async def get_policy(self, *, run: str) -> Policy:
        """Return the current policy version of a run."""
        response: pb.GetPolicyResponse = await self._unary(self._stub.GetPolicy, pb.GetPolicyRequest(run=run))
        return convert_tables.policy_from_proto(response.policy)

    async def watch_policy(self, *, run: str, after_version: int = -1) -> AsyncIterator[Policy]:
        """Yield the current policy if it is above after_version, then each newer one, for ever.

        It outlives restarts of the service; versions published in quick succession may be skipped.
        """
        attempts = Attempts(None)
        newest: Policy | None = None
        while True:
            call = self._stub.WatchPolicy(pb.WatchPolicyRequest(run=run, after_version=after_version))
            try:
                async for response in call:
                    attempts.succeeded()
                    policy = convert_tables.policy_from_proto(response.policy)
                    # After a break the newest is asked for again: the clock may have gone back meanwhile.
                    after_version = -1
                    if policy != newest:
                        newest = policy
                        yield policy
                failure_s = 0.0
            except grpc.RpcError as failure:
                failure_s = attempts.pause_after(error_from_rpc(failure, self._address))
            finally:
                call.cancel()
            await asyncio.sleep(failure_s)

    # What a table can tell

    async def beat(
        self, *, run: str, table: str, producer_id: str, interval_s: float = 10.0, status: str = ""
    ) -> Policy:
        """Say that a producer is there and what it does; return the run's policy.

        After three times interval_s without a beat (or an insert) the producer counts as dead.
        """
        request = pb.BeatRequest(
            run=run, table=table, producer_id=producer_id, interval_s=interval_s, status=status[:256]
        )
        response: pb.BeatResponse = await self._unary(self._stub.Beat, request)
        return convert_tables.policy_from_proto(response.policy)

    async def diagnose(self, *, run: str, table: str, batch_size: int) -> Diagnosis:
        """Say why a batch of batch_size is, or is not, ready: in words, most important first."""
        request = pb.DiagnoseRequest(run=run, table=table, batch_size=batch_size)
        return convert_diagnosis.diagnosis_from_proto(await self._unary(self._stub.Diagnose, request))

    async def get_lineage(self, *, run: str, table: str, step: int) -> Lineage:
        """Say which groups a committed training step was given, and how they were drawn.

        Raises:
            UnknownStepError: the step was not committed here, or is older than the table's lineage_steps.
        """
        request = pb.GetLineageRequest(run=run, table=table, step=step)
        return convert_diagnosis.lineage_from_proto(await self._unary(self._stub.GetLineage, request))

    async def replay_step(self, *, run: str, table: str, step: int) -> Batch:
        """Return the batch of a committed training step again, as it was delivered; its lease has ended.

        Raises:
            UnknownStepError: the step was not committed here, or is older than the table's lineage_steps.
            PayloadLostError: groups of it are gone; lineage_payload_steps keeps those of the newest steps.
        """
        request = pb.ReplayStepRequest(run=run, table=table, step=step)
        attempts = Attempts(self._timeout_s)
        while True:
            try:
                return await self._read_batch(self._groups.replay_step, request, attempts.left_s())
            except grpc.RpcError as failure:
                pause_s = attempts.pause_after(error_from_rpc(failure, self._address))
            await asyncio.sleep(pause_s)

    async def table_history(
        self, *, run: str, table: str, after_step: int | None = None, limit: int = 1000
    ) -> TableHistory:
        """Say what the newest training steps were given, and how old and how important the groups are that wait.

        The answer is a second old at most, and costs the service little however many ask.

        Args:
            after_step: only steps beyond this one; None = all that are remembered.
            limit: the newest so many, 1 to 1000.
        """
        request = pb.GetTableHistoryRequest(run=run, table=table, after_step=after_step, limit=limit)
        return convert_history.history_from_proto(await self._unary(self._stub.GetTableHistory, request))

    async def server_info(self) -> ServerInfo:
        """Say what the service runs on: its version and clock, and of its Redis what an operator may want to change."""
        return convert_listing.server_info_from_proto(
            await self._unary(self._stub.GetServerInfo, pb.GetServerInfoRequest())
        )

    # Quotas

    async def set_quota(self, *, run: str, max_groups: int | None = None, max_bytes: int | None = None) -> Quota:
        """Limit what all tables of a run hold together; None = unlimited. What they hold already stays."""
        request = pb.SetQuotaRequest(run=run, max_groups=max_groups, max_bytes=max_bytes)
        response: pb.SetQuotaResponse = await self._unary(self._stub.SetQuota, request)
        return convert_tables.quota_from_proto(response.quota)

    async def get_quota(self, *, run: str) -> Quota:
        """Return a run's quota, and what its tables hold."""
        response: pb.GetQuotaResponse = await self._unary(self._stub.GetQuota, pb.GetQuotaRequest(run=run))
        return convert_tables.quota_from_proto(response.quota)

    # Keeping

    async def snapshot(
        self,
        *,
        run: str,
        table: str,
        path: str | os.PathLike[str],
        timeout_s: float = TRANSFER_TIMEOUT_S,
        progress: Progress | None = None,
    ) -> Table:
        """Write a table, as it is at one moment, to a file; return its state at that moment.

        The table stays in use. The file appears when it is whole, and replaces what was there; a call that broke is
        made again, at a new moment. progress is told how many payload bytes of how many have come.

        Raises:
            OSError: the file cannot be written.
        """
        await self.describe_table(
            run=run, table=table
        )  # or a wrong address would take all of timeout_s to be found out
        request = pb.SnapshotRequest(run=run, table=table)
        attempts = Attempts(timeout_s)
        while True:
            try:
                with SnapshotWriter(path, progress) as writer:
                    async for part in self._stub.Snapshot(request, timeout=attempts.left_s()):
                        writer.add(part)
                    return writer.table()
            except grpc.RpcError as failure:
                pause_s = attempts.pause_after(error_from_rpc(failure, self._address))
            await asyncio.sleep(pause_s)

    async def restore(
        self,
        path: str | os.PathLike[str],
        *,
        run: str | None = None,
        table: str | None = None,
        timeout_s: float = TRANSFER_TIMEOUT_S,
        progress: Progress | None = None,
    ) -> Table:
        """Make a new table of a snapshot file, under its old name or another; return it.

        It is made whole or not at all. Groups that were leased are fresh again, at their place. A run that is new
        begins with the snapshot's policy clock; one that is there must stand at the newest group's version or beyond.

        Raises:
            OSError: the file cannot be read.
            SnapshotFileError: it is not a snapshot, or it is truncated or damaged.
            TableExistsError: there is a table of that name.
            FuturePolicyVersionError: the run's clock stands below the version of a group.
            QuotaExceededError: the run's quota has no room for it.
        """
        file = SnapshotFile(path)
        target = (run or file.table.run, table or file.table.table, uuid.uuid4().hex)
        # It asks first: a refusal that comes while parts are still being sent may get lost among them.
        await self._restore(lambda: file.restore_question(*target), Attempts(self._timeout_s))
        response = await self._restore(lambda: file.restore_parts(*target, progress), Attempts(timeout_s))
        return convert_tables.table_from_proto(response.table)

    # Tokens

    async def create_token(self, new: NewToken) -> Token:
        """Make a token known to the service, which keeps a hash of its secret only.

            new = NewToken.generate(Token(name="generator-1", scope=Scope.PRODUCER, run="math"))
            await client.create_token(new)  # then hand new.secret to the generator

        Raises:
            TokenExistsError: there is another token of this name.
        """
        request = pb.CreateTokenRequest(token=token_to_proto(new.token), secret_sha256=new.secret_sha256)
        response: pb.CreateTokenResponse = await self._unary(self._stub.CreateToken, request)
        return token_from_proto(response.token)

    async def list_tokens(self) -> list[Token]:
        """Return all tokens, by name, expired ones too."""
        response: pb.ListTokensResponse = await self._unary(self._stub.ListTokens, pb.ListTokensRequest())
        return [token_from_proto(token) for token in response.tokens]

    async def revoke_token(self, name: str) -> Token:
        """Take a token back; return what it was. Every server refuses it within five seconds.

        Raises:
            UnknownTokenError: there is none of this name.
        """
        response: pb.RevokeTokenResponse = await self._unary(self._stub.RevokeToken, pb.RevokeTokenRequest(name=name))
        return token_from_proto(response.token)

    # How calls are made

    async def _take(self, read: Callable[[float | None], Awaitable[_Taken]], request: Any) -> _Taken:
        """Wait for a batch up to its timeout, and read it; calls that broke are made again."""
        timeout_s = request.timeout_s
        waiting = Attempts(timeout_s)
        attempts = Attempts(timeout_s + self._timeout_s)  # the transfer has its own time
        while True:
            request.timeout_s = min(timeout_s, waiting.left_s() or 0)
            try:
                return await read(attempts.left_s())
            except grpc.RpcError as failure:
                pause_s = attempts.pause_after(error_from_rpc(failure, self._address))
            await asyncio.sleep(pause_s)

    async def _unary(self, call: Any, request: Any, timeout_s: float | None = None) -> Any:
        attempts = Attempts(timeout_s or self._timeout_s)
        while True:
            try:
                return await call(request, timeout=attempts.left_s())
            except grpc.RpcError as failure:
                pause_s = attempts.pause_after(error_from_rpc(failure, self._address))
            await asyncio.sleep(pause_s)

    async def _restore(self, parts: Callable[[], Iterator[pb.SnapshotPart]], attempts: Attempts) -> pb.RestoreResponse:
        while True:
            try:
                response: pb.RestoreResponse = await self._stub.Restore(parts(), timeout=attempts.left_s())
                return response
            except grpc.RpcError as failure:
                error = error_from_rpc(failure, self._address)
                if isinstance(error, QuotaExceededError):  # room for a whole table does not come by itself
                    raise error from None
                pause_s = attempts.pause_after(error)
            await asyncio.sleep(pause_s)

    async def _insert_window(self, window: Window, run: str, table: str, timeout_s: float | None) -> list[InsertResult]:
        """Insert groups; those refused for a reason that may pass are sent again until the timeout."""
        attempts = Attempts(timeout_s or self._timeout_s)
        results: dict[int, InsertResult] = {}
        while True:
            pending = [index for index in range(len(window)) if index not in results]
            try:
                responses = await self._send([window[index] for index in pending], run, table, attempts.left_s())
            except grpc.RpcError as failure:
                pause_s = attempts.pause_after(error_from_rpc(failure, self._address))
            else:
                read = [convert.insert_result_from_proto(*response) for response in responses]
                found = dict(zip(pending, read, strict=True))
                results |= {index: result for index, result in found.items() if not may_pass(result)}
                passing = [result.error for result in found.values() if result.error and may_pass(result)]
                if not passing or (late := attempts.pause_unless_late(passing[0])) is None:
                    results |= found
                    return [results[index] for index in range(len(window))]
                pause_s = late
            await asyncio.sleep(pause_s)

    async def _send(
        self,
        window: Window,
        run: str,
        table: str,
        timeout_s: float | None,
    ) -> list[tuple[pb.InsertResult, int]]:
        if sum(header.ByteSize() + len(payload) for header, payload in window) <= MESSAGE_BYTES:
            request = insert_request(run, table, window)
            response: pb.InsertResponse = await self._groups.insert(request, timeout=timeout_s)
            return [(result, response.durability) for result in response.results]
        requests = insert_stream_requests(run, table, window)
        results: list[tuple[pb.InsertResult, int]] = []
        async for response in self._groups.insert_stream(requests, timeout=timeout_s):
            results.extend((result, response.durability) for result in response.results)
        return results

    async def _push(
        self,
        pieces: Sequence[tuple[pb.RolloutPiece, group_pb2.GroupHeader, bytes]],
        run: str,
        table: str,
        timeout_s: float | None,
    ) -> list[tuple[pb.PushResult, int]]:
        results: list[tuple[pb.PushResult, int]] = []
        small = sum(header.ByteSize() + len(payload) for _, header, payload in pieces) <= MESSAGE_BYTES
        if small and len(pieces) <= MAX_PIECES:
            request = pb.PushRolloutsRequest(run=run, table=table)
            for piece, header, payload in pieces:
                whole = request.pieces.add()
                whole.CopyFrom(piece)
                whole.rollouts.CopyFrom(group_pb2.RolloutGroup(header=header, payload=payload))
            response: pb.PushRolloutsResponse = await self._stub.PushRollouts(request, timeout=timeout_s)
            return [(result, response.durability) for result in response.results]
        parts = pack_parts(
            pb.PiecePart(piece=piece if part.HasField("header") else None, part=part)
            for piece, header, payload in pieces
            for part in split_group(header, payload)
        )
        requests = (pb.PushRolloutsStreamRequest(run=run, table=table, parts=packed) for packed in parts)
        async for response in self._stub.PushRolloutsStream(requests, timeout=timeout_s):
            results.extend((result, response.durability) for result in response.results)
        return results

    async def _read_groups(self, request: pb.GetGroupsRequest, timeout_s: float | None) -> list[StoredGroup]:
        assembler = PartAssembler()
        groups: list[StoredGroup] = []
        async for response in self._groups.get_groups(request, timeout=timeout_s):
            for part in response.parts:
                group = assembler.add(part)
                if group is not None and group.payload is not None and group.delivery is not None:
                    groups.append(
                        convert.stored_from_wire(group.header, group.delivery, group.payload, group.log_ratios)
                    )
        assembler.check_complete()
        return groups

    async def _read_batch(self, call: Any, request: Any, timeout_s: float | None) -> Batch:
        header, groups = await self._read_parts(call, request, timeout_s, _delivered)
        return convert.batch_from_wire(self._whole(header, groups), groups)

    async def _read_outline(self, request: pb.NextBatchRequest, timeout_s: float | None) -> BatchOutline:
        header, groups = await self._read_parts(self._groups.next_batch, request, timeout_s, _outline)
        return convert.batch_outline_from_wire(self._whole(header, groups), groups)

    async def _read_parts(
        self, call: Any, request: Any, timeout_s: float | None, read: Callable[[AssembledGroup], _Read]
    ) -> tuple[pb.BatchHeader | None, list[_Read]]:
        """Return a batch whose groups are read while the service still sends others."""
        header: pb.BatchHeader | None = None
        assembler = PartAssembler()
        groups: list[_Read] = []
        async for response in call(request, timeout=timeout_s):
            if response.batch is not None:
                header = response.batch
            groups += [read(group) for part in response.parts if (group := assembler.add(part)) is not None]
        assembler.check_complete()
        return header, groups

    def _whole(self, header: pb.BatchHeader | None, groups: Sequence[object]) -> pb.BatchHeader:
        if header is None or header.groups != len(groups):
            raise InternalError(f"{self._address} sent {len(groups)} groups of a batch, and not its whole header")
        return header


async def _windows(groups: AsyncIterable[RolloutGroup]) -> AsyncIterator[Window]:
    """Yield groups as they go on the wire, as many at a time as are sent together."""
    window: list[tuple[group_pb2.GroupHeader, bytes]] = []
    size = turn = 0
    async for group in groups:
        header, payload = convert.group_to_wire(group)
        window.append((header, payload))
        size += len(payload)
        turn += len(payload)
        if turn >= _TURN_BYTES:
            turn = 0
            await asyncio.sleep(0)
        if size >= WINDOW_BYTES or len(window) >= WINDOW_GROUPS:
            yield window
            window, size = [], 0
    if window:
        yield window


def _delivered(group: AssembledGroup) -> DeliveredGroup:
    return convert.delivered_from_wire(group.header, group.delivery or group_pb2.Delivery(), group.payload or b"")


def _outline(group: AssembledGroup) -> GroupOutline:
    return convert.outline_from_wire(group.header, group.delivery or group_pb2.Delivery())


def may_pass(result: InsertResult) -> bool:
    """Whether the group was refused for a reason that may pass."""
    return result.error is not None and result.error.retryable


def passing_error(result: PushResult) -> GroupReplayError | None:
    """Return why the piece, or its complete group, was refused, if that may pass."""
    errors = (result.error, result.insert.error if result.insert else None)
    return next((error for error in errors if error is not None and error.retryable), None)
