"""The routes that environments call."""

import asyncio
import logging
import re
import time
from collections.abc import Sequence

from fastapi import Request
from fastapi.responses import JSONResponse

from groupreplay.convert import group_to_wire
from groupreplay.errors import GroupReplayError, InvalidRequestError
from groupreplay.parts import AssembledGroup
from groupreplay.types import InsertResult
from groupreplay_server.api.atropos.bodies import may_pass
from groupreplay_server.api.atropos.environments import environment_status
from groupreplay_server.api.atropos.items import Receipt, group_from_item
from groupreplay_server.api.atropos.schema import EnvIdentifier, RegisterEnv, ScoredData
from groupreplay_server.api.atropos.tables import ServedTable, ServedTables
from groupreplay_server.api.metrics import Metrics
from groupreplay_server.store.atropos_store import Environment

_log = logging.getLogger(__name__)

ROOM_WAIT_S = 60.0
"""How long a push waits for room: its client takes an error for the end after three tries."""
BEAT_S = 10.0
"""Asking for its status is an environment's pulse, noted so often."""


class EnvironmentRoutes:
    """One method for each route."""

    def __init__(self, tables: ServedTables, metrics: Metrics) -> None:
        self._tables = tables
        self._metrics = metrics
        self._beaten: dict[tuple[str, str, int], float] = {}

    async def register_env(self, request: Request, register_env: RegisterEnv) -> JSONResponse:
        """Give an environment its id, once a trainer has asked for a batch."""
        served = self._tables.of(request)
        state = await served.state()
        if not state.started or state.registration is None:
            return JSONResponse({"status": "wait for trainer to start"})
        environment = await served.service.atropos.add_environment(*served.names, **register_env.model_dump())
        return JSONResponse(
            {
                "status": "success",
                "env_id": environment.env_id,
                "wandb_name": environment.name,
                "checkpoint_dir": state.registration.checkpoint_dir,
                "starting_step": state.step,
                "checkpoint_interval": state.registration.save_checkpoint_interval,
                "num_steps": state.registration.num_steps,
            }
        )

    async def disconnect_env(self, request: Request, disconnect_env: EnvIdentifier) -> JSONResponse:
        """Take note that an environment leaves."""
        served = self._tables.of(request)
        env_id = disconnect_env.env_id
        if (await served.state()).environment(env_id) is None:
            return JSONResponse({"status": "failure", "error": f"no environment {env_id} is registered"})
        await served.service.atropos.disconnect(*served.names, env_id)
        return JSONResponse({"status": "success"})

    async def status_env(self, request: Request, env: EnvIdentifier) -> JSONResponse:
        """Tell an environment how full the queue is: the only brake it has."""
        served = self._tables.of(request)
        state = await served.state()
        environment = state.environment(env.env_id)
        if environment is None:
            raise InvalidRequestError(
                f"no environment {env.env_id} is registered for table {served.run}/{served.table}; call /register-env"
            )
        await self._beat(served, environment)
        queue = await served.arrivals.queue(*served.names)
        return JSONResponse(environment_status(state, environment, queue))

    async def scored_data(self, request: Request, scored_data: ScoredData) -> JSONResponse:
        """Keep a group."""
        await self._keep(self._tables.of(request), [scored_data])
        return JSONResponse({"status": "received"})

    async def scored_data_list(self, request: Request, scored_data_list: list[ScoredData]) -> JSONResponse:
        """Keep groups."""
        await self._keep(self._tables.of(request), scored_data_list)
        return JSONResponse({"status": "received", "groups_processed": len(scored_data_list)})

    async def _keep(self, served: ServedTable, items: Sequence[ScoredData]) -> None:
        """Insert groups, each by itself.

        Raises:
            GroupReplayError: some were refused; rather one that may pass, so that the client sends them again.
        """
        await served.ensure()
        state = await served.state()
        version = (await served.service.get_policy(served.run)).version
        groups, errors = [], []
        for item in items:
            receipt = _receipt(state.environment(item.env_id), version, f"{served.run}/{served.table}/{state.resets}")
            try:
                groups.append(await asyncio.to_thread(_to_wire, item, receipt))
            except GroupReplayError as error:
                errors.append(error)
        if groups:
            results = await served.service.insert_when_room(*served.names, groups, timeout_s=ROOM_WAIT_S)
            errors += self._count(groups, results)
            await served.service.atropos.note_latest(*served.names, groups[-1].header.group_id)
        if errors:
            _log.warning("%d of %d groups were not taken, the first: %s", len(errors), len(items), errors[0])
            raise next(filter(may_pass, errors), errors[0])

    def _count(self, groups: Sequence[AssembledGroup], results: Sequence[InsertResult]) -> list[GroupReplayError]:
        for group in groups:
            self._metrics.payload("in", len(group.payload or b""))
        return [result.error for result in results if result.error is not None]

    async def _beat(self, served: ServedTable, environment: Environment) -> None:
        name = (*served.names, environment.env_id)
        if time.monotonic() < self._beaten.get(name, 0.0):
            return
        self._beaten[name] = time.monotonic() + BEAT_S
        await served.service.beat(
            *served.names, producer_id=_producer_id(environment), interval_s=BEAT_S, status="asks for its status"
        )


def _receipt(environment: Environment | None, version: int, epoch: str) -> Receipt:
    task = environment.desired_name.encode()[:128].decode(errors="ignore") if environment else ""
    return Receipt(
        producer_id=_producer_id(environment) if environment else "",
        task=task,
        policy_version=version,
        epoch=epoch,
    )


def _producer_id(environment: Environment) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", environment.name)[:128]


def _to_wire(item: ScoredData, receipt: Receipt) -> AssembledGroup:
    header, payload = group_to_wire(group_from_item(item, receipt))
    return AssembledGroup(header, payload)
