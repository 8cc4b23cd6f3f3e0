"""The parts of a trainer, made as its settings say."""

import torch

from groupreplay.torch.collate import MinibatchUnit
from groupreplay_trainer.policy_model import ModelOptions, PolicyModel, load_policy_model
from groupreplay_trainer.ranks import Ranks
from groupreplay_trainer.sections import OptimizerSettings
from groupreplay_trainer.settings import TrainerSettings
from groupreplay_trainer.update import UpdateSettings


def model_options(settings: TrainerSettings) -> ModelOptions:
    """Return what the settings mean for the model."""
    return ModelOptions(
        dtype=settings.model.dtype,
        device=settings.model.device,
        attention=settings.model.attention,
        activation_checkpointing=settings.memory.activation_checkpointing,
        packing=settings.memory.packing,
    )


def load_reference(settings: TrainerSettings, ranks: Ranks) -> PolicyModel | None:
    """Return the reference policy, frozen; None where the loss needs none.

    Raises:
        FileNotFoundError, ValueError: it cannot be loaded.
    """
    if not settings.loss.kl_coefficient:
        return None
    reference = load_policy_model(settings.loss.reference or settings.model.path, model_options(settings), ranks=ranks)
    for parameter in reference.parameters():
        parameter.requires_grad_(False)
    return reference


def adamw(model: PolicyModel, settings: OptimizerSettings) -> torch.optim.AdamW:
    """Return the optimizer of a model."""
    return torch.optim.AdamW(
        model.parameters(),
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    )


def update_settings(settings: TrainerSettings) -> UpdateSettings:
    """Return what the settings mean for the update."""
    return UpdateSettings(
        loss=settings.loss_config(),
        temperature=settings.loss.temperature,
        minibatches=settings.optimizer.minibatches,
        minibatch_unit=MinibatchUnit(settings.optimizer.minibatch_unit),
        tokens_at_once=settings.memory.tokens_at_once,
        max_rollouts_at_once=settings.memory.max_rollouts_at_once,
        max_grad_norm=settings.optimizer.max_grad_norm,
        entropy_coefficient=settings.loss.entropy_coefficient,
        kl_coefficient=settings.loss.kl_coefficient,
        skip_nonfinite_updates=settings.on_nonfinite == "skip-update",
    )
