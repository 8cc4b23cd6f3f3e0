"""However many tokens go through at once, and however they are laid out, the update is the same."""

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from trainer.hf_models import llama_config, qwen2_config, write_model

from groupreplay import GroupSource
from groupreplay.torch.collate import TrainingBatch, collate
from groupreplay_trainer.loss import LossConfig
from groupreplay_trainer.policy_model import ModelOptions, PolicyModel, load_policy_model
from groupreplay_trainer.update import PolicyUpdater, UpdateReport, UpdateSettings


@pytest.fixture
def batch(make_group, make_batch) -> TrainingBatch:  # type: ignore[no-untyped-def]
    """Return four groups of rollouts of 4 to 14 tokens, half of them replayed."""
    sources = [GroupSource.FRESH, GroupSource.FRESH, GroupSource.REPLAY, GroupSource.REPLAY]
    groups = [make_group(f"g{i}", lengths=(2 + i, 11 - i, 1 + i), source=source) for i, source in enumerate(sources)]
    return collate(make_batch(groups), pad_token_id=0)


def update(
    model: PolicyModel, batch: TrainingBatch, *, tokens_at_once: int, max_rollouts_at_once: int | None = None
) -> tuple[UpdateReport, list[int]]:
    """Make two plain gradient steps; return the report and how many passes there were, in a list of tokens."""
    passes: list[int] = []
    settings = UpdateSettings(
        loss=LossConfig.robust(),
        temperature=0.8,
        minibatches=2,
        tokens_at_once=tokens_at_once,
        max_rollouts_at_once=max_rollouts_at_once,
        max_grad_norm=1.0,
        entropy_coefficient=0.01,
    )
    updater = PolicyUpdater(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        settings=settings,
        generator=torch.Generator().manual_seed(0),
        on_progress=lambda: passes.append(1),
    )
    return updater.update(batch), passes


def changed_weights(model: PolicyModel, batch: TrainingBatch, **limits: Any) -> tuple[torch.Tensor, UpdateReport, int]:
    """Return the weights after an update, the report and the number of passes; the model is as it was."""
    start = {name: tensor.clone() for name, tensor in model.weights().items()}
    report, passes = update(model, batch, **limits)
    end = torch.cat([tensor.reshape(-1).clone() for tensor in model.weights().values()])
    model.load_weights(start)
    return end, report, len(passes)


@pytest.mark.parametrize(
    ("kind", "packing"),
    [("tinylm", "padded"), ("llama", "padded"), ("llama", "packed"), ("qwen2", "padded"), ("qwen2", "packed")],
)
def test_the_budget_changes_neither_loss_nor_weights(
    model: PolicyModel, batch: TrainingBatch, kind: str, packing: Literal["padded", "packed"], tmp_path: Path
) -> None:
    """One pass for each rollout gives the update of one pass for all, padded or packed."""
    if kind != "tinylm":
        config = {"llama": llama_config, "qwen2": qwen2_config}[kind]()
        folder = write_model(tmp_path / "start", config)
        model = load_policy_model(str(folder), ModelOptions(dtype="float32", device="cpu", packing=packing))
    whole, expected, fewest = changed_weights(model, batch, tokens_at_once=10_000)
    assert fewest == 3  # the proximal pass, and one for each minibatch
    for limits, least in (({"tokens_at_once": 40}, 6), ({"tokens_at_once": 1}, 24)):
        weights, report, passes = changed_weights(model, batch, **limits)
        assert passes >= least
        torch.testing.assert_close(weights, whole, atol=1e-6, rtol=1e-4)
        assert report.losses == pytest.approx(expected.losses, rel=1e-4, abs=1e-6)
        assert report.grad_norms == pytest.approx(expected.grad_norms, rel=1e-4)
    _, _, passes = changed_weights(model, batch, tokens_at_once=10_000, max_rollouts_at_once=1)
    assert passes == 24


def test_packed_passes_are_fewer_where_lengths_differ(batch: TrainingBatch, tmp_path: Path) -> None:
    """A budget holds more rollouts where none of it goes to padding."""
    folder = write_model(tmp_path / "start", llama_config())
    counts = []
    for packing in ("padded", "packed"):
        model = load_policy_model(str(folder), ModelOptions(dtype="float32", device="cpu", packing=packing))
        _, _, passes = changed_weights(model, batch, tokens_at_once=40)
        counts.append(passes)
    assert counts[1] < counts[0]
