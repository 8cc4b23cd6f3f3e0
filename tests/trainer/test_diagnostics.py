"""Diagnostics agree with closed forms."""

import math

import numpy as np
import pytest
import torch

from groupreplay import GroupSource
from groupreplay.torch.collate import collate
from groupreplay_trainer.diagnostics import BatchMakeup, PolicyDrift, TokenTally, replay_drift
from groupreplay_trainer.loss import LossConfig, decoupled_loss
from groupreplay_trainer.step_record import diagnose


def test_drift_of_a_policy_from_itself_is_none() -> None:
    """Weights of 1: full effective sample size, no divergence."""
    drift = PolicyDrift.of(np.zeros(50))
    assert (drift.ess, drift.kl_k1, drift.kl_k3, drift.chi2) == (1, 0, 0, 0)
    assert (drift.weight_mean, drift.weight_max, drift.weight_p95, drift.weight_p99) == (1, 1, 1, 1)


def test_drift_estimates_equal_the_divergences_they_estimate() -> None:
    """On tokens in exact proportion to behaviour, k1 and k3 are KL(behaviour || proximal), chi2 and ESS follow."""
    behaviour, proximal = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    log_ratio = np.repeat(np.log(proximal / behaviour), [500, 300, 200])
    drift = PolicyDrift.of(log_ratio)
    divergence = float((behaviour * np.log(behaviour / proximal)).sum())
    chi2 = float((proximal**2 / behaviour).sum() - 1)
    assert drift.kl_k1 == pytest.approx(divergence)
    assert drift.kl_k3 == pytest.approx(divergence)
    assert drift.chi2 == pytest.approx(chi2)
    assert drift.weight_mean == pytest.approx(1)
    assert drift.ess == pytest.approx(1 / (1 + chi2))
    assert drift.weight_max == pytest.approx(2.5)


def test_drift_of_lognormal_weights_has_their_quantiles() -> None:
    """For d normal with mean -s^2/2, ESS is exp(-s^2) and KL is s^2/2."""
    s = 0.5
    d = np.random.default_rng(0).normal(-s * s / 2, s, 200_000)
    drift = PolicyDrift.of(d)
    assert drift.ess == pytest.approx(math.exp(-s * s), rel=0.01)
    assert drift.kl_k1 == pytest.approx(s * s / 2, rel=0.02)
    assert drift.weight_p95 == pytest.approx(math.exp(-s * s / 2 + 1.6449 * s), rel=0.02)
    assert drift.weight_p99 == pytest.approx(math.exp(-s * s / 2 + 2.3263 * s), rel=0.02)


def test_drift_is_taken_over_replayed_trained_tokens_only(make_group, make_batch) -> None:  # type: ignore[no-untyped-def]
    """Fresh groups, prompts, padding and masked tokens do not enter."""
    fresh = make_group("fresh")
    mask = [True, False, True, True, True, True, False, True, True]
    replay = make_group("replay", source=GroupSource.REPLAY, staleness=2, loss_mask=mask)
    rollouts = collate(make_batch([fresh, replay]), pad_token_id=0)
    shift = 0.25 * (rollouts.is_replay_B[:, None] & rollouts.response_mask_BT) + 9.0 * ~rollouts.response_mask_BT
    drift = replay_drift(rollouts, rollouts.behaviour_logprobs_BT + shift)
    assert drift is not None
    assert drift.kl_k1 == pytest.approx(-0.25, rel=1e-5)
    assert drift.weight_max == pytest.approx(math.exp(0.25), rel=1e-5)
    assert replay_drift(collate(make_batch([fresh]), pad_token_id=0), torch.zeros(3, 7)) is None


