"""What the Atropos API has to remember beside its table: who registered, which batch is out, how far the trainer is."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from groupreplay_server.store.backend import Backend
from groupreplay_server.store.connection import text, translated_errors
from groupreplay_server.store.keys import TableKeys
from groupreplay_server.store.scripts import call_script


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """What a trainer says of its run."""

    wandb_group: str
    wandb_project: str
    batch_size: int
    """Sequences, not groups."""
    max_token_len: int
    checkpoint_dir: str
    save_checkpoint_interval: int
    num_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What an environment says of itself, and the id and name it was given."""

    env_id: int
    name: str
    desired_name: str
    max_token_length: int
    weight: float
    group_size: int
    min_batch_allocation: float | None
    """Share of a batch in sequences, in [0, 1]; None = none."""
    connected: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """The batch that the trainer has, or is about to get."""

    lease_id: str
    step: int
    groups: int
    """Slots that are asked for."""
    handed: bool = False
    """Whether the batch left the service to its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AtroposState:
    """All of it at one moment."""

    registration: Registration | None = None
    started: bool = False
    """Whether a trainer has asked for a batch; environments wait for that."""
    step: int = 0
    """The first step, plus the batches taken."""
    turn: Turn | None = None
    resets: int = 0
    latest_group_id: str = ""
    environments: Mapping[int, Environment]

    def environment(self, env_id: int | None) -> Environment | None:
        """Return the environment of this id, if there is one."""
        return None if env_id is None else self.environments.get(env_id)


class AtroposStore:
    """One hash for each table; every change is one command or script, so that nobody sees half of it."""

    def __init__(self, redis: Backend) -> None:
        self._redis = redis

    async def read(self, run: str, table: str) -> AtroposState:
        """Return what is remembered; nothing was said = the defaults."""
        with translated_errors():
            found = await self._redis.hgetall(TableKeys(run, table).atropos)
        fields = {text(name): text(value) for name, value in found.items()}
        environments = [_environment(fields, name) for name in fields if name.startswith("env:")]
        return AtroposState(
            registration=Registration(**json.loads(fields["registration"])) if "registration" in fields else None,
            started="started" in fields,
            step=int(fields.get("step", 0)),
            turn=Turn(**json.loads(fields["turn"])) if fields.get("turn") else None,
            resets=int(fields.get("resets", 0)),
            latest_group_id=fields.get("latest", ""),
            environments={environment.env_id: environment for environment in environments},
        )

    async def register(self, run: str, table: str, registration: Registration, *, step: int, turn: Turn | None) -> None:
        """Take note of a trainer; a batch that was out is to be handed out again."""
        again = {"turn": json.dumps(asdict(replace(turn, handed=False)))} if turn else {}
        await self._set(run, table, registration=json.dumps(asdict(registration)), step=step, **again)

    async def start(self, run: str, table: str) -> None:
        """Take note that the trainer asks for batches."""
        await self._set(run, table, started=1)

    async def set_turn(self, run: str, table: str, turn: Turn | None, *, step: int) -> None:
        """Take note of the batch that is out, and of the step."""
        await self._set(run, table, turn=json.dumps(asdict(turn)) if turn else "", step=step)

    async def note_latest(self, run: str, table: str, group_id: str) -> None:
        """Take note of the group that came last."""
        await self._set(run, table, latest=group_id)

    async def add_environment(self, run: str, table: str, **said: Any) -> Environment:
        """Give an environment an id, and a name that no other has."""
        values = {"desired_name": said["desired_name"], "said": json.dumps(said)}
        with translated_errors():
            env_id, name = await call_script(self._redis, "add_environment", [TableKeys(run, table).atropos], values)
        return Environment(env_id=env_id, name=text(name), **said)

    async def disconnect(self, run: str, table: str, env_id: int) -> None:
        """Take note that an environment is gone."""
        await self._set(run, table, **{f"gone:{env_id}": 1})

    async def reset(self, run: str, table: str) -> None:
        """Forget all but the number of resets, which is one more."""
        with translated_errors():
            await call_script(self._redis, "reset_atropos", [TableKeys(run, table).atropos], {})

    async def _set(self, run: str, table: str, **fields: str | int) -> None:
        with translated_errors():
            await self._redis.hset(TableKeys(run, table).atropos, mapping=dict[Any, Any](fields))


def _environment(fields: Mapping[str, str], name: str) -> Environment:
    said = json.loads(fields[name])
    return Environment(**said | {"connected": f"gone:{said['env_id']}" not in fields})
