"""The torch engine: what it says it sampled is what it sampled.

Shape legend: T tokens, V vocabulary.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import torch

from groupreplay_generator.engines import Completion, Engine, EngineResult, Sampling
from groupreplay_generator.engines.torch_engine import TorchEngine
from groupreplay_tinylm import CharTokenizer, TinyLM, TinyLMConfig, load_checkpoint, save_checkpoint

PROMPTS = ("1+2=", "123+45=", "7,8,9=24:", "0+0=")
TOKENIZER = CharTokenizer()


def write_checkpoint(path: Path, *, seed: int, vocab_size: int = TOKENIZER.vocab_size) -> Path:
    """Write a small model with random weights, sharp enough that tokens differ in probability."""
    torch.manual_seed(seed)
    model = TinyLM(TinyLMConfig(vocab_size=vocab_size, layers=2, width=32, heads=2, max_positions=48))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    save_checkpoint(path, model)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights to sample from."""
    return write_checkpoint(tmp_path_factory.mktemp("weights") / "one.safetensors", seed=0)


@pytest.fixture
async def engine(checkpoint: Path) -> AsyncIterator[TorchEngine]:
    """An open engine."""
    async with TorchEngine(checkpoint, policy_version=4) as engine:
        yield engine


def recompute(model: TinyLM, result: EngineResult, completion: Completion, temperature: float) -> torch.Tensor:
    """Return the log probabilities of a completion by one forward over the whole sequence."""
    token_ids_T = torch.from_numpy(np.concatenate((result.prompt_token_ids, completion.token_ids))).long()
    with torch.no_grad():
        logprobs_TV = (model(token_ids_T[None, :-1])[0] / temperature).log_softmax(dim=-1)
    logprobs_T: torch.Tensor = logprobs_TV.gather(1, token_ids_T[1:, None])[:, 0]
    return logprobs_T[len(result.prompt_token_ids) - 1 :]


def token_ids(results: list[EngineResult]) -> list[list[int]]:
    """Return the tokens of every completion."""
    return [completion.token_ids.tolist() for result in results for completion in result.completions]


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
async def test_behaviour_logprobs_are_those_of_the_full_forward(
    engine: TorchEngine, checkpoint: Path, temperature: float
) -> None:
    """A trainer that recomputes them under the same weights finds the same numbers, so every ratio starts at 1."""
    sampling = Sampling(max_response_tokens=24, temperature=temperature, seed=1)
    model = load_checkpoint(checkpoint)
    for result in await engine.generate(PROMPTS, rollouts_per_prompt=16, sampling=sampling):
        for completion in result.completions:
            expected_T = recompute(model, result, completion, temperature)
            torch.testing.assert_close(torch.from_numpy(completion.behaviour_logprobs), expected_T, atol=1e-4, rtol=0)


async def test_results_come_in_the_order_of_the_prompts_with_their_tokens(engine: TorchEngine) -> None:
    """Each prompt gets its own completions, as many as asked for, of the version of the weights in use."""
    results = await engine.generate(PROMPTS, rollouts_per_prompt=3, sampling=Sampling(max_response_tokens=8, seed=1))
    assert [TOKENIZER.decode(result.prompt_token_ids) for result in results] == list(PROMPTS)
    assert [len(result.completions) for result in results] == [3] * len(PROMPTS)
    assert {(result.policy_version_min, result.policy_version_max) for result in results} == {(4, 4)}


async def test_a_completion_ends_in_eos_or_at_the_limit(engine: TorchEngine) -> None:
    """The finish reason, the tokens and the text tell one story."""
    results = await engine.generate(PROMPTS, rollouts_per_prompt=64, sampling=Sampling(max_response_tokens=12, seed=1))
    completions = [completion for result in results for completion in result.completions]
    assert {completion.finish_reason for completion in completions} == {"stop", "length"}
    for completion in completions:
        tokens = completion.token_ids.tolist()
        assert tokens.count(TOKENIZER.eos_id) == (completion.finish_reason == "stop")
        assert (tokens[-1] == TOKENIZER.eos_id) == (completion.finish_reason == "stop")
        assert completion.finish_reason == "stop" or len(tokens) == 12
        assert completion.text == TOKENIZER.decode(tokens)
        assert TOKENIZER.pad_id not in tokens


