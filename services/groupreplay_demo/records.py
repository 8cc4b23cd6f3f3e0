"""Reads what trainer and evaluator write while they run."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class JsonLines:
    """The records of a file that another process appends to, and may cut when it resumes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> list[dict[str, Any]]:
        """Return all complete records."""
        if not self._path.exists():
            return []
        text = self._path.read_text()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


@dataclass(slots=True, kw_only=True)
class RunRecords:
    """One run so far."""

    algorithm: str
    rollouts_per_prompt: int
    steps: list[dict[str, Any]] = field(default_factory=list)
    """Lines of train.jsonl."""
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    """Lines of evaluations.jsonl."""
    seconds: float = 0.0
    lost_groups: int = 0
    trained_twice: int = 0
    kills: list[str] = field(default_factory=list)

    @property
    def fresh(self) -> int:
        """Fresh groups consumed."""
        return sum(step["fresh"] for step in self.steps)

    @property
    def rollouts(self) -> int:
        """Rollouts generated for the steps so far."""
        return self.fresh * self.rollouts_per_prompt

    @property
    def effective_share(self) -> float:
        """Share of the fresh groups that have reward variance."""
        effective: int = sum(step["fresh_effective"] for step in self.steps)
        return effective / max(1, self.fresh)

    @property
    def refilled(self) -> int:
        """Slots filled from replay."""
        return sum(step["refilled"] for step in self.steps)

    @property
    def staleness_mean(self) -> float:
        """Policy versions between sampling and use, mean over refilled slots; 0 without replay."""
        total: float = sum(step["refilled"] * (step["replay_staleness_mean"] or 0) for step in self.steps)
        return total / max(1, self.refilled)

    def accuracy(self, index: int) -> float | None:
        """Held-out accuracy of the first (0) or newest (-1) evaluation."""
        return float(self.evaluations[index]["accuracy"]) if self.evaluations else None

    def summary(self) -> dict[str, Any]:
        """Return what summary.json holds."""
        return {
            "algorithm": self.algorithm,
            "seconds": round(self.seconds, 1),
            "rollouts": self.rollouts,
            "accuracy_start": self.accuracy(0),
            "accuracy_end": self.accuracy(-1),
            "effective_share": round(self.effective_share, 4),
            "refilled_slots": self.refilled,
            "staleness_mean": round(self.staleness_mean, 3),
            "lost_groups": self.lost_groups,
            "trained_twice": self.trained_twice,
            "steps": len(self.steps),
            "kills": self.kills,
        }
