"""Runs the plan: one service, a few worker processes, and whatever of the plan is not in the results yet."""

import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiment.plan import Plan, RunSpec
from experiment.results import RUNS, Result, append_result, read_results
from experiment.worker import run_one
from groupreplay_demo.local_service import free_address, local_service
from groupreplay_tinylm import builtin_checkpoint

ROOT = Path(__file__).resolve().parent.parent.parent
_SECOND_CHECKPOINT_SEED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner:
    """Runs specs in a folder."""

    folder: Path
    workers: int
    console: Console

    @property
    def results_file(self) -> Path:
        """Where finished runs are."""
        return self.folder / RUNS

    def run(self, plan: Plan) -> dict[str, Result]:
        """Run what of the plan is missing, in its three phases; return all results."""
        self.folder.mkdir(parents=True, exist_ok=True)
        checkpoints = {(task, name): self._checkpoint(task, name) for task in plan.tasks for name in ("a", "b")}
        server = free_address("gRPC", "127.0.0.1:0", "")
        with local_service(self.folder, grpc_listen=server, http_listen="127.0.0.1:0"):
            for phase in ("tune", "main", "extra"):
                results = read_results(self.results_file)
                specs = list(_phase(plan, phase, results))
                missing = [spec for spec in specs if spec.key not in results]
                self.console.print(f"{phase}: {len(specs)} runs, {len(specs) - len(missing)} of them done before")
                self._run_phase(phase, missing, server=server, checkpoints=checkpoints)
        return read_results(self.results_file)

    def _run_phase(
        self, phase: str, specs: list[RunSpec], *, server: str, checkpoints: dict[tuple[str, str], Path]
    ) -> None:
        if not specs:
            return
        with _progress(self.console) as progress, self._pool() as pool:
            bar = progress.add_task(phase, total=len(specs))
            futures: dict[Future[Result], RunSpec] = {
                pool.submit(
                    run_one,
                    spec,
                    server=server,
                    folder=self.folder / "work",
                    checkpoint=checkpoints[spec.task, spec.checkpoint],
                ): spec
                for spec in specs
            }
            try:
                for future in as_completed(futures):
                    result = future.result()
                    append_result(self.results_file, result)
                    progress.advance(bar)
                    progress.console.print(
                        f"{result.key}: {result.evaluations[0].accuracy:.3f} -> {result.final_accuracy:.3f}, "
                        f"{result.rollouts:,} rollouts, {result.seconds:.0f} s"
                    )
            except BaseException:
                # Runs that are under way are worth nothing half done.
                pool.shutdown(wait=False, cancel_futures=True)
                for worker in active_children():
                    worker.terminate()
                raise

    def _pool(self) -> ProcessPoolExecutor:
        # Sleeping rather than spinning OpenMP threads: two runs share the cores with the service.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        return ProcessPoolExecutor(self.workers, mp_context=get_context("spawn"))

    def _checkpoint(self, task: str, name: str) -> Path:
        """Return a warm-started checkpoint: "a" comes with the package, "b" is made here from another seed."""
        builtin = builtin_checkpoint(task)
        if name == "a":
            return builtin
        path = self.folder / "checkpoints" / builtin.name
        if not path.exists():
            self.console.print(f"making a second warm-started checkpoint for {task}, once")
            subprocess.run(
                [
                    *(sys.executable, ROOT / "scripts/make_checkpoints.py", "--task", builtin.stem),
                    *("--seed", str(_SECOND_CHECKPOINT_SEED), "--output-dir", path.parent),
                ],
                check=True,
            )
        return path


def _phase(plan: Plan, phase: str, results: dict[str, Result]) -> Iterable[RunSpec]:
    if phase == "tune":
        return plan.tuning() if len(plan.rates) > 1 else ()
    return plan.reported(results) if phase == "main" else plan.variations(results)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )
