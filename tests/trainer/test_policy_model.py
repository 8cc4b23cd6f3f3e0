"""The model in training says of a token what the engine said when it sampled it."""
# ruff: noqa: N806 - tensor shapes as suffixes

from pathlib import Path

import numpy as np
import pytest
import torch

from groupreplay_generator.engines.base import Sampling
from groupreplay_generator.engines.torch_engine import TorchEngine
from groupreplay_trainer.policy_model import TinyLMPolicy, load_policy_model, score_next_tokens, score_tokens


@pytest.mark.parametrize("temperature", [1.0, 0.6])
async def test_logprobs_at_the_sampling_temperature_are_the_behaviour_logprobs(
    model: TinyLMPolicy, tmp_path: Path, temperature: float
) -> None:
    """With the same weights and temperature every recomputed log probability is the engine's, EOS included."""
    model.save(tmp_path / "m.safetensors")
    sampling = Sampling(max_response_tokens=8, temperature=temperature, seed=1)
    async with TorchEngine(tmp_path / "m.safetensors") as engine:
        results = await engine.generate(["1+2=", "30"], rollouts_per_prompt=64, sampling=sampling)
    stopped = 0
    for result in results:
        for completion in result.completions:
            tokens = [*result.prompt_token_ids.tolist(), *completion.token_ids.tolist()]
            token_ids_BT = torch.tensor([tokens + [0] * (13 - len(tokens))])
            with torch.no_grad():
                scores = model.score(token_ids_BT, token_ids_BT != 0, temperature=temperature)
            recomputed = scores.logprobs_BT[0, len(result.prompt_token_ids) : len(tokens)].numpy()
            np.testing.assert_allclose(recomputed, completion.behaviour_logprobs, atol=2e-5, rtol=1e-5)
            stopped += completion.finish_reason == "stop"
    assert stopped > 0


def test_scores_stand_at_the_column_of_their_own_token() -> None:
    """Column t holds the log probability of token t; column 0, which nothing precedes, is 0."""
    logits_BTV = torch.tensor([[[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]]])
    scores = score_tokens(logits_BTV, torch.tensor([[0, 2, 1]]), temperature=2.0)
    expected = (logits_BTV[0] / 2).log_softmax(-1)
    torch.testing.assert_close(
        scores.logprobs_BT, torch.stack([torch.tensor(0.0), expected[0, 2], expected[1, 1]])[None]
    )
    entropy = -(expected.exp() * expected).sum(-1)
    torch.testing.assert_close(scores.entropy_BT[0, 1:], entropy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (0.7, -0.3)], ids=str)
def test_the_gradient_of_scores_is_what_torch_derives(dtype: torch.dtype, weights: tuple[float, float]) -> None:
    """Of log probability, of entropy, and of both; in the dtype of the logits."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 9, generator=generator).mul_(3).to(dtype).requires_grad_()
    next_ids = torch.randint(9, (2, 5), generator=generator)
    of_logprob, of_entropy = torch.randn(2, 2, 5, generator=generator) * torch.tensor(weights)[:, None, None]
    found = score_next_tokens(logits, next_ids, temperature=0.7)
    distribution = torch.distributions.Categorical(logits=logits.float() / 0.7)
    expected = distribution.log_prob(next_ids), distribution.entropy()  # type: ignore[no-untyped-call]
    gradients = []
    for logprob, entropy in (found, expected):
        (gradient,) = torch.autograd.grad((of_logprob * logprob + of_entropy * entropy).sum(), logits)
        gradients.append(gradient)
    torch.testing.assert_close(found, expected)
    assert gradients[0].dtype is dtype
    torch.testing.assert_close(*gradients)


def test_the_same_weights_give_the_same_logprobs_twice(model: TinyLMPolicy) -> None:
    """There is no dropout in training, so proximal and current agree before the first update."""
    token_ids_BT = torch.tensor([[2, 3, 4, 5]])
    scores = [model.score(token_ids_BT, token_ids_BT > 0, temperature=1.0).logprobs_BT for _ in range(2)]
    assert torch.equal(*scores)
    assert scores[0].requires_grad


def test_a_temperature_of_zero_is_refused() -> None:
    """Greedy responses have no distribution."""
    with pytest.raises(ValueError, match="temperature 0"):
        score_tokens(torch.zeros(1, 1, 2), torch.zeros(1, 2, dtype=torch.long), temperature=0)


def test_a_model_can_be_loaded_by_path_and_refuses_other_weights(model: TinyLMPolicy, tmp_path: Path) -> None:
    """`load_policy_model` reads what `save` wrote; weights of another shape are an error."""
    model.save(tmp_path / "m.safetensors")
    loaded = load_policy_model(str(tmp_path / "m.safetensors"))
    assert all(torch.equal(tensor, loaded.weights()[name]) for name, tensor in model.weights().items())
    with pytest.raises(ValueError, match="do not fit"):
        loaded.load_weights({"nothing": torch.zeros(1)})
    with pytest.raises(FileNotFoundError):
        load_policy_model(str(tmp_path / "absent.safetensors"))
