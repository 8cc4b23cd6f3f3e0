"""Rollouts may share a row only where they cannot see each other."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from trainer.hf_models import llama_config, write_model
from transformers import Mamba2Config

from groupreplay_trainer.policy_model import ModelOptions, load_policy_model

PACKED = ModelOptions(dtype="float32", device="cpu", packing="packed")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_gradients_of_packed_rollouts_are_those_of_padded_ones(tmp_path: Path, attention: str) -> None:
    """The layout changes neither scores nor gradients, for any attention implementation that is here."""
    folder = write_model(tmp_path / "start", llama_config())
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(12) < torch.tensor([12, 3, 1, 7])[:, None]
    token_ids = torch.randint(3, 64, mask.shape, generator=generator).masked_fill(~mask, 0)
    found = []
    for packing in ("padded", "packed"):
        options = ModelOptions(dtype="float32", device="cpu", packing=packing, attention=attention)
        model = load_policy_model(str(folder), options)
        scores = model.score(token_ids, mask, temperature=1.0)
        weighted = (scores.logprobs_BT * torch.linspace(-1, 1, 12) + 0.1 * scores.entropy_BT)[mask].sum()
        found.append((scores.logprobs_BT, torch.autograd.grad(weighted, model.parameters())))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)


def test_a_change_in_one_packed_rollout_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    """Not a digit of a score depends on what else is in the row."""
    model = load_policy_model(str(write_model(tmp_path / "start", llama_config())), PACKED)
    token_ids = torch.randint(3, 64, (3, 6), generator=torch.Generator().manual_seed(0))
    other = token_ids.clone()
    other[0] = other[0].flip(0)
    mask = torch.ones_like(token_ids).bool()
    first, second = (model.score(it, mask, temperature=1.0).logprobs_BT for it in (token_ids, other))
    assert torch.equal(first[1:], second[1:])
    assert not torch.equal(first[0], second[0])


def test_a_model_that_keeps_a_state_along_the_row_is_not_packed(tmp_path: Path) -> None:
    """A state space model reads on across the border between two rollouts: packed it is refused, padded it works."""
    config = Mamba2Config(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=1,
        state_size=8,
        num_heads=4,
        head_dim=16,
        n_groups=1,
        chunk_size=8,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=1,
    )
    folder = write_model(tmp_path / "start", config)
    with pytest.raises(ValueError, match="share a row see each other; set packing to padded"):
        load_policy_model(str(folder), replace(PACKED, attention="eager"))
    model = load_policy_model(str(folder), replace(PACKED, attention="eager", packing="padded"))
    token_ids = torch.randint(3, 64, (2, 6), generator=torch.Generator().manual_seed(0))
    scores = model.score(token_ids, torch.ones_like(token_ids).bool(), temperature=1.0)
    assert scores.logprobs_BT[:, 1:].max() < 0


def test_a_tinylm_is_not_packed() -> None:
    """Its attention is one triangle; it says so instead of training on wrong scores."""
    with pytest.raises(ValueError, match="set packing to padded"):
        load_policy_model("builtin:addition", PACKED)
