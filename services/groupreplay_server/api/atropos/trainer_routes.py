"""The routes that trainers call."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse

from groupreplay.convert import group_from_wire
from groupreplay.errors import UnknownRunError, UnknownTableError
from groupreplay.v1 import group_pb2
from groupreplay_server.api.atropos.items import item_from_group
from groupreplay_server.api.atropos.schema import Registration
from groupreplay_server.api.atropos.tables import ServedTable, ServedTables
from groupreplay_server.api.metrics import Metrics
from groupreplay_server.limits import MAX_BATCH_SIZE, check_range
from groupreplay_server.store.atropos_store import Registration as Trainer
from groupreplay_server.store.atropos_store import Turn
from groupreplay_server.store.records import LeasedBatch, LeasedGroup, Payload

_NOT_REGISTERED = {"status": "error", "message": "Trainer not registered. Call /register first.", "batch": []}
_NO_EXAMPLE: dict[str, list[Any]] = {
    name: []
    for name in (
        "tokens", "masks", "scores", "advantages", "ref_logprobs", "generation_params", "inference_logprobs",
        "messages", "images",
    )
}  # fmt: skip


class TrainerRoutes:
    """One method for each route."""

    def __init__(self, tables: ServedTables, metrics: Metrics) -> None:
        self._tables = tables
        self._metrics = metrics

    async def root(self) -> JSONResponse:
        """The API answers."""
        return JSONResponse({"message": "AtroposLib API"})

    async def register(self, request: Request, registration: Registration) -> JSONResponse:
        """Take a trainer's word; what an earlier one said, a dead one perhaps, no longer holds."""
        served = self._tables.of(request)
        check_range("batch_size", registration.batch_size, 1, MAX_BATCH_SIZE)
        await served.ensure()
        state = await served.state()
        said = registration.model_dump(exclude={"starting_step"})
        step = max(state.step, registration.starting_step)
        await served.service.atropos.register(*served.names, Trainer(**said), step=step, turn=state.turn)
        return JSONResponse({"uuid": uuid.uuid4().int})

    async def wandb_info(self, request: Request) -> JSONResponse:
        """Tell environments where to log."""
        trainer = (await self._tables.of(request).state()).registration
        return JSONResponse(
            {
                "group": trainer.wandb_group if trainer else None,
                "project": trainer.wandb_project if trainer else None,
            }
        )

    async def info(self, request: Request) -> JSONResponse:
        """Tell environments how much a batch takes."""
        trainer = (await self._tables.of(request).state()).registration
        return JSONResponse(
            {
                "batch_size": trainer.batch_size if trainer else -1,
                "max_token_len": trainer.max_token_len if trainer else -1,
            }
        )

    async def status(self, request: Request) -> JSONResponse:
        """Tell how far the trainer is, and how many groups wait."""
        served = self._tables.of(request)
        state = await served.state()
        queued = await served.fresh() if state.registration else 0
        return JSONResponse({"current_step": state.step, "queue_size": queued})

    async def batch(self, request: Request) -> JSONResponse | StreamingResponse:
        """Hand out the next batch, which commits the one before; null = there is none for now."""
        served = self._tables.of(request)
        state = await served.state()
        if state.registration is None:
            return JSONResponse(_NOT_REGISTERED)
        if not state.started:
            await served.service.atropos.start(*served.names)
        taken = await served.turns.take(*served.names)
        if taken is None:
            return JSONResponse({"batch": None})
        return StreamingResponse(self._serialize(served, *taken), media_type="application/json")

    async def latest_example(self, request: Request) -> JSONResponse:
        """Show the group that came last, where it is still there."""
        served = self._tables.of(request)
        latest = (await served.state()).latest_group_id
        try:
            found = await served.service.read_groups(*served.names, [latest]) if latest else []
        except (UnknownRunError, UnknownTableError):
            found = []
        async for group, payload in served.service.batches.payloads(*served.names, found):
            if payload:
                return JSONResponse(_item(group.header, payload))
        return JSONResponse(_NO_EXAMPLE)

    async def reset_data(self, request: Request) -> PlainTextResponse:
        """Remove all groups of the table, and forget trainer and environments."""
        served = self._tables.of(request)
        await served.turns.end(*served.names)
        try:
            await served.service.reset_table(*served.names)
        except (UnknownRunError, UnknownTableError):
            return PlainTextResponse("Reset successful")
        await served.service.atropos.reset(*served.names)
        return PlainTextResponse("Reset successful")

    async def _serialize(self, served: ServedTable, turn: Turn, batch: LeasedBatch) -> AsyncIterator[bytes]:
        """Yield the answer; a client that leaves has this cancelled, and gets the same batch again."""
        yield b'{"batch":['
        between = b""
        async for group, payload in served.service.batches.payloads(*served.names, batch.groups):
            self._metrics.payload("out", len(payload))
            yield between + await asyncio.to_thread(_serialize_item, group, payload)
            between = b","
        # Before the last bytes: whoever has them may ask for the next batch at once.
        await served.turns.handed(*served.names, turn)
        yield b"]}"


def _item(header: bytes, payload: Payload) -> dict[str, Any]:
    return item_from_group(group_from_wire(group_pb2.GroupHeader.FromString(header), payload))


def _serialize_item(group: LeasedGroup, payload: Payload) -> bytes:
    header = group_pb2.GroupHeader.FromString(group.header)
    ours: Mapping[str, Any] = {
        "group_id": group.group_id,
        "source": group.source.value,
        "policy_version": header.policy_version_min,
        "staleness": group.staleness,
        "times_sampled": group.times_sampled,
        "redeliveries": group.redeliveries,
        "importance_weight": group.importance_weight,
    }
    item = item_from_group(group_from_wire(header, payload)) | {"groupreplay": ours}
    return json.dumps(item, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
