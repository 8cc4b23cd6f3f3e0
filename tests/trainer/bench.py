"""A service, a client of it, and trainers that run in threads beside the event loop of a test."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch

from groupreplay import AsyncClient, Client, RolloutGroup, Table
from groupreplay_tinylm import load_checkpoint
from groupreplay_trainer.policy_model import TinyLMPolicy
from groupreplay_trainer.run_folder import RunFolder
from groupreplay_trainer.settings import TrainerSettings
from groupreplay_trainer.trainer import Trainer
from groupreplay_trainer.watching import StepWatcher

ResultT = TypeVar("ResultT")

RUN, TABLE = "run", "rollouts"

Live = Callable[..., Awaitable[int]]
"""Runs one life of a trainer: see the fixture `live`."""
NEVER = 10**9


class Killed(BaseException):
    """Stands for a kill: no handler of the trainer catches it."""


class Bench:
    """A service, a client of it, and trainers that run in threads beside the event loop."""

    def __init__(
        self, settings: TrainerSettings, client: AsyncClient, make_groups: Callable[[int], list[RolloutGroup]]
    ):
        self.settings = settings
        self.client = client
        self.make_groups = make_groups
        self.stop = threading.Event()

    async def train(
        self,
        *,
        client: type[Client] = Client,
        model: type[TinyLMPolicy] = TinyLMPolicy,
        watchers: Sequence[StepWatcher] = (),
        **changes: Any,
    ) -> Trainer:
        """Run a trainer to its end, with a model and a client of its own."""
        return await asyncio.to_thread(self._train, replace(self.settings, **changes), client, model, watchers)

    def _train(
        self,
        settings: TrainerSettings,
        client_class: type[Client],
        model_class: type[TinyLMPolicy],
        watchers: Sequence[StepWatcher],
    ) -> Trainer:
        model = model_class(load_checkpoint(settings.model.path))
        with (
            RunFolder(settings.run_dir) as folder,
            client_class(settings.server, timeout_s=settings.call_timeout_s) as client,
        ):
            trainer = Trainer(settings, client=client, model=model, folder=folder, stop=self.stop, watchers=watchers)
            trainer.run()
            return trainer

    def as_request(self, **changes: Any) -> dict[str, Any]:
        """Return the settings as `live` takes them."""
        return {
            "server": self.settings.server,
            "run": self.settings.run,
            "run_dir": str(self.settings.run_dir),
            "model": {"path": self.settings.model.path},
            "batch_size": self.settings.batch_size,
            "optimizer": {"minibatches": 2, "lr": 1e-2},
            "threads": 1,
            **changes,
        }

    async def insert(self, groups: Sequence[RolloutGroup]) -> None:
        """Insert groups, and create the run and the table before if need be."""
        await self.client.create_table(run=RUN, table=TABLE, config=self.settings.table_config())
        for group in groups:
            await self.client.insert(group, run=RUN, table=TABLE)

    async def table(self) -> Table:
        """Return the table as it is now."""
        return await self.client.describe_table(run=RUN, table=TABLE)

    async def version(self) -> int:
        """Return where the policy clock stands."""
        return (await self.client.get_policy(run=RUN)).version

    def log(self, name: str = "train.jsonl") -> list[dict[str, Any]]:
        """Return the lines of a log."""
        return [json.loads(line) for line in (self.settings.run_dir / name).read_text().splitlines()]

    def weights(self, version: int) -> dict[str, torch.Tensor]:
        """Return published weights."""
        folder = self.settings.weights_folder
        return dict(load_checkpoint(folder / f"policy-{version:06d}.safetensors").state_dict())


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what another thread or the service's clock brings about."""
    async with asyncio.timeout(60):
        while not await condition():  # noqa: ASYNC110 - nothing here could set an event
            await asyncio.sleep(0.02)


def on_loop(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Run a coroutine on the test's loop from the trainer's thread."""
    return asyncio.run_coroutine_threadsafe(work, loop).result(timeout=30)


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Return whether two sets of weights are equal to the bit."""
    return all(torch.equal(tensor, right[name]) for name, tensor in left.items())
