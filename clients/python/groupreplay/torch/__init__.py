"""Batches for trainers built on PyTorch. `pip install 'groupreplay[torch]'`; nothing else in the SDK needs torch."""

from groupreplay.torch.advantages import AdvantageEstimator, group_advantages
from groupreplay.torch.collate import TrainingBatch, collate
from groupreplay.torch.dataset import GroupDataset, StepBatch

__all__ = [
    "AdvantageEstimator",
    "GroupDataset",
    "StepBatch",
    "TrainingBatch",
    "collate",
    "group_advantages",
]
