"""The trainer's side: this API has no commit, so a batch is committed when the one after it is there to be handed out.

One batch is in between. Its trainer may die: /register, or the end of the lease, puts it back, and it is handed out
again. An answer that broke before its end, or is still on its way when somebody asks again, was not handed out either.
"""

import asyncio
import logging
import secrets
from collections import defaultdict
from dataclasses import replace

from groupreplay.errors import (
    BatchNotReadyError,
    LeaseExpiredError,
    PolicyVersionConflictError,
    StepConflictError,
    UnknownLeaseError,
)
from groupreplay.table_config import Fill
from groupreplay.types import Policy
from groupreplay_server.api.atropos.arrivals import Arrivals, slots_for
from groupreplay_server.service import ReplayService
from groupreplay_server.store.atropos_store import AtroposState, Turn
from groupreplay_server.store.records import LeasedBatch

_log = logging.getLogger(__name__)

LEASE_S = 3600.0
"""Nothing in this API extends a lease. One that ended is committed all the same unless somebody took its groups."""
HOLDER = "atropos"


class Turns:
    """Takes the batches of Atropos' trainers."""

    def __init__(self, service: ReplayService, arrivals: Arrivals) -> None:
        self._service = service
        self._arrivals = arrivals
        self._locks: defaultdict[tuple[str, str], asyncio.Lock] = defaultdict(asyncio.Lock)

    async def take(self, run: str, table: str) -> tuple[Turn, LeasedBatch] | None:
        """Return the next batch, or the one that was not handed out yet; None = there is none for now."""
        async with self._locks[run, table]:
            state = await self._service.atropos.read(run, table)
            if state.turn and not state.turn.handed:
                if batch := await self._lease(run, table, state.turn, step=state.step):
                    return state.turn, batch
            elif state.turn:
                if not await self._slots(run, table, state):
                    return None  # it may not be trained on yet: some trainers ask on until there is nothing more
                await self._commit(run, table, state.turn)
            return await self._take_new(run, table)

    async def _take_new(self, run: str, table: str) -> tuple[Turn, LeasedBatch] | None:
        while True:
            state = await self._service.atropos.read(run, table)
            slots = await self._slots(run, table, state)
            if not slots:
                return None
            turn = Turn(lease_id=f"{HOLDER}-{secrets.token_hex(8)}", step=state.step + 1, groups=slots)
            # Before it is taken: whoever asks after a crash in between takes it under the same id.
            await self._service.atropos.set_turn(run, table, turn, step=state.step)
            if batch := await self._lease(run, table, turn, step=state.step):
                return turn, batch
            if (await self._service.atropos.read(run, table)).step == state.step:
                return None  # rather than a batch without groups, which is behind us

    async def handed(self, run: str, table: str, turn: Turn) -> None:
        """Take note that a batch has all but left, unless another turn has begun."""
        async with self._locks[run, table]:
            state = await self._service.atropos.read(run, table)
            if state.turn and state.turn.lease_id == turn.lease_id:
                await self._service.atropos.set_turn(run, table, replace(turn, handed=True), step=state.step)

    async def end(self, run: str, table: str) -> None:
        """Forget the batch that is out."""
        async with self._locks[run, table]:
            state = await self._service.atropos.read(run, table)
            await self._service.atropos.set_turn(run, table, None, step=state.step)

    async def _slots(self, run: str, table: str, state: AtroposState) -> int:
        assert state.registration is not None
        queue = await self._arrivals.queue(run, table)
        if (await self._service.table_config(run, table)).fill is Fill.RESAMPLE:
            queue = [group for group in queue if group.effective]
        return slots_for(queue, state.registration.batch_size)

    async def _lease(self, run: str, table: str, turn: Turn, *, step: int) -> LeasedBatch | None:
        """Take a batch, or take it again; None = there is none, and the turn is over."""
        try:
            batch = await self._service.batches.next_batch(
                run,
                table,
                batch_size=turn.groups,
                lease_id=turn.lease_id,
                lease_s=LEASE_S,
                timeout_s=0.0,
                holder=HOLDER,
            )
        except (BatchNotReadyError, StepConflictError):  # the latter: that very lease is committed
            await self._service.atropos.set_turn(run, table, None, step=step)
            return None
        if batch.groups:
            await self._service.atropos.set_turn(run, table, turn, step=turn.step)
            return batch
        # No gradient in any of its groups, and none to refill with: trainers cannot read an empty batch.
        await self._end_lease(run, table, turn)
        await self._service.atropos.set_turn(run, table, None, step=turn.step)
        return None

    async def _commit(self, run: str, table: str, turn: Turn) -> None:
        if await self._end_lease(run, table, turn):
            await self._count_version(run)

    async def _end_lease(self, run: str, table: str, turn: Turn) -> bool:
        """Commit a batch; return whether this call did it."""
        durability = (await self._service.table_config(run, table)).durability
        try:
            return not await self._service.batches.commit(
                run, table, lease_id=turn.lease_id, step=turn.step, feedback=(), durability=durability
            )
        except (LeaseExpiredError, UnknownLeaseError, StepConflictError) as error:
            _log.warning("the batch of step %d was handed out, but cannot be committed: %s", turn.step, error)
            return False

    async def _count_version(self, run: str) -> None:
        """Advance the policy clock by one for the batch, unless a trainer publishes versions itself."""
        policy = await self._service.get_policy(run)
        published = policy.weights_uri or (policy.version and not policy.label.startswith(f"{HOLDER}-"))
        if published:
            return
        version = policy.version + 1
        try:
            await self._service.advance_policy(Policy(run=run, version=version, label=f"{HOLDER}-{version}"))
        except PolicyVersionConflictError:
            return  # somebody publishes, after all
