"""Runs the whole loop on this machine: service with its own Redis, trainer, generator and evaluator, each a process."""

import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from groupreplay import Client
from groupreplay_demo.children import Child, stop_all
from groupreplay_demo.ledger import count_lost, count_trained_twice
from groupreplay_demo.local_service import DemoError, free_address, local_service
from groupreplay_demo.records import JsonLines, RunRecords
from groupreplay_demo.report import draw_picture, print_table, write_summary
from groupreplay_demo.screen import Screen
from groupreplay_demo.settings import Algorithm, DemoSettings

TABLE = "rollouts"
_MARKER = "made-by-groupreplay-demo"
_POLL_S = 0.25
_EVALUATION_TIMEOUT_S = 120.0
_EVALUATION_SEED = 0
"""The same held-out problems whatever the seed of the run, so that runs can be compared."""


def run_demo(settings: DemoSettings, console: Console) -> None:
    """Run the demo to its end.

    Raises:
        DemoError: a port is taken or the folder holds something else.
        ChildFailedError: a process ended by itself.
    """
    grpc_listen = free_address("gRPC", settings.grpc_listen, "--grpc-listen")
    http_listen = free_address("HTTP", settings.http_listen, "--http-listen")
    _clear_folder(settings.run_dir)
    with local_service(settings.run_dir, grpc_listen=grpc_listen, http_listen=http_listen) as service:
        console.print(f"watch it on the page: http://{http_listen}/ui/")
        runs = [
            Run(settings, algorithm, service=service, server=grpc_listen, console=console).run()
            for algorithm in settings.algorithms
        ]
        picture = settings.run_dir / "demo.png"
        write_summary(runs, settings.run_dir / "summary.json")
        draw_picture(runs, picture, title=f"{settings.task}: {' and '.join(settings.algorithms)}, seed {settings.seed}")
        print_table(runs, console)
        console.print(f"picture: {picture}   figures: {settings.run_dir / 'summary.json'}")
        if settings.keep_running:
            console.print(
                f"the service stays up: gRPC {grpc_listen}, metrics http://{http_listen}/metrics; Ctrl-C ends it"
            )
            console.print(f"look at its groups on the page: http://{http_listen}/ui/")
            while service.check():
                time.sleep(_POLL_S)
        else:
            console.print(
                f"look at its groups on the page: groupreplay serve --data-dir {settings.run_dir / 'redis'}, then "
                "http://127.0.0.1:8080/ui/"
            )


class Run:
    """One algorithm from the first step to the last evaluation."""

    def __init__(
        self, settings: DemoSettings, algorithm: Algorithm, *, service: Child, server: str, console: Console
    ) -> None:
        self._settings = settings
        self._algorithm = algorithm
        self._service = service
        self._server = server
        self._folder = settings.run_dir / algorithm
        self._folder.mkdir()
        self._records = RunRecords(algorithm=algorithm, rollouts_per_prompt=settings.preset.rollouts_per_prompt)
        self._screen = Screen(
            console,
            title=f"groupreplay demo: {settings.task}, {algorithm}, seed {settings.seed}",
            steps=settings.steps_to_run,
        )
        self._trainer = self._child("train", self._trainer_arguments())
        self._generator = self._child("generate", self._generator_arguments())
        self._evaluator = self._child("evaluate", self._evaluator_arguments())

    def run(self) -> RunRecords:
        """Train, evaluate, account for every group."""
        started = time.monotonic()
        children = [self._trainer, self._generator, self._evaluator]
        try:
            for child in children:
                child.start()
            with self._screen.shown() as show:
                self._follow(show)
                self._records.seconds = time.monotonic() - started
                self._wait_for_evaluator(show)
        finally:
            stop_all(children)
        self._account()
        return self._records

    def _follow(self, show: Callable[[RunRecords], None]) -> None:
        """Show the run until the trainer ends; with --chaos kill each process on the way."""
        victims = self._victims() if self._settings.chaos else []
        while True:
            running = self._trainer.check()
            self._service.check()
            self._generator.check()
            self._read()
            show(self._records)
            if not running:
                return
            while victims and len(self._records.steps) >= victims[0][0]:
                self._kill(victims.pop(0)[1])
            time.sleep(_POLL_S)

    def _victims(self) -> list[tuple[int, Child]]:
        steps = self._settings.steps_to_run
        return [(steps // 4, self._service), (steps // 2, self._generator), (3 * steps // 4, self._trainer)]

    def _kill(self, child: Child) -> None:
        child.kill()
        child.start()
        self._records.kills.append(child.name)
        self._screen.say(f"step {len(self._records.steps)}: killed {child.name} (SIGKILL) and started it again")

    def _wait_for_evaluator(self, show: Callable[[RunRecords], None]) -> None:
        deadline = time.monotonic() + _EVALUATION_TIMEOUT_S
        while self._evaluator.check():
            if time.monotonic() > deadline:
                raise DemoError(f"the last evaluation did not end; {self._folder / 'evaluate.log'} says why")
            time.sleep(_POLL_S)
        self._read()
        show(self._records)

    def _read(self) -> None:
        self._records.steps = JsonLines(self._folder / "train.jsonl").read()
        self._records.evaluations = JsonLines(self._folder / "evaluations.jsonl").read()

    def _account(self) -> None:
        with Client(self._server) as client:
            self._records.lost_groups = count_lost(
                client, run=self._algorithm, table=TABLE, inserted_log=self._folder / "inserted.log"
            )
        self._records.trained_twice = count_trained_twice(self._folder / "groups.jsonl")

    def _child(self, name: str, flags: dict[str, object]) -> Child:
        shared = {"--server": self._server, "--run": self._algorithm}
        arguments = [str(part) for item in (shared | flags).items() for part in item]
        return Child(name, [name, *arguments], folder=self._folder)

    def _trainer_arguments(self) -> dict[str, object]:
        preset = self._settings.preset
        return {
            "--table": TABLE,
            "--run-dir": self._folder,
            "--model.path": f"builtin:{_checkpoint(self._settings.task)}",
            "--algorithm": self._algorithm,
            "--preset": preset.preset if self._algorithm == "popo" else "faithful",
            "--steps": self._settings.steps_to_run,
            "--batch-size": preset.batch_size,
            "--optimizer.minibatches": preset.minibatches,
            "--optimizer.lr": preset.lr,
            "--seed": self._settings.seed,
            "--trainer-id": "demo",
        }

    def _generator_arguments(self) -> dict[str, object]:
        preset = self._settings.preset
        return {
            "--table": TABLE,
            "--task": self._settings.task,
            "--producer-id": "demo",
            "--rollouts-per-prompt": preset.rollouts_per_prompt,
            "--prompts-at-once": preset.batch_size,
            "--seed": self._settings.seed,
            "--inserted-log": self._folder / "inserted.log",
        }

    def _evaluator_arguments(self) -> dict[str, object]:
        steps = self._settings.steps_to_run
        return {
            "--task": self._settings.task,
            "--output": self._folder / "evaluations.jsonl",
            "--every": math.ceil(steps / 12),
            "--last-version": steps,
            "--seed": _EVALUATION_SEED,
            "--threads": 1,
        }


def _checkpoint(task: str) -> str:
    return task.rstrip("34")


def _clear_folder(folder: Path) -> None:
    """Empty the folder of an earlier demo, and of nothing else."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / _MARKER).exists():
            raise DemoError(f"{folder} holds something that no demo made; move it away or pass --run-dir")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARKER).touch()