async def test_the_same_seed_gives_the_same_completions(engine: TorchEngine) -> None:
    """A rollout can be repeated; another seed, or none, gives other rollouts."""
    seeds = (1, 1, 2, None, None)
    runs = [
        token_ids(await engine.generate(PROMPTS, rollouts_per_prompt=8, sampling=sampling))
        for sampling in (Sampling(max_response_tokens=8, seed=seed) for seed in seeds)
    ]
    assert runs[0] == runs[1]
    assert len({str(run) for run in runs}) == len(seeds) - 1


async def test_tokens_are_drawn_with_the_probabilities_that_are_reported(engine: TorchEngine) -> None:
    """Over many rollouts each first token comes up as often as its log probability says."""
    (result,) = await engine.generate(
        ["1+2="], rollouts_per_prompt=20_000, sampling=Sampling(max_response_tokens=1, seed=1)
    )
    firsts = [
        (int(completion.token_ids[0]), float(completion.behaviour_logprobs[0])) for completion in result.completions
    ]
    probability = {token: np.exp(logprob) for token, logprob in firsts}
    counts = np.bincount([token for token, _ in firsts], minlength=TOKENIZER.vocab_size)
    for token, expected in probability.items():
        deviation = np.sqrt(expected * (1 - expected) / len(firsts))
        assert abs(counts[token] / len(firsts) - expected) < 5 * deviation
    assert sum(probability.values()) == pytest.approx(1, abs=1e-3)


async def test_temperature_zero_takes_the_most_likely_token(engine: TorchEngine, checkpoint: Path) -> None:
    """Greedy rollouts of a prompt are all the same, and certain."""
    sampling = Sampling(max_response_tokens=8, temperature=0)
    model = load_checkpoint(checkpoint)
    for result in await engine.generate(PROMPTS, rollouts_per_prompt=2, sampling=sampling):
        first, second = result.completions
        assert first.token_ids.tolist() == second.token_ids.tolist()
        assert not first.behaviour_logprobs.any()
        tokens_T = torch.from_numpy(np.concatenate((result.prompt_token_ids, first.token_ids))).long()
        most_likely_T = model(tokens_T[None, :-1])[0].argmax(dim=-1)[len(result.prompt_token_ids) - 1 :]
        assert most_likely_T.tolist() == first.token_ids.tolist()


async def test_new_weights_are_used_from_the_next_call_on(engine: TorchEngine, tmp_path: Path) -> None:
    """After a reload the completions, their log probabilities and their version are those of the new weights."""
    sampling = Sampling(max_response_tokens=8, seed=1)
    before = await engine.generate(PROMPTS, rollouts_per_prompt=2, sampling=sampling)
    await engine.load_weights(write_checkpoint(tmp_path / "two.safetensors", seed=1), 5)
    after = await engine.generate(PROMPTS, rollouts_per_prompt=2, sampling=sampling)
    assert engine.policy_version == 5
    assert {result.policy_version_min for result in after} == {5}
    assert token_ids(before) != token_ids(after)


async def test_calls_under_way_during_a_reload_keep_one_version(
    engine: TorchEngine, checkpoint: Path, tmp_path: Path
) -> None:
    """However a reload falls, every completion was sampled with the weights whose version it carries."""
    newer = write_checkpoint(tmp_path / "two.safetensors", seed=1)
    models = {4: load_checkpoint(checkpoint), 5: load_checkpoint(newer)}
    sampling = Sampling(max_response_tokens=16, seed=1)
    async with asyncio.TaskGroup() as tasks:
        calls = [tasks.create_task(engine.generate(PROMPTS, rollouts_per_prompt=8, sampling=sampling))]
        tasks.create_task(engine.load_weights(newer, 5))
        calls.append(tasks.create_task(engine.generate(PROMPTS, rollouts_per_prompt=8, sampling=sampling)))
    for result in (result for call in calls for result in call.result()):
        assert result.policy_version_min == result.policy_version_max
        expected_T = recompute(models[result.policy_version_min], result, result.completions[0], 1.0)
        sampled_T = torch.from_numpy(result.completions[0].behaviour_logprobs)
        torch.testing.assert_close(sampled_T, expected_T, atol=1e-4, rtol=0)


