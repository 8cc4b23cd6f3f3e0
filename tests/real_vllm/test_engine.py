"""The engine of vLLM servers on a real vLLM: what it says was sampled is what was sampled, by the weights it names.

Shape legend: T tokens, V vocabulary.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from real_vllm.conftest import Folders
from real_vllm.vllm_process import VllmProcess
from transformers import AutoModelForCausalLM, AutoTokenizer

from groupreplay_generator.engines import Completion, EngineResult, Sampling
from groupreplay_generator.engines.vllm_http import VllmHttpEngine
from groupreplay_generator.sections import VllmSettings

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]

PROMPTS = (
    "The capital of France is",
    "Two plus two is",
    "<|im_start|>user\nSay hi.<|im_end|>\n<|im_start|>assistant\n",
)
EOS = 2
MEAN_TOLERANCE, MAX_TOLERANCE = 0.08, 2.0
"""Of log probabilities in nats: vLLM computes in bfloat16, by other kernels than transformers. Measured on responses of
800 tokens: mean 0.035 to 0.048, largest 0.2 to 0.9."""


@pytest.fixture
async def engine(vllm_process: VllmProcess, folders: Folders) -> AsyncIterator[VllmHttpEngine]:
    """An engine that opens with policy version 0."""
    async with VllmHttpEngine(folders[0], settings=VllmSettings(url=vllm_process.url)) as engine:
        yield engine


def recompute(
    model: torch.nn.Module, result: EngineResult, completion: Completion, temperature: float
) -> npt.NDArray[np.float32]:
    """Return the log probabilities of a completion by one forward over the whole sequence."""
    token_ids_T = torch.from_numpy(np.concatenate((result.prompt_token_ids, completion.token_ids))).long()
    with torch.no_grad():
        logprobs_TV = (model(token_ids_T[None, :-1]).logits[0].float() / temperature).log_softmax(dim=-1)
    logprobs_T: npt.NDArray[np.float32] = logprobs_TV.gather(1, token_ids_T[1:, None])[:, 0].numpy()
    return logprobs_T[len(result.prompt_token_ids) - 1 :]


def differences(
    folder: Path, results: list[EngineResult], temperature: float, dtype: torch.dtype
) -> npt.NDArray[np.float32]:
    """Return how far vLLM and transformers are apart, for every response token."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return np.concatenate(
        [
            np.abs(recompute(model, result, completion, temperature) - completion.behaviour_logprobs)
            for result in results
            for completion in result.completions
        ]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
async def test_behaviour_logprobs_are_those_that_a_trainer_recomputes(
    engine: VllmHttpEngine, folders: Folders, temperature: float, dtype: torch.dtype
) -> None:
    """vLLM and transformers agree on the same weights up to rounding, so importance ratios start near 1."""
    sampling = Sampling(max_response_tokens=48, temperature=temperature, seed=1)
    results = await engine.generate(PROMPTS, rollouts_per_prompt=8, sampling=sampling)
    off = differences(folders[0], results, temperature, dtype)
    print(f"\n{dtype} at {temperature}: {off.size} tokens, mean {off.mean():.4f}, max {off.max():.4f} nats")
    assert off.mean() < MEAN_TOLERANCE
    assert off.max() < MAX_TOLERANCE


async def test_results_have_the_prompts_tokens_and_their_completions(engine: VllmHttpEngine, folders: Folders) -> None:
    """Each prompt gets its own completions; a stopped one ends in EOS, whose log probability is known."""
    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    results = await engine.generate(PROMPTS, rollouts_per_prompt=8, sampling=Sampling(max_response_tokens=64, seed=1))
    assert [result.prompt_token_ids.tolist() for result in results] == [tokenizer(text).input_ids for text in PROMPTS]
    completions = [completion for result in results for completion in result.completions]
    assert {completion.finish_reason for completion in completions} == {"stop", "length"}
    for completion in completions:
        tokens = completion.token_ids.tolist()
        assert tokens.count(EOS) == (tokens[-1] == EOS) == (completion.finish_reason == "stop")
        assert completion.finish_reason == "stop" or len(tokens) == 64
        assert (completion.behaviour_logprobs < 0).all()
        assert completion.text == tokenizer.decode(tokens, skip_special_tokens=True)
        assert completion.version_spans == ((0, 0),)


async def test_the_same_seed_gives_the_same_completions(engine: VllmHttpEngine) -> None:
    """A rollout can be repeated; the rollouts of a prompt differ, and so do those of another seed."""
    runs = [
        (await engine.generate(PROMPTS[:1], rollouts_per_prompt=4, sampling=Sampling(max_response_tokens=8, seed=seed)))
        for seed in (1, 1, 2)
    ]
    tokens = [[completion.token_ids.tolist() for completion in result.completions] for (result,) in runs]
    assert tokens[0] == tokens[1]
    assert tokens[0] != tokens[2]
    assert len({str(row) for row in tokens[0]}) == 4


