"""The engine of vLLM in this process makes the same promises as the one over HTTP."""

import asyncio
import json
import multiprocessing
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
import torch
from real_vllm.conftest import Folders
from real_vllm.test_engine import EOS, MEAN_TOLERANCE, PROMPTS, differences

from groupreplay_generator.engines import EngineAwayError, Sampling
from groupreplay_generator.engines.vllm_engine import VllmEngine
from groupreplay_generator.sections import VllmSettings

# One engine for all tests, which start it, use it and kill it in this order.
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="module")]

OPTIONS = {"dtype": "bfloat16", "enforce_eager": True, "max_model_len": 1024, "max_num_seqs": 32}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(folders: Folders) -> AsyncIterator[VllmEngine]:
    """An engine that opens with policy version 0."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        async with VllmEngine(folders[0], settings=VllmSettings(options=json.dumps(OPTIONS))) as engine:
            yield engine


async def test_behaviour_logprobs_are_those_that_a_trainer_recomputes(engine: VllmEngine, folders: Folders) -> None:
    """Tokens, log probabilities, EOS and versions come back as they were sampled."""
    results = await engine.generate(PROMPTS, rollouts_per_prompt=4, sampling=Sampling(max_response_tokens=48, seed=1))
    off = differences(folders[0], results, 1.0, torch.float32)
    print(f"\nin process: {off.size} tokens, mean {off.mean():.4f}, max {off.max():.4f} nats")
    assert off.mean() < MEAN_TOLERANCE
    completions = [completion for result in results for completion in result.completions]
    assert len(completions) == 12
    for completion in completions:
        assert (completion.token_ids[-1] == EOS) == (completion.finish_reason == "stop")
        assert completion.version_spans == ((0, 0),)


async def test_new_weights_are_used_from_then_on(engine: VllmEngine, folders: Folders) -> None:
    """Responses under way go on with them, and say from which token."""
    sampling = Sampling(max_response_tokens=192, seed=1)
    async with asyncio.TaskGroup() as tasks:
        answering = tasks.create_task(engine.generate(PROMPTS, rollouts_per_prompt=4, sampling=sampling))
        await engine.generate(("x",), rollouts_per_prompt=1, sampling=Sampling(max_response_tokens=4))
        await engine.load_weights(folders[1], 1)
    assert any((result.policy_version_min, result.policy_version_max) == (0, 1) for result in answering.result())
    results = await engine.generate(PROMPTS, rollouts_per_prompt=4, sampling=Sampling(max_response_tokens=32, seed=1))
    assert {(result.policy_version_min, result.policy_version_max) for result in results} == {(1, 1)}
    assert differences(folders[1], results, 1.0, torch.float32).mean() < MEAN_TOLERANCE


async def test_a_vllm_that_died_is_started_anew_with_the_policys_weights(engine: VllmEngine, folders: Folders) -> None:
    """The call under way says that it is away; the next one brings it back."""
    sampling = Sampling(max_response_tokens=192, seed=1)
    answering = asyncio.create_task(engine.generate(PROMPTS, rollouts_per_prompt=4, sampling=sampling))
    await engine.generate(("x",), rollouts_per_prompt=1, sampling=Sampling(max_response_tokens=4))
    for worker in multiprocessing.active_children():
        worker.kill()
    with pytest.raises(EngineAwayError, match="vLLM died"):
        await answering
    results = await engine.generate(PROMPTS, rollouts_per_prompt=2, sampling=Sampling(max_response_tokens=16, seed=1))
    assert {(result.policy_version_min, result.policy_version_max) for result in results} == {(1, 1)}
    assert differences(folders[1], results, 1.0, torch.float32).mean() < MEAN_TOLERANCE
