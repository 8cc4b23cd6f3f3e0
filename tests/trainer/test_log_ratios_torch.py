"""The log ratio of every token that a trainer feeds back is the one that it trained by."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from trainer.bench import RUN, TABLE, Bench

from groupreplay import GroupFeedback, GroupSource, LogRatios, RolloutGroup
from groupreplay.log_ratios import MAX_LOG_RATIO_BYTES
from groupreplay.torch.collate import collate
from groupreplay_tinylm import TinyLM, load_checkpoint
from groupreplay_trainer.checkpoint import CheckpointFolder
from groupreplay_trainer.diagnostics import group_feedback
from groupreplay_trainer.log_ratios import with_log_ratios

HALF_PRECISION = 2.0**-11


def logprobs_of(model: TinyLM, group: RolloutGroup) -> npt.NDArray[np.float64]:
    """Return the log probability of every response token, one sequence at a time, without batch or padding."""
    found: list[float] = []
    for piece in group.response_slices():
        tokens = torch.tensor([*group.prompt_token_ids.tolist(), *group.response_token_ids[piece].tolist()])
        with torch.no_grad():
            logprobs = torch.log_softmax(model(tokens[None])[0].double(), dim=-1)
        start = len(group.prompt_token_ids)
        found += [float(logprobs[at - 1, tokens[at]]) for at in range(start, len(tokens))]
    return np.array(found)


async def stored(bench: Bench, *group_ids: str) -> dict[str, tuple[RolloutGroup, LogRatios | None]]:
    """Return groups and their log ratios as the service has them."""
    groups = await bench.client.get_groups(group_ids, run=RUN, table=TABLE, log_ratios=True)
    return {item.group.group_id: (item.group, item.log_ratios) for item in groups}


async def test_what_is_fed_back_is_the_log_probability_now_less_the_one_at_sampling(bench: Bench) -> None:
    """Of fresh and of replayed groups, under the weights before the step, against a forward pass of its own."""
    await bench.insert(bench.make_groups(4))
    await bench.train(feedback_log_ratios="all")
    published = load_checkpoint(bench.settings.weights_folder / "policy-000001.safetensors")
    found = await stored(bench, "group-000", "group-002")
    for group, ratios in found.values():
        assert ratios is not None
        assert (ratios.policy_version, ratios.step) == (1, 2)
        expected = logprobs_of(published, group) - group.behaviour_logprobs
        np.testing.assert_allclose(ratios.values, expected, rtol=HALF_PRECISION, atol=1e-5)
        assert np.abs(expected).max() > 0.1


async def test_by_default_one_group_of_each_step_is_told_and_by_off_none(bench: Bench) -> None:
    """The one that the policy has moved furthest from."""
    await bench.insert(bench.make_groups(4))
    await bench.train(feedback_log_ratios="off", steps=1)
    assert (await stored(bench, "group-000"))["group-000"][1] is None
    await bench.train()
    pages = await bench.client.list_groups(run=RUN, table=TABLE)
    kl = {group.group_id: group.kl or 0.0 for group in pages.groups}
    furthest = max(kl, key=lambda group_id: kl[group_id])
    found = await stored(bench, *kl)
    assert [group_id for group_id, (_, ratios) in found.items() if ratios is not None] == [furthest]


async def test_a_checkpoint_has_the_feedback_without_log_ratios(bench: Bench) -> None:
    """A commit after a restart goes without them; what tables draw by is there."""
    await bench.insert(bench.make_groups(2))
    trainer = await bench.train(steps=1)
    assert any(item.log_ratios is not None for item in trainer.progress.feedback)
    loaded = CheckpointFolder(bench.settings.run_dir / "checkpoints").load(1).progress.feedback
    assert loaded == tuple(trainer.progress.feedback)
    assert all(item.log_ratios is None for item in loaded)


def test_tokens_that_the_mask_leaves_out_have_none(make_group: Any, make_batch: Any) -> None:
    """NaN stands for them, so that every token of the responses has a place, whatever the padding."""
    mask = [True, False, True, True, True, True, False, True, True]
    batch = make_batch([make_group("a", lengths=(2, 5, 4)), make_group("b", loss_mask=mask)])
    rollouts = collate(batch, pad_token_id=0)
    proximal_BT = rollouts.behaviour_logprobs_BT + 0.25
    feedback = group_feedback(batch, rollouts, proximal_BT)
    _, other = with_log_ratios(feedback, ["a", "b"], rollouts, proximal_BT, which="all")
    np.testing.assert_allclose(np.asarray(other.log_ratios), np.where(mask, 0.25, np.nan), rtol=1e-3)


@pytest.mark.parametrize(("which", "expected"), [("all", ["b", "c"]), ("sample", ["b"]), ("off", [])])
def test_groups_that_do_not_fit_into_a_call_go_without(
    make_group: Any, make_batch: Any, monkeypatch: pytest.MonkeyPatch, which: Any, expected: list[str]
) -> None:
    """The step is committed all the same, with those that fit."""
    monkeypatch.setattr("groupreplay_trainer.log_ratios.MAX_LOG_RATIO_BYTES", 2 * 9)
    lengths = {"a": (4, 3, 4), "b": (1, 1, 3), "c": (2, 1, 1), "d": (1, 1, 1)}
    batch = make_batch([make_group(name, lengths=it, source=GroupSource.REPLAY) for name, it in lengths.items()])
    rollouts = collate(batch, pad_token_id=0)
    feedback = [GroupFeedback(group_id=name, kl=kl) for name, kl in zip("abcd", (0.9, 0.4, 0.3, 0.1), strict=True)]
    told = with_log_ratios(feedback, list("abcd"), rollouts, rollouts.behaviour_logprobs_BT, which=which)
    assert [item.group_id for item in told if item.log_ratios is not None] == expected
    assert [item.kl for item in told] == [0.9, 0.4, 0.3, 0.1]


def test_a_ratio_beyond_half_precision_is_its_largest_number(make_group: Any, make_batch: Any) -> None:
    """A behaviour log probability that is absurd must not keep the step from being committed."""
    batch = make_batch([make_group("a")])
    rollouts = collate(batch, pad_token_id=0)
    [item] = with_log_ratios(
        [GroupFeedback(group_id="a")], ["a"], rollouts, rollouts.behaviour_logprobs_BT + 1e9, which="all"
    )
    assert (np.asarray(item.log_ratios) == 65504).all()


def test_the_largest_call_is_made_in_a_moment(make_group: Any, make_batch: Any) -> None:
    """16 responses of 32k tokens: the values of all, none of them lost."""
    tokens = 32_768
    batch = make_batch([make_group("a", rewards=(1.0, *[0.0] * 15), lengths=(tokens,) * 16)])
    rollouts = collate(batch, pad_token_id=0)
    [item] = with_log_ratios(
        [GroupFeedback(group_id="a")], ["a"], rollouts, rollouts.behaviour_logprobs_BT - 0.5, which="sample"
    )
    assert np.asarray(item.log_ratios).nbytes == MAX_LOG_RATIO_BYTES // 2
    np.testing.assert_allclose(np.asarray(item.log_ratios, np.float32), -0.5, rtol=1e-3)
