"""Groups with images are trained on with their images."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from groupreplay import Batch, DeliveredGroup, GroupSource, Rollout, RolloutGroup
from groupreplay.torch.collate import collate
from groupreplay_generator.engines import EngineResult, Sampling
from groupreplay_generator.engines.torch_engine import TorchEngine
from groupreplay_generator.tasks import Problem, create_task
from groupreplay_generator.tasks.geometry import GeometryAnswer
from groupreplay_tinylm import CharTokenizer, TinyLM, TinyLMConfig, VisionConfig
from groupreplay_trainer.parts import update_settings
from groupreplay_trainer.policy_model import TinyLMPolicy, load_policy_model
from groupreplay_trainer.sections import OptimizerSettings
from groupreplay_trainer.settings import TrainerSettings
from groupreplay_trainer.update import PolicyUpdater

TASK = create_task("geometry-tiny", seed=3)
MakeBatch = Callable[..., Batch]


@pytest.fixture
def seeing() -> TinyLMPolicy:
    """Return a freshly initialised model that sees the images of geometry-tiny, the same for every test."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vision = VisionConfig(image_size=24, patch_size=8)
        config = TinyLMConfig(
            vocab_size=CharTokenizer().vocab_size, layers=1, width=32, heads=2, max_positions=16, vision=vision
        )
        return TinyLMPolicy(TinyLM(config))


def deliver(problem: Problem[GeometryAnswer], result: EngineResult, rewards: list[float], name: str) -> DeliveredGroup:
    """Return the group of an engine's result, with the problem's image, as a generator makes it."""
    rollouts = [
        Rollout(token_ids=completion.token_ids, behaviour_logprobs=completion.behaviour_logprobs, reward=reward)
        for completion, reward in zip(result.completions, rewards, strict=True)
    ]
    group = RolloutGroup.from_rollouts(
        rollouts,
        group_id=name,
        prompt_id=problem.prompt_id,
        prompt_token_ids=result.prompt_token_ids,
        policy_version=0,
        columns={"image": problem.image},
    )
    return DeliveredGroup(
        group=group,
        source=GroupSource.FRESH,
        staleness=0,
        times_sampled=1,
        probability=1.0,
        importance_weight=1.0,
        redeliveries=0,
    )


async def sample(
    engine: TorchEngine, problems: list[Problem[GeometryAnswer]], *, rollouts: int, seed: int
) -> list[EngineResult]:
    """Sample responses of one digit or two."""
    return await engine.generate(
        [problem.prompt_text for problem in problems],
        images=[problem.image for problem in problems if problem.image is not None],
        rollouts_per_prompt=rollouts,
        sampling=Sampling(max_response_tokens=2, seed=seed),
    )


async def test_a_trainer_finds_the_log_probabilities_that_were_sampled_with_the_image(
    seeing: TinyLMPolicy, make_batch: MakeBatch, tmp_path: Path
) -> None:
    """Every ratio starts at 1, in whatever order minibatches take the rows; with another image it does not."""
    seeing.save(tmp_path / "policy.safetensors")
    problems = [TASK.problem(index, "train") for index in range(4)]
    async with TorchEngine(tmp_path / "policy.safetensors") as engine:
        results = await sample(engine, problems, rollouts=3, seed=1)
    delivered = [
        deliver(problem, result, [1.0, 0.0, 0.0], f"g{index}")
        for index, (problem, result) in enumerate(zip(problems, results, strict=True))
    ]
    batch = collate(make_batch(delivered), pad_token_id=0, max_tokens=seeing.max_tokens)
    assert batch.images_GHWC.shape == (4, 24, 24, 1)
    rows_N = torch.tensor([7, 0, 11, 3])
    for piece in (batch, batch.select(rows_N)):
        images_BHWC = piece.row_images()
        scores = seeing.score(piece.token_ids_BT, piece.attention_mask_BT, temperature=1.0, images_BHWC=images_BHWC)
        mask_BT = piece.response_mask_BT
        torch.testing.assert_close(
            scores.logprobs_BT[mask_BT].detach(), piece.behaviour_logprobs_BT[mask_BT], atol=1e-4, rtol=0
        )
    assert images_BHWC is not None
    swapped = seeing.score(
        piece.token_ids_BT, piece.attention_mask_BT, temperature=1.0, images_BHWC=images_BHWC.flip(0)
    )
    assert not torch.allclose(swapped.logprobs_BT[mask_BT], piece.behaviour_logprobs_BT[mask_BT], atol=1e-3)


