"""`make experiment`: run what is missing, then write the tables and the pictures."""

import argparse
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import FrameType

from rich.console import Console

from experiment.arms import EXTRA, MAIN
from experiment.plan import LEARNING_RATES, TASKS, Plan
from experiment.report import write_report
from experiment.results import RUNS, read_results
from experiment.runner import Runner
from groupreplay_demo.children import INTERRUPTS

PUBLISHED = Path(__file__).resolve().parent / "published"
"""The runs behind docs/explanation/results.md, with their tables and pictures."""


def main() -> int:
    """Run the experiment from the command line."""
    arguments = parse_arguments()
    for number in INTERRUPTS:
        signal.signal(number, _interrupt)
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    if arguments.published:
        _start_from_published(arguments.folder)
    runner = Runner(folder=arguments.folder, workers=arguments.workers, console=console)
    try:
        results = read_results(runner.results_file) if arguments.report else runner.run(plan_of(arguments))
    except KeyboardInterrupt:
        console.print(f"interrupted; the same command goes on with what is not in {runner.results_file}")
        return 130
    if not results:
        console.print(f"no finished run in {runner.results_file}")
        return 1
    write_report(results, arguments.folder, console)
    return 0


def _start_from_published(folder: Path) -> None:
    """Take the published runs over, unless the folder has runs already."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / RUNS).exists():
        shutil.copy(PUBLISHED / RUNS, folder / RUNS)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def plan_of(arguments: argparse.Namespace) -> Plan:
    """Return what the command line asks for."""
    plan = Plan(
        tasks=arguments.tasks,
        arms=arguments.arms,
        extra_arms=[] if arguments.no_extra else [arm.name for arm in EXTRA],
        seeds=range(arguments.seeds),
        extra_seeds=range(min(arguments.seeds, 3)),
        rates=arguments.rates,
        steps=arguments.steps,
    )
    if not arguments.quick:
        return plan
    return replace(plan, tasks=("addition",), arms=("grpo", "popo"), extra_arms=(), seeds=range(2), rates=(1e-4,))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="make experiment", description=__doc__)
    names = [arm.name for arm in MAIN]
    parser.add_argument("--folder", type=Path, default=Path("runs/experiment"), help="results; the same again goes on")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side, one core each (default: 2)")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--arms", nargs="+", choices=names, default=names, metavar="ARM", help=", ".join(names))
    parser.add_argument(
        "--seeds", type=int, default=8, help="seeds, paired over all arms, on two checkpoints by turns (default: 8)"
    )
    parser.add_argument("--rates", nargs="+", type=float, default=list(LEARNING_RATES), help="rates to tune over")
    parser.add_argument("--steps", type=int, help="steps of every run (default: 120, on countdown3 40)")
    parser.add_argument("--no-extra", action="store_true", help="without group sizes, RLOO and generators ahead")
    parser.add_argument("--quick", action="store_true", help="GRPO and POPO on addition, two seeds: minutes")
    parser.add_argument("--published", action="store_true", help="take the published runs over, run what they lack")
    parser.add_argument("--report", action="store_true", help="only write tables and pictures of what is finished")
    arguments = parser.parse_args()
    if min(1 if arguments.steps is None else arguments.steps, arguments.seeds, arguments.workers) < 1:
        parser.error("--steps, --seeds and --workers must be at least 1")
    if not arguments.no_extra and not {"grpo", "popo"} <= set(arguments.arms):
        parser.error("without grpo and popo among --arms there is nothing to vary: pass --no-extra")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
