"""Settings that cannot work are refused before anything starts."""

import subprocess
import sys

import pytest

from groupreplay import Durability, Fill, InvalidRequestError, Sampler
from groupreplay_trainer.algorithms import Algorithm
from groupreplay_trainer.loss import Objective, WeightLevel
from groupreplay_trainer.parts import update_settings
from groupreplay_trainer.sections import LossSettings, OptimizerSettings, ReplaySettings
from groupreplay_trainer.settings import TrainerSettings


@pytest.mark.parametrize(
    ("algorithm", "fill", "objective"),
    [
        ("popo", Fill.REPLAY, Objective.DECOUPLED),
        ("popo-pi-old", Fill.REPLAY, Objective.PROXIMAL),
        ("popo-mu", Fill.REPLAY, Objective.COUPLED),
        ("grpo", Fill.KEEP, Objective.PROXIMAL),
        ("grpo-filter", Fill.NONE, Objective.PROXIMAL),
        ("dapo", Fill.RESAMPLE, Objective.PROXIMAL),
    ],
)
def test_an_algorithm_is_a_fill_rule_and_an_objective(algorithm: Algorithm, fill: Fill, objective: Objective) -> None:
    """Each arm of the ablation is configuration."""
    settings = TrainerSettings(algorithm=algorithm)
    assert settings.table_config().fill is fill
    assert update_settings(settings).loss.objective is objective


def test_arms_that_replay_otherwise_differ_in_the_table_alone() -> None:
    """Their loss is that of popo; the table keeps enough to draw from."""
    stale, ineffective, kl = (
        TrainerSettings(algorithm=name, batch_size=8) for name in ("popo-stale", "popo-ineff", "popo-kl")
    )
    assert (stale.table_config().min_staleness, stale.table_config().replay_capacity) == (10, 96)
    assert ineffective.table_config().replay_ineffective
    assert kl.table_config().sampler is Sampler.MIN_DIVERGENCE
    for settings in (stale, ineffective, kl):
        assert settings.loss_config() == TrainerSettings().loss_config()
        assert settings.table_config().fill is Fill.REPLAY


def test_what_an_algorithm_asks_for_can_be_overridden() -> None:
    """Any sampler, gate or objective goes with any algorithm."""
    replay = ReplaySettings(sampler="uniform", min_staleness=2, ineffective=False)
    loss = LossSettings(objective="decoupled", weight_level="sequence-mean", weight_bounds=(0.5, 5.0), veto_below=1e-4)
    settings = TrainerSettings(algorithm="popo-ineff", replay=replay, loss=loss)
    config = settings.table_config()
    assert (config.sampler, config.min_staleness, config.replay_ineffective) == (Sampler.UNIFORM, 2, False)
    assert settings.loss_config().weight_level is WeightLevel.SEQUENCE_MEAN
    assert TrainerSettings(algorithm="grpo", loss=loss).loss_config().weight_bounds == (0.5, 5.0)


def test_the_presets_differ_in_the_cap() -> None:
    """Faithful is uncapped, robust truncates at 2, and a cap that is given counts."""
    assert TrainerSettings().loss_config().weight_cap is None
    assert TrainerSettings(preset="robust").loss_config().weight_cap == 2.0
    assert TrainerSettings(preset="robust", loss=LossSettings(weight_cap=5.0)).loss_config().weight_cap == 5.0


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1.0, 2.0, 3.0, 3.0, 3.0, 3.0, 3.0]),
        ("linear", [1.0, 2.0, 3.0, 2.4, 1.8, 1.2, 0.6]),
        ("cosine", [1.0, 2.0, 3.0, 2.648528, 1.8, 0.951472, 0.6]),
    ],
)
def test_the_learning_rate_depends_on_the_step_alone(schedule: str, expected: list[float]) -> None:
    """It rises in the warm-up, is highest in the step after it, and ends at its final share in the last step."""
    settings = OptimizerSettings(lr=3.0, schedule=schedule, warmup_steps=2, final_lr_ratio=0.2)  # type: ignore[arg-type]
    assert [settings.lr_at(step, steps=7) for step in range(1, 8)] == pytest.approx(expected, abs=1e-6)
    assert settings.lr_at(8, steps=7) == pytest.approx(expected[-1])


def test_a_schedule_of_one_step_is_its_highest_rate() -> None:
    """Nothing is divided by zero."""
    assert OptimizerSettings(lr=3.0, schedule="linear").lr_at(1, steps=1) == 3.0


def test_replay_holds_four_batches_by_default() -> None:
    """The capacity follows the batch size unless it is given."""
    assert TrainerSettings(batch_size=8).table_config().replay_capacity == 32
    assert TrainerSettings(batch_size=8, replay=ReplaySettings(capacity=5)).table_config().replay_capacity == 5


def test_commits_are_as_durable_as_asked() -> None:
    """The table that the trainer creates says it, and so does the command line."""
    assert TrainerSettings().table_config().durability is Durability.MEMORY
    assert TrainerSettings(replay=ReplaySettings(durability="aof")).table_config().durability is Durability.AOF


def test_lease_ids_are_named_after_the_step() -> None:
    """A restarted trainer asks for the same lease."""
    assert TrainerSettings(trainer_id="t0").lease_id(12) == "t0-000012"


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"lease_s": 0.5},
        {"keep_weights": 1},
        {"threads": 0},
        {"trainer_id": "a/b"},
        {"trainer_id": "x" * 125},
        {"algorithm": "grpo", "preset": "robust"},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    """The message names the setting, or the lease that it would name."""
    with pytest.raises(InvalidRequestError, match=rf"{next(iter(wrong))}|lease id|robust"):
        TrainerSettings(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("section", "wrong"),
    [
        (OptimizerSettings, {"minibatches": 0}),
        (OptimizerSettings, {"lr": 0.0}),
        (OptimizerSettings, {"lr": float("nan")}),
        (OptimizerSettings, {"betas": (0.9, 1.0)}),
        (OptimizerSettings, {"final_lr_ratio": 1.5}),
        (OptimizerSettings, {"warmup_steps": -1}),
        (LossSettings, {"temperature": 0.0}),
        (LossSettings, {"kl_coefficient": -1.0}),
        (LossSettings, {"reference": "somewhere"}),
    ],
)
def test_sections_out_of_range_are_refused(section: type, wrong: dict[str, object]) -> None:
    """The message names the setting."""
    with pytest.raises(InvalidRequestError, match=next(iter(wrong))):
        section(**wrong)


def test_limits_on_weights_that_an_algorithm_does_not_have_are_refused() -> None:
    """They would change nothing, and their user would believe otherwise."""
    with pytest.raises(InvalidRequestError, match="weight_cap"):
        TrainerSettings(algorithm="grpo", loss=LossSettings(weight_cap=2.0))


def test_the_command_line_is_described_without_loading_torch() -> None:
    """`groupreplay train --help` is quick because torch is imported only to train."""
    script = "import groupreplay_trainer.command, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