async def test_reward_rises_on_a_task_that_only_the_image_answers(
    seeing: TinyLMPolicy, make_batch: MakeBatch, tmp_path: Path
) -> None:
    """The prompts are all the same; a policy that did not look could be right about one of two images at most."""
    kinds = (
        problem for problem in (TASK.problem(index, "train") for index in range(400)) if "/count/" in problem.prompt_id
    )
    by_count = {problem.answer.number: problem for problem in kinds}
    problems = [by_count[1], by_count[9]]
    settings = update_settings(TrainerSettings(optimizer=OptimizerSettings(minibatches=1), preset="robust"))
    optimizer = torch.optim.AdamW(seeing.parameters(), lr=1e-2)
    updater = PolicyUpdater(seeing, optimizer, settings=settings, generator=torch.Generator().manual_seed(0))
    seeing.save(tmp_path / "policy.safetensors")
    shares = []
    async with TorchEngine(tmp_path / "policy.safetensors") as engine:
        for step in range(60):
            results = await sample(engine, problems, rollouts=32, seed=step)
            rewards = [
                [float(completion.text[:1] == str(problem.answer.number)) for completion in result.completions]
                for problem, result in zip(problems, results, strict=True)
            ]
            shares.append(np.mean(rewards))
            groups = [
                deliver(problem, result, scores, f"{step}-{index}")
                for index, (problem, result, scores) in enumerate(zip(problems, results, rewards, strict=True))
            ]
            if effective := [item for item in groups if item.group.reward_std > 0]:
                updater.update(collate(make_batch(effective), pad_token_id=0))
            seeing.save(tmp_path / "policy.safetensors")
            await engine.load_weights(tmp_path / "policy.safetensors", step + 1)
    assert np.mean(shares[:3]) < 0.2
    assert np.mean(shares[-3:]) > 0.8
    assert load_policy_model(str(tmp_path / "policy.safetensors")).max_tokens == 7


def test_groups_whose_images_differ_in_kind_are_refused(
    make_group: Callable[..., DeliveredGroup], make_batch: MakeBatch
) -> None:
    """A batch is one tensor of images, or has none."""
    plain = make_group("plain")
    small, large = (
        replace(plain, group=replace(plain.group, columns={"image": np.zeros((side, side, 1), np.uint8)}))
        for side in (8, 16)
    )
    for pair in ((plain, small), (small, large)):
        with pytest.raises(ValueError, match=r"images of different kinds \(.*uint8 \(8, 8, 1\)"):
            collate(make_batch(pair), pad_token_id=0)
    assert collate(make_batch([plain]), pad_token_id=0).row_images() is None


def test_a_policy_and_groups_that_do_not_fit_are_refused(model: TinyLMPolicy, seeing: TinyLMPolicy) -> None:
    """A policy that sees nothing is not trained to guess, nor one that sees on nothing."""
    token_ids_BT = torch.tensor([[5, 6]])
    image_BHWC = torch.zeros((1, 24, 24, 1), dtype=torch.uint8)
    with pytest.raises(ValueError, match="this model sees no images"):
        model.score(token_ids_BT, token_ids_BT > 0, temperature=1.0, images_BHWC=image_BHWC)
    with pytest.raises(ValueError, match="this model needs an image for every row"):
        seeing.score(token_ids_BT, token_ids_BT > 0, temperature=1.0)
