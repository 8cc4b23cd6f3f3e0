"""Settings that cannot work are refused before anything starts."""

import subprocess
import sys

import pytest

from groupreplay import Durability, Fill, InvalidRequestError
from groupreplay_trainer.loss import Objective
from groupreplay_trainer.settings import TrainerSettings
from groupreplay_trainer.trainer import update_settings


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
def test_an_algorithm_is_a_fill_rule_and_an_objective(algorithm: str, fill: Fill, objective: Objective) -> None:
    """Each arm of the ablation is configuration."""
    settings = TrainerSettings(algorithm=algorithm)  # type: ignore[arg-type]
    assert settings.table_config().fill is fill
    assert update_settings(settings).loss.objective is objective


def test_the_presets_differ_in_the_cap() -> None:
    """Faithful is uncapped, robust truncates at 2."""
    assert update_settings(TrainerSettings()).loss.weight_cap is None
    assert update_settings(TrainerSettings(preset="robust")).loss.weight_cap == 2.0


def test_replay_holds_four_batches_by_default() -> None:
    """The capacity follows the batch size unless it is given."""
    assert TrainerSettings(batch_size=8).table_config().replay_capacity == 32
    assert TrainerSettings(batch_size=8, replay_capacity=5).table_config().replay_capacity == 5


def test_commits_are_as_durable_as_asked() -> None:
    """The table that the trainer creates says it, and so does the command line."""
    assert TrainerSettings().table_config().durability is Durability.MEMORY
    assert TrainerSettings(durability="aof").table_config().durability is Durability.AOF


def test_lease_ids_are_named_after_the_step() -> None:
    """A restarted trainer asks for the same lease."""
    assert TrainerSettings(trainer_id="t0").lease_id(12) == "t0-000012"


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"minibatches": 0},
        {"lr": 0.0},
        {"temperature": 0.0},
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


def test_the_command_line_is_described_without_loading_torch() -> None:
    """`groupreplay train --help` is quick because torch is imported only to train."""
    script = "import groupreplay_trainer.command, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