def test_makeup_says_what_a_batch_consists_of(make_group, make_batch) -> None:  # type: ignore[no-untyped-def]
    """Shares, staleness and uses are those of the delivered groups."""
    groups = [
        make_group("a", rewards=(1.0, 0.0), lengths=(2, 4)),
        make_group("b", source=GroupSource.REPLAY, staleness=1, times_sampled=2),
        make_group("c", source=GroupSource.REPLAY, staleness=4, times_sampled=3),
    ]
    batch = make_batch(groups, ineffective=3)
    makeup = BatchMakeup.of(batch, collate(batch, pad_token_id=0))
    assert makeup.effective_ratio == 0.25
    assert makeup.replay_share == pytest.approx(2 / 3)
    assert (makeup.staleness_mean, makeup.staleness_max, makeup.replay_staleness_mean) == (5 / 3, 4, 2.5)
    assert (makeup.uses_mean, makeup.uses_max) == (2.5, 3)
    assert makeup.reward_mean == 0.5
    assert (makeup.response_length_mean, makeup.response_length_max) == (3.0, 4)
    assert makeup.all_right_ratio is None


def test_all_right_and_all_wrong_are_told_apart_where_ineffective_groups_are_delivered(make_group, make_batch) -> None:  # type: ignore[no-untyped-def]
    """Under the keep rule every fresh group comes, and its kind is known."""
    rewards = [(1.0, 1.0), (0.0, 0.0), (0.0, 0.0), (1.0, 0.0)]
    groups = [make_group(f"g{i}", rewards=pair, lengths=(2, 2)) for i, pair in enumerate(rewards)]
    makeup = BatchMakeup.of(make_batch(groups), None)
    assert (makeup.all_right_ratio, makeup.all_wrong_ratio) == (0.25, 0.5)


def test_negative_advantage_share_weighs_by_tokens(make_group, make_batch) -> None:  # type: ignore[no-untyped-def]
    """A long wrong response pushes more than a short right one."""
    batch = make_batch([make_group(rewards=(1.0, 0.0), lengths=(2, 6))])
    makeup = BatchMakeup.of(batch, collate(batch, pad_token_id=0))
    assert makeup.negative_advantage_share == pytest.approx(0.75)


def test_clips_are_counted_separately_for_fresh_and_replay(make_group, make_batch) -> None:  # type: ignore[no-untyped-def]
    """A token counts for the kind of group it belongs to, once for every update."""
    groups = [
        make_group("a", rewards=(1.0, 0.0), lengths=(2, 3)),
        make_group("b", rewards=(1.0, 0.0), lengths=(1, 4), source=GroupSource.REPLAY),
    ]
    rollouts = collate(make_batch(groups), pad_token_id=0)
    proximal = torch.zeros_like(rollouts.behaviour_logprobs_BT)
    current = proximal + 0.5 * rollouts.advantages_B[:, None]
    _, metrics = decoupled_loss(
        current, proximal, proximal, rollouts.advantages_B, rollouts.response_mask_BT, config=LossConfig.faithful()
    )
    fresh, replay = TokenTally(), TokenTally()
    for _ in range(2):
        fresh.add(metrics, ~rollouts.is_replay_B)
        replay.add(metrics, rollouts.is_replay_B)
    assert (fresh.tokens, fresh.clipped_high, fresh.clipped_low) == (10, 4, 6)
    assert (replay.tokens, replay.clipped_high, replay.clipped_low) == (10, 2, 8)
    assert replay.share(replay.clipped_high) == 0.2
    assert TokenTally().share(0) is None
    shares = metrics.shares()
    assert (shares["clipped_high"], shares["clipped_low"]) == (0.3, 0.7)


def test_a_step_without_groups_reports_the_same_names(make_group, make_batch) -> None:  # type: ignore[no-untyped-def]
    """Every line of the log has the same fields, null where there is nothing to say."""
    batch = make_batch([], batch_size=4, ineffective=4)
    record = diagnose(batch, None, None).flat()
    assert record["effective_ratio"] == 0
    assert record["ess"] is None
    assert record["replay_share"] is None
    assert record["skipped_updates"] == 0
    assert {"fresh_clipped_low_share", "replay_clipped_high_share", "grad_norm_max", "staleness_max"} <= set(record)
