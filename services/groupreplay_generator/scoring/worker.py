"""A reward worker as the generator sees it: a process that is started when needed, and killed when it hangs."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from groupreplay_generator.scoring.verdict import RewardFailure, Verdict
from groupreplay_generator.scoring.worker_main import Setup, frame
from groupreplay_generator.tasks.base import Problem

START_LIMIT_S: Final = 180.0
"""A worker imports what its task needs before it says that it is ready."""
SEND_LIMIT_S: Final = 30.0
"""To hand over a problem and its responses, on top of the limit of a score; megabytes take milliseconds."""

_PROGRAM: Final = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from groupreplay_generator.scoring.worker_main import main
main()
"""
"""Started anew and not forked, because gRPC has threads; with the generator's paths, so both find the same modules."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPlan:
    """How to start a worker, and how long each score may take."""

    task: str
    seed: int
    timeout_s: float


class RewardWorker:
    """One process that scores one response at a time, replaced whenever it was killed or died."""

    def __init__(self, plan: WorkerPlan) -> None:
        """Start nothing yet."""
        self._plan = plan
        self._process: Process | None = None

    async def start(self) -> None:
        """Start the process, unless it runs.

        Raises:
            ChildProcessError: it ended, or took too long, before it was ready.
        """
        if self._process is not None and self._process.returncode is None:
            return
        plan = self._plan
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _PROGRAM, json.dumps(sys.path)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # a group of its own: to be killed with whatever a verifier started
        )
        try:
            await self._send(frame(Setup(task=plan.task, seed=plan.seed, timeout_s=plan.timeout_s)))
            await asyncio.wait_for(self._receive(), START_LIMIT_S)
        except (OSError, EOFError, TimeoutError) as error:
            ended = await self._reap()
            raise ChildProcessError(
                f"a reward worker for task {plan.task!r} did not become ready in {START_LIMIT_S:.0f} s: {ended}; "
                "what it wrote to standard error says why"
            ) from error
        except BaseException:
            await self.kill()
            raise

    async def score(self, problem: Problem[Any], texts: Sequence[str]) -> list[Verdict]:
        """Return the verdict of every response.

        Raises:
            ValueError: the problem cannot be sent to another process.
            ChildProcessError: no worker can be started.
        """
        verdicts: list[Verdict] = []
        while len(verdicts) < len(texts):
            await self.start()
            verdicts += await self._score_until_failure(problem, texts[len(verdicts) :])
        return verdicts

    async def kill(self) -> str:
        """End the process, whatever it does; return how it ended. It starts again when it is needed."""
        process, self._process = self._process, None
        if process is None:
            return "not running"
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        code = await process.wait()
        if process.stdin is not None:
            process.stdin.close()
        return f"exit status {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"

    async def _score_until_failure(self, problem: Problem[Any], texts: Sequence[str]) -> list[Verdict]:
        """Return the verdicts of some or all of the responses, at least one: fewer when the process had to be ended."""
        verdicts: list[Verdict] = []
        limit_s = self._plan.timeout_s
        complete = False
        try:
            # A verifier's thread that outlived its call may keep the worker from reading.
            await asyncio.wait_for(self._send(_job(problem, texts)), SEND_LIMIT_S + limit_s)
            for _ in texts:
                answer = await asyncio.wait_for(self._receive(), limit_s)
                verdicts.append(_verdict(answer))
            complete = True
        except TimeoutError:
            verdicts.append(Verdict.failed(RewardFailure.TIMEOUT, f"the verifier took longer than {limit_s} s"))
        except (OSError, EOFError):
            ended = await self._reap()
            verdicts.append(Verdict.failed(RewardFailure.DIED, f"the verifier's process ended with {ended}"))
        finally:
            # Also when this call is cancelled: answers that nobody reads would be taken for those of the next problem.
            if not complete:
                await self.kill()
        return verdicts

    async def _reap(self) -> str:
        """Return how a process that hung up ended, so that its own exit status is told apart from our SIGKILL."""
        if self._process is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), 1.0)
        return await self.kill()

    async def _send(self, content: bytes) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(content)
        await self._process.stdin.drain()

    async def _receive(self) -> dict[str, Any]:
        """Return the next answer.

        Raises:
            EOFError: the process hung up.
        """
        assert self._process is not None
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise EOFError("the reward worker hung up")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _job(problem: Problem[Any], texts: Sequence[str]) -> bytes:
    try:
        return frame((problem, list(texts)))
    except ValueError as error:
        raise ValueError(
            f"problem {problem.prompt_id!r} cannot be sent to a reward worker: {error}; give it an answer of plain "
            "data, or score in the generator's own process with reward_workers 0"
        ) from error


def _verdict(answer: dict[str, Any]) -> Verdict:
    failure = None if answer["failure"] is None else RewardFailure(answer["failure"])
    return Verdict(reward=answer["reward"], failure=failure, message=answer["message"])
