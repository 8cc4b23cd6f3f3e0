"""A Hugging Face model goes through the whole loop: batches, checkpoints, published folders, restarts."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from trainer.hf_models import qwen2_config, write_model
from transformers import AutoModelForCausalLM

from groupreplay import AsyncClient, RolloutGroup
from groupreplay.weights import weights_sha256
from groupreplay_server.app import RunningServer
from groupreplay_trainer.command import train
from groupreplay_trainer.sections import LossSettings, MemorySettings, ModelSettings, OptimizerSettings
from groupreplay_trainer.settings import TrainerSettings
from groupreplay_trainer.trainer import run_trainer


@pytest.fixture
def settings(server: RunningServer, tmp_path: Path) -> TrainerSettings:
    """Return the settings of a trainer of a tied model, on batches of two groups, with everything turned on."""
    return TrainerSettings(
        server=server.grpc_address,
        run="run",
        run_dir=tmp_path / "run",
        batch_size=2,
        steps=2,
        model=ModelSettings(path=str(write_model(tmp_path / "start", qwen2_config())), dtype="float32", device="cpu"),
        optimizer=OptimizerSettings(lr=1e-2, minibatches=2),
        memory=MemorySettings(tokens_at_once=20, packing="packed", activation_checkpointing=True),
        loss=LossSettings(kl_coefficient=0.1, entropy_coefficient=0.01),
    )


async def insert(client: AsyncClient, settings: TrainerSettings, groups: list[RolloutGroup]) -> None:
    """Insert groups into the trainer's table, which is created."""
    await client.create_table(run="run", table="rollouts", config=settings.table_config())
    for group in groups:
        await client.insert(group, run="run", table="rollouts")


async def run(settings: TrainerSettings) -> None:
    """Run a trainer to its end."""
    await asyncio.to_thread(run_trainer, settings, stop=threading.Event())


async def test_a_run_that_is_interrupted_ends_as_one_that_is_not(
    client: AsyncClient, settings: TrainerSettings, fresh_groups: Callable[[int], list[RolloutGroup]], tmp_path: Path
) -> None:
    """Weights, moments and the reference survive a restart to the bit, and every version is a folder that loads."""
    published = []
    for name, lives in (("whole", (3,)), ("interrupted", (1, 2, 3))):
        mine = replace(settings, run=name, run_dir=tmp_path / name)
        await client.create_table(run=name, table="rollouts", config=settings.table_config())
        for group in fresh_groups(6):
            await client.insert(group, run=name, table="rollouts")
        for steps in lives:
            await run(replace(mine, steps=steps))
        policy = await client.get_policy(run=name)
        folder = tmp_path / name / "weights" / "policy-000003"
        assert (policy.version, policy.weights_uri) == (3, folder.as_uri())
        assert policy.weights_sha256 == weights_sha256(folder)
        published.append(policy.weights_sha256)
        model = AutoModelForCausalLM.from_pretrained(folder)
        start = AutoModelForCausalLM.from_pretrained(settings.model.path)
        assert not torch.equal(model.model.embed_tokens.weight, start.model.embed_tokens.weight)
    assert published[0] == published[1]


async def test_tokens_of_another_tokenizer_end_the_trainer_before_it_trains(
    client: AsyncClient,
    settings: TrainerSettings,
    fresh_groups: Callable[[int], list[RolloutGroup]],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The log names the group, the token and the size of the vocabulary; the groups go back."""
    foreign = [replace(group, prompt_token_ids=np.array([5, 64], np.int32)) for group in fresh_groups(2)]
    await insert(client, settings, foreign)
    monkeypatch.setattr("groupreplay_trainer.command._stop_on_signal", threading.Event)
    assert await asyncio.to_thread(train, settings) == 1
    assert "group group-000 has the token id 64 in a prompt; the model's vocabulary has 64" in caplog.text
    table = await client.describe_table(run="run", table="rollouts")
    assert (table.fresh, table.leases) == (2, 0)