async def test_weights_that_cannot_be_used_leave_the_engine_as_it_was(engine: TorchEngine, tmp_path: Path) -> None:
    """A bad publication is an error for whoever announced it, and sampling goes on."""
    with pytest.raises(FileNotFoundError):
        await engine.load_weights(tmp_path / "absent.safetensors", 5)
    with pytest.raises(ValueError, match=r"vocabulary of 30 tokens, but the tokenizer has \d+"):
        await engine.load_weights(write_checkpoint(tmp_path / "wide.safetensors", seed=1, vocab_size=30), 5)
    with pytest.raises(ValueError, match="policy_version must be >= 0, got -1"):
        await engine.load_weights(tmp_path / "absent.safetensors", -1)
    assert engine.policy_version == 4
    assert await engine.generate(PROMPTS, rollouts_per_prompt=1, sampling=Sampling(max_response_tokens=2))


async def test_an_engine_that_is_not_open_says_so(checkpoint: Path) -> None:
    """Forgetting `async with`, or sampling after it, is explained."""
    engine = TorchEngine(checkpoint)
    with pytest.raises(RuntimeError, match="not open"):
        await engine.generate(PROMPTS, rollouts_per_prompt=1, sampling=Sampling(max_response_tokens=2))
    async with engine:
        pass
    with pytest.raises(RuntimeError, match="not open"):
        await engine.generate(PROMPTS, rollouts_per_prompt=1, sampling=Sampling(max_response_tokens=2))


@pytest.mark.parametrize(
    ("prompts", "rollouts", "message"),
    [
        ([""], 1, "prompt '' has 0 tokens; with max_response_tokens 8 this model takes 1 to 40"),
        (["1" * 41], 1, "has 41 tokens"),
        (["what?"], 1, "character 'w'"),
        (["1+1="], 0, "rollouts_per_prompt must be >= 1, got 0"),
    ],
)
async def test_a_prompt_that_cannot_be_answered_is_refused(
    engine: TorchEngine, prompts: list[str], rollouts: int, message: str
) -> None:
    """The error says which prompt and why, before anything is sampled."""
    with pytest.raises(ValueError, match=message):
        await engine.generate(prompts, rollouts_per_prompt=rollouts, sampling=Sampling(max_response_tokens=8))


async def test_no_prompts_give_no_results(engine: TorchEngine) -> None:
    """An empty batch is not an error."""
    assert await engine.generate([], rollouts_per_prompt=4, sampling=Sampling(max_response_tokens=8)) == []


def test_the_torch_engine_is_an_engine(checkpoint: Path) -> None:
    """The type checker holds it to the interface that other engines share."""
    engine: Engine = TorchEngine(checkpoint, policy_version=7)
    assert engine.policy_version == 7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_response_tokens": 0}, "max_response_tokens must be >= 1, got 0"),
        ({"max_response_tokens": 1, "temperature": -0.1}, "temperature must be finite and >= 0, got -0.1"),
        ({"max_response_tokens": 1, "temperature": float("nan")}, "got nan"),
        ({"max_response_tokens": 1, "seed": -1}, r"seed must be in \[0, 2\*\*63\), got -1"),
    ],
)
def test_impossible_sampling_settings_are_refused(settings: dict[str, float], message: str) -> None:
    """A wrong setting fails where it is written down."""
    with pytest.raises(ValueError, match=message):
        Sampling(**settings)  # type: ignore[arg-type]


def test_a_completion_whose_columns_disagree_is_refused() -> None:
    """An engine that loses a log probability is caught at once and not in the loss."""
    with pytest.raises(ValueError, match="2 tokens but 1 behaviour_logprobs"):
        Completion(
            token_ids=np.zeros(2, np.int32), behaviour_logprobs=np.zeros(1, np.float32), finish_reason="stop", text=""
        )
    with pytest.raises(ValueError, match="behaviour_logprobs must be a flat float32 array, got float64"):
        Completion(token_ids=np.zeros(1, np.int32), behaviour_logprobs=np.zeros(1), finish_reason="stop", text="")  # type: ignore[arg-type]
