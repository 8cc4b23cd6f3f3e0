"""The parts together learn: reward rises on a toy task, with half of each batch replayed from the step before."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from groupreplay import Batch, DeliveredGroup, GroupSource, Rollout, RolloutGroup
from groupreplay.torch.collate import collate
from groupreplay_generator.engines.base import Sampling
from groupreplay_generator.engines.torch_engine import TorchEngine
from groupreplay_trainer.parts import update_settings
from groupreplay_trainer.policy_model import TinyLMPolicy
from groupreplay_trainer.sections import OptimizerSettings
from groupreplay_trainer.settings import TrainerSettings
from groupreplay_trainer.update import PolicyUpdater

PROMPTS = ("1=", "2=", "3=", "4=")


async def test_reward_rises_on_a_task_that_rewards_one_digit(
    model: TinyLMPolicy, make_batch: Callable[..., Batch], tmp_path: Path
) -> None:
    """The share of responses that begin with the prompt's digit goes from chance to most of them in 40 steps."""
    settings = update_settings(TrainerSettings(optimizer=OptimizerSettings(minibatches=2), preset="robust"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    updater = PolicyUpdater(model, optimizer, settings=settings, generator=torch.Generator().manual_seed(0))
    sampling = Sampling(max_response_tokens=2, seed=0)
    replay: list[DeliveredGroup] = []
    shares = []
    model.save(tmp_path / "policy.safetensors")
    async with TorchEngine(tmp_path / "policy.safetensors") as engine:
        for step in range(40):
            results = await engine.generate(PROMPTS, rollouts_per_prompt=16, sampling=replace(sampling, seed=step))
            fresh = [
                deliver(
                    [
                        Rollout(
                            token_ids=completion.token_ids,
                            behaviour_logprobs=completion.behaviour_logprobs,
                            reward=float(completion.text[:1] == prompt[:1]),
                        )
                        for completion in result.completions
                    ],
                    prompt_token_ids=result.prompt_token_ids,
                    step=step,
                    number=number,
                )
                for number, (prompt, result) in enumerate(zip(PROMPTS, results, strict=True))
            ]
            shares.append(np.mean([item.group.rewards.mean() for item in fresh]))
            effective = [item for item in fresh if item.group.reward_std > 0]
            if effective or replay:
                updater.update(collate(make_batch([*effective, *replay]), pad_token_id=model.pad_token_id))
            replay = [replace(item, source=GroupSource.REPLAY, staleness=1) for item in effective]
            model.save(tmp_path / "policy.safetensors")
            await engine.load_weights(tmp_path / "policy.safetensors", step + 1)
    assert np.mean(shares[:3]) < 0.15
    assert np.mean(shares[-3:]) > 0.6


def deliver(
    rollouts: list[Rollout], *, prompt_token_ids: np.ndarray[tuple[int], np.dtype[np.int32]], step: int, number: int
) -> DeliveredGroup:
    """Return a fresh group of rollouts."""
    group = RolloutGroup.from_rollouts(
        rollouts,
        group_id=f"{step}-{number}",
        prompt_id=str(number),
        prompt_token_ids=prompt_token_ids,
        policy_version=step,
    )
    return DeliveredGroup(
        group=group, source=GroupSource.FRESH, staleness=0, times_sampled=1, probability=1.0, redeliveries=0
    )