async def test_greedy_completions_are_certain(engine: VllmHttpEngine) -> None:
    """At temperature 0 all rollouts of a prompt are the same, with log probability 0."""
    sampling = Sampling(max_response_tokens=8, temperature=0)
    (result,) = await engine.generate(PROMPTS[:1], rollouts_per_prompt=2, sampling=sampling)
    first, second = result.completions
    assert first.token_ids.tolist() == second.token_ids.tolist()
    assert not first.behaviour_logprobs.any()


async def test_new_weights_are_used_from_the_next_call_on(engine: VllmHttpEngine, folders: Folders) -> None:
    """After an update tokens are of the new weights: nothing that the server remembers of a prompt is of the old."""
    sampling = Sampling(max_response_tokens=32, seed=1)
    for version in (0, 1, 2):
        await engine.load_weights(folders[version], version)
        results = await engine.generate(PROMPTS, rollouts_per_prompt=4, sampling=sampling)
        assert {(result.policy_version_min, result.policy_version_max) for result in results} == {(version, version)}
        own = differences(folders[version], results, 1.0, torch.float32)
        others = differences(folders[(version + 1) % 3], results, 1.0, torch.float32)
        print(f"\nversion {version}: own weights mean {own.mean():.4f}, others {others.mean():.4f} nats")
        assert own.mean() < MEAN_TOLERANCE < others.mean()


async def test_responses_under_way_during_an_update_say_which_token_is_of_which_weights(
    engine: VllmHttpEngine, folders: Folders
) -> None:
    """Requests go on through an update, and each token carries the version of the weights that sampled it."""
    await engine.load_weights(folders[0], 0)
    sampling = Sampling(max_response_tokens=256, seed=1)
    async with asyncio.TaskGroup() as tasks:
        answering = tasks.create_task(engine.generate(PROMPTS, rollouts_per_prompt=4, sampling=sampling))
        await has_begun(engine)
        await engine.load_weights(folders[1], 1)
    model = {version: AutoModelForCausalLM.from_pretrained(folders[version]) for version in (0, 1)}
    own: list[npt.NDArray[np.float32]] = []
    others: list[npt.NDArray[np.float32]] = []
    for result in answering.result():
        for completion in result.completions:
            if len(completion.version_spans) == 2:
                (first, start) = completion.version_spans[0][1], completion.version_spans[1][0]
                assert (first, completion.version_spans[1][1]) == (0, 1)
                for version, found in ((0, own), (1, others)):
                    off = np.abs(recompute(model[version], result, completion, 1.0) - completion.behaviour_logprobs)
                    found.append(off[:start])
    assert own, "no response was under way"
    assert np.concatenate(own).mean() < MEAN_TOLERANCE < np.concatenate(others).mean()


async def has_begun(engine: VllmHttpEngine) -> None:
    """Return when the server has begun to answer what it was asked before: a shorter request ends sooner."""
    await engine.generate(("x",), rollouts_per_prompt=1, sampling=Sampling(max_response_tokens=4))


@pytest.mark.parametrize(
    ("prompts", "rollouts", "message"),
    [
        (["", "x"], 1, "prompt '' has 0 tokens; with max_response_tokens 8 this server takes 1 to 1016"),
        (["word " * 1100], 1, "this server takes 1 to 1016"),
        (["x"], 0, "rollouts_per_prompt must be >= 1, got 0"),
    ],
)
async def test_a_prompt_that_cannot_be_answered_is_refused(
    engine: VllmHttpEngine, prompts: list[str], rollouts: int, message: str
) -> None:
    """The error says which prompt and why."""
    with pytest.raises(ValueError, match=message):
        await engine.generate(prompts, rollouts_per_prompt=rollouts, sampling=Sampling(max_response_tokens=8))


async def test_a_sampling_that_the_server_refuses_is_an_error_in_its_words(engine: VllmHttpEngine) -> None:
    """It is no server that is away."""
    with pytest.raises(ValueError, match="temperature must be in"):
        await engine.generate(
            PROMPTS[:1], rollouts_per_prompt=1, sampling=Sampling(max_response_tokens=8, temperature=3)
        )


async def test_weights_that_vllm_cannot_read_are_refused_before_it_sees_them(
    engine: VllmHttpEngine, folders: Folders, tmp_path: Path
) -> None:
    """A vLLM that fails to load weights dies of it, so the folder is looked at first; the old weights stay."""
    await engine.load_weights(folders[1], 1)
    with pytest.raises(FileNotFoundError, match="absent"):
        await engine.load_weights(tmp_path / "absent", 2)
    with pytest.raises(ValueError, match="not a Hugging Face model folder"):
        await engine.load_weights(tmp_path, 2)
    (result,) = await engine.generate(PROMPTS[:1], rollouts_per_prompt=1, sampling=Sampling(max_response_tokens=2))
    assert engine.policy_version == result.policy_version_max == 1
