"""`make bench`: measure what is missing, then write the tables and the pictures."""

import argparse
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Final

from rich.console import Console

from groupreplay_demo.children import INTERRUPTS
from service.machine import Machine
from service.measured import read_rounds
from service.peer import PEERS, is_installed
from service.report import write_report
from service.runner import OtherEffortError, Runner
from service.scenarios import SCENARIOS, Scenario
from service.stage import Effort

_WHOLE: Final = Effort(seconds=3.0, rounds=7)
_QUICK: Final = Effort(seconds=0.8, rounds=3, large_batch=256, large_table=100_000, atropos_groups=16)


def main() -> int:
    """Run the benchmark from the command line."""
    arguments = parse_arguments()
    for number in INTERRUPTS:
        signal.signal(number, _interrupt)
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    runner = Runner(folder=arguments.folder, effort=effort_of(arguments), console=console)
    again = arguments.again and not arguments.report and runner.has_finished(scenarios_of(arguments))
    if arguments.anew or again:
        runner.forget()
    for peer in PEERS:
        if not is_installed(peer):
            console.print(f"without {peer}: `make bench-peers` installs it")
    try:
        rounds = (
            list(read_rounds(runner.rounds_file).values()) if arguments.report else runner.run(scenarios_of(arguments))
        )
    except KeyboardInterrupt:
        console.print(f"interrupted; the same command goes on with what is not in {runner.rounds_file}")
        return 130
    except OtherEffortError as error:
        console.print(str(error), markup=False)
        return 1
    begun = runner.begun()
    if begun is None or not rounds:
        console.print(f"no finished round in {runner.rounds_file}")
        return 1
    write_report(rounds, arguments.folder, Machine.here(begun.load_before, rounds), begun.effort, console)
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def effort_of(arguments: argparse.Namespace) -> Effort:
    """Return how long what the command line asks for may take."""
    effort = _QUICK if arguments.quick else _WHOLE
    return replace(effort, seconds=arguments.seconds or effort.seconds, rounds=arguments.rounds or effort.rounds)


def scenarios_of(arguments: argparse.Namespace) -> list[Scenario]:
    """Return what the command line asks for."""
    if arguments.only:
        return [scenario for scenario in SCENARIOS if scenario.name in arguments.only]
    return [scenario for scenario in SCENARIOS if scenario.quick or not arguments.quick]


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    names = [scenario.name for scenario in SCENARIOS]
    parser.add_argument("--folder", type=Path, default=Path("runs/bench"), help="results; the same again goes on")
    parser.add_argument("--quick", action="store_true", help="the goals only, on smaller tables: minutes")
    parser.add_argument("--only", nargs="+", choices=names, metavar="SCENARIO", help=", ".join(names))
    parser.add_argument("--seconds", type=float, help="of each trial (default: 3, quick 0.8)")
    parser.add_argument("--rounds", type=int, help="of each scenario (default: 7, quick 3)")
    parser.add_argument("--anew", action="store_true", help="throw away what was measured before")
    parser.add_argument("--again", action="store_true", help="the same, where nothing of it is missing")
    parser.add_argument("--report", action="store_true", help="only write tables and pictures of what is finished")
    arguments = parser.parse_args()
    if min(it for it in (arguments.seconds, arguments.rounds, 1) if it is not None) <= 0:
        parser.error("--seconds and --rounds must be above 0")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
