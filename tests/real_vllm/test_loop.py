"""The whole loop on a real vLLM: groups, training with transformers, new weights, groups of these.

Shape legend: T tokens, V vocabulary.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import plain_environment
from real_vllm.generating import RUN, TABLE, generating, publish
from real_vllm.smollm2 import model_folder
from real_vllm.vllm_process import VllmProcess
from transformers import AutoModelForCausalLM, AutoTokenizer

from groupreplay import AsyncClient, Fill, RolloutGroup, TableConfig
from groupreplay_server.app import RunningServer

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

STEPS = 3


def logprobs(model: Any, group: RolloutGroup) -> list[torch.Tensor]:
    """Return the log probabilities of each response."""
    found = []
    for tokens in group.response_slices():
        token_ids = np.concatenate((group.prompt_token_ids, group.response_token_ids[tokens]))
        token_ids_T = torch.from_numpy(token_ids).long()
        logprobs_TV = model(token_ids_T[None, :-1]).logits[0].float().log_softmax(dim=-1)
        logprobs_T = logprobs_TV.gather(1, token_ids_T[1:, None])[:, 0]
        found.append(logprobs_T[len(group.prompt_token_ids) - 1 :])
    return found


async def test_policies_that_a_trainer_publishes_are_those_that_vllm_samples_with(
    vllm_process: VllmProcess, server: RunningServer, client: AsyncClient, tmp_path: Path
) -> None:
    """Each batch comes from the weights of the step before, as the trainer itself recomputes."""
    model: Any = AutoModelForCausalLM.from_pretrained(model_folder(), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    await client.create_table(run=RUN, table=TABLE, config=TableConfig(fill=Fill.KEEP, ahead_groups=0))
    await publish(client, 0, model_folder())
    start = [weight.detach().clone() for weight in model.parameters()]
    async with generating(server, vllm_process, tmp_path / "inserted.log"):
        for step in range(1, STEPS + 1):
            batch = await client.next_batch(
                run=RUN, table=TABLE, batch_size=4, lease_id=f"trainer-{step}", timeout_s=300
            )
            groups = [delivered.group for delivered in batch.groups]
            assert {(group.policy_version_min, group.policy_version_max) for group in groups} == {(step - 1, step - 1)}
            pieces = [piece for group in groups for piece in logprobs(model, group)]
            behaviour = np.concatenate([group.behaviour_logprobs for group in groups])
            off = np.abs(torch.cat(pieces).detach().numpy() - behaviour)
            print(f"\nstep {step}: {off.size} tokens, mean {off.mean():.4f}, max {off.max():.4f} nats")
            assert off.mean() < 0.08

            # Short answers are rewarded here: what matters is that the weights change, in a direction.
            rewards = torch.tensor([-float(len(piece)) for piece in pieces])
            advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
            loss: Any = -torch.stack(
                [advantage * piece.mean() for advantage, piece in zip(advantages, pieces, strict=True)]
            )
            optimizer.zero_grad()
            loss.mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            with torch.no_grad():
                # vLLM computes in bfloat16, and so does the trainer from here on: both have the same weights.
                for weight in model.parameters():
                    weight.copy_(weight.bfloat16())
            folder = tmp_path / f"policy-{step:06d}"
            model.to(torch.bfloat16).save_pretrained(folder)
            model.to(torch.float32)
            tokenizer.save_pretrained(folder)
            await client.commit(run=RUN, table=TABLE, lease_id=batch.lease_id, step=step)
            await publish(client, step, folder)
    changed = [not torch.equal(before, after) for before, after in zip(start, model.parameters(), strict=True)]
    assert any(changed)


async def test_groupreplay_train_and_vllm_go_through_policy_versions_together(
    vllm_process: VllmProcess, server: RunningServer, client: AsyncClient, tmp_path: Path
) -> None:
    """The trainer's model folders are what vLLM loads, and every step trains on groups of the version before it."""
    trainer = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "groupreplay_cli", "train", "--server", server.grpc_address, "--run", RUN,
        "--table", TABLE, "--run-dir", str(tmp_path / "run"), "--model.path", str(model_folder()),
        "--algorithm", "grpo", "--steps", str(STEPS), "--batch-size", "4", "--optimizer.minibatches", "1",
        "--optimizer.lr", "1e-3", "--memory.max-rollouts-at-once", "8", "--threads", "1",
        env=plain_environment(),
    )  # fmt: skip
    async with generating(server, vllm_process, tmp_path / "inserted.log"):
        assert await trainer.wait() == 0
    assert (await client.get_policy(run=RUN)).version == STEPS
    for step in range(1, STEPS + 1):
        lineage = await client.get_lineage(run=RUN, table=TABLE, step=step)
        assert (lineage.policy_version, {group.staleness for group in lineage.groups}) == (step - 1, {0})
