"""Scoring of responses: by default in processes of its own, so that no verifier can stop or end the generator."""

from groupreplay_generator.scoring.scorer import Scorer
from groupreplay_generator.scoring.verdict import RewardFailure

__all__ = ["RewardFailure", "Scorer"]
