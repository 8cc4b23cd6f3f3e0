"""Runs what is missing of a plan, round by round."""

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from service.measured import Measured, Round, append_round, read_rounds
from service.peer import is_installed
from service.scenarios import Scenario
from service.stage import Effort, Stage

ROUNDS_FILE: Final = "rounds.jsonl"
BEGUN_FILE: Final = "begun.json"


class OtherEffortError(ValueError):
    """The folder has rounds of another effort, whose numbers cannot stand beside new ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """What the rounds of a folder have in common."""

    effort: Effort
    load_before: float
    """Load average of the last minute when the first of them began."""


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

    def forget(self) -> None:
        """Throw away what was measured, and nothing else that the folder may hold."""
        for name in (ROUNDS_FILE, BEGUN_FILE):
            (self.folder / name).unlink(missing_ok=True)

    def begun(self) -> Begun | None:
        """Return how the rounds of the folder were begun; None = nothing was."""
        path = self.folder / BEGUN_FILE
        if not path.exists():
            return None
        fields = json.loads(path.read_text())
        return Begun(effort=Effort(**fields["effort"]), load_before=fields["load_before"])

    def run(self, scenarios: Sequence[Scenario]) -> list[Round]:
        """Run the rounds that are missing, the first of every scenario before the second of any; return all.

        Raises:
            OtherEffortError: those of the folder are of another effort, but for their number.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._begin()
        wanted, missing = self._wanted(scenarios), self._missing(scenarios)
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

    def has_finished(self, scenarios: Sequence[Scenario]) -> bool:
        """Whether the folder has all rounds of these scenarios, of this effort."""
        begun = self.begun()
        return begun is not None and begun.effort == self.effort and not self._missing(scenarios)

    def _wanted(self, scenarios: Sequence[Scenario]) -> list[tuple[Scenario, int]]:
        return [
            (scenario, number)
            for number in range(self.effort.rounds)
            for scenario in scenarios
            if number < (scenario.rounds or self.effort.rounds)
        ]

    def _missing(self, scenarios: Sequence[Scenario]) -> list[tuple[Scenario, int]]:
        done = read_rounds(self.rounds_file)
        return [
            (scenario, number) for scenario, number in self._wanted(scenarios) if (scenario.name, number) not in done
        ]

    def _begin(self) -> None:
        before = self.begun()
        if before is not None and replace(before.effort, rounds=self.effort.rounds) != self.effort:
            raise OtherEffortError(
                f"{self.folder} has rounds of {before.effort}, not of {self.effort}: "
                "pass --anew to throw them away, or another --folder"
            )
        load_before = os.getloadavg()[0] if before is None else before.load_before
        begun = Begun(effort=self.effort, load_before=load_before)
        (self.folder / BEGUN_FILE).write_text(json.dumps(asdict(begun)) + "\n")

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
