"""Runs what is missing of a plan, round by round."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from service.measured import Measured, Round, append_round, read_rounds
from service.peer import is_installed
from service.scenarios import Scenario
from service.stage import Effort, Stage

ROUNDS_FILE: Final = "rounds.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner:
    """Runs scenarios and keeps their rounds in a folder; the same again goes on."""

    folder: Path
    effort: Effort
    console: Console

    @property
    def rounds_file(self) -> Path:
        """Where finished rounds are."""
        return self.folder / ROUNDS_FILE

    def run(self, scenarios: Sequence[Scenario]) -> list[Round]:
        """Run the rounds that are missing, the first of every scenario before the second of any; return all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        done = read_rounds(self.rounds_file)
        wanted = [
            (scenario, number)
            for number in range(self.effort.rounds)
            for scenario in scenarios
            if number < (scenario.rounds or self.effort.rounds)
        ]
        missing = [(scenario, number) for scenario, number in wanted if (scenario.name, number) not in done]
        self.console.print(f"{len(wanted)} rounds, {len(wanted) - len(missing)} of them done before")
        with (
            tempfile.TemporaryDirectory(prefix="groupreplay-bench-") as scratch,
            Stage(Path(scratch), self.effort) as stage,
            _progress(self.console) as progress,
        ):
            bar = progress.add_task("", total=len(missing))
            for scenario, number in missing:
                progress.update(bar, description=scenario.name)
                append_round(self.rounds_file, self._round(stage, scenario, number))
                progress.advance(bar)
        return list(read_rounds(self.rounds_file).values())

    def _round(self, stage: Stage, scenario: Scenario, number: int) -> Round:
        found: dict[str, Measured] = {}
        for subject, trial in scenario.subjects.items():
            if all(is_installed(peer) for peer in scenario.peers if peer in subject.split()):
                found[subject] = trial(stage, found)
        found = {subject: numbers for subject, numbers in found.items() if numbers}
        return Round(scenario=scenario.name, number=number, measured=found, load=os.getloadavg()[0])


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:14}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )
