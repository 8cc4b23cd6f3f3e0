"""Scoring in worker processes: whatever a verifier does, every response gets a reward and the generator goes on."""

import asyncio
import logging
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from groupreplay import InvalidRequestError
from groupreplay_generator.scoring import RewardFailure, Scorer
from groupreplay_generator.settings import EvaluatorSettings, GeneratorSettings
from groupreplay_generator.tasks import create_task

HERE = Path(__file__).resolve().parent
OBEDIENT = "verifiers:ObedientTask"


@pytest.fixture(autouse=True)
def own_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tasks be found beside the tests, as if the generator were started here."""
    monkeypatch.syspath_prepend(HERE)


def open_scorer(task: str = OBEDIENT, **changes: object) -> Scorer:
    """Return a scorer, to be opened, with a time limit of a second unless told otherwise."""
    values = {"reward_workers": 1, "reward_timeout_s": 1.0, "seed": 5} | changes
    settings = GeneratorSettings(task=task, **values)  # type: ignore[arg-type]
    return Scorer(create_task(task, seed=settings.seed), settings)


@pytest.fixture
async def scorer() -> AsyncIterator[Scorer]:
    """One worker with a time limit of a second."""
    async with open_scorer() as scorer:
        yield scorer


async def score(scorer: Scorer, *commands: str) -> list[float]:
    """Return the rewards of responses that are commands."""
    return await scorer.score(create_task(OBEDIENT).problem(0, "train"), commands)


@pytest.mark.parametrize(
    ("command", "failure"),
    [
        ("hang", RewardFailure.TIMEOUT),
        ("hang-in-c", RewardFailure.TIMEOUT),
        ("fork-and-hang", RewardFailure.TIMEOUT),
        ("die", RewardFailure.DIED),
        ("crash", RewardFailure.DIED),
        ("raise a stir", RewardFailure.RAISED),
        ("exit", RewardFailure.RAISED),
        ("words none", RewardFailure.RAISED),
        ("reward nan", RewardFailure.NOT_FINITE),
        ("reward inf", RewardFailure.NOT_FINITE),
        ("reward 1e39", RewardFailure.NOT_FINITE),
    ],
)
async def test_a_verifier_that_fails_costs_one_response_its_reward(
    scorer: Scorer, command: str, failure: RewardFailure
) -> None:
    """Those before and after it in the group keep theirs, and the failure is counted by its cause."""
    assert await score(scorer, "reward 0.5", command, "reward 0.25") == [0.5, 0.0, 0.25]
    assert scorer.failures == {failure: 1}
    assert scorer.status() == f"rewards failed: 1 {failure}"


async def test_a_killed_verifier_takes_what_it_started_with_it(scorer: Scorer) -> None:
    """A verifier's own child does not outlive the time limit either."""
    (group,) = await score(scorer, "pid")
    await score(scorer, "fork-and-hang")
    await until(lambda: not members(int(group)), "the verifier's child still runs")


async def until(condition: Callable[[], bool], otherwise: str) -> None:
    """Wait for a condition, ten seconds at most."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, otherwise
        await asyncio.sleep(0)


def members(group: int) -> list[int]:
    """Return the processes of a process group that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            if state != "Z" and int(its_group) == group:
                found.append(int(stat.parent.name))
    return found


def workers() -> list[str]:
    """Return the reward workers of this process."""
    children = (pid for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split())
    return [pid for pid in children if b"scoring.worker_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


async def test_a_slow_verifier_within_the_limit_is_waited_for() -> None:
    """The limit is for each score, not for a group."""
    async with open_scorer(reward_timeout_s=5.0) as scorer:
        assert await score(scorer, *["slow 0.2"] * 4) == [1.0] * 4
        assert not scorer.failures


async def test_the_reward_on_error_is_the_callers() -> None:
    """A run that would rather punish than ignore can say so."""
    async with open_scorer(reward_on_error=-1.0) as scorer:
        assert await score(scorer, "raise x", "die", "reward 1") == [-1.0, -1.0, 1.0]


async def test_a_worker_serves_many_problems_and_only_a_failure_replaces_it(scorer: Scorer) -> None:
    """Starting a process for each problem would cost more than scoring."""
    first = await score(scorer, "pid", "raise x", "pid")
    assert first[0] == first[2] == (await score(scorer, "pid"))[0]
    after_death = (await score(scorer, "die", "pid"))[1]
    assert after_death not in {first[0], 0.0, float(os.getpid())}


async def test_every_worker_makes_the_task_of_the_generators_seed(scorer: Scorer) -> None:
    """Generator and worker mean the same problems."""
    assert await score(scorer, "seed") == [5.0]


async def test_a_verifier_that_hangs_holds_up_no_other_worker() -> None:
    """With two workers one goes on scoring while the other waits for the limit."""
    async with open_scorer(reward_workers=2, reward_timeout_s=60.0) as scorer:
        hanging = asyncio.create_task(score(scorer, "hang"))
        for _ in range(20):
            assert await score(scorer, "reward 1") == [1.0]
        assert not hanging.done()
        hanging.cancel()
        await asyncio.gather(hanging, return_exceptions=True)


async def test_what_a_cancelled_call_left_unread_is_not_the_next_calls_reward(scorer: Scorer) -> None:
    """Stopping in the middle of a group leaves no answers behind."""
    cancelled = asyncio.create_task(score(scorer, "reward 0.1", "slow 0.9", "reward 0.2"))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    assert await score(scorer, "reward 0.7") == [0.7]


async def test_a_worker_killed_while_it_is_idle_is_replaced(scorer: Scorer) -> None:
    """Whoever ends it, an out-of-memory killer for one, the next group loses one reward at most."""
    (pid,) = await score(scorer, "pid")
    os.kill(int(pid), 9)
    rewards = await score(scorer, "reward 1", "reward 1")
    assert rewards[1] == 1.0
    assert scorer.failures.total() == rewards.count(0.0)


async def test_printing_and_reading_do_not_disturb_the_answers(capfd: pytest.CaptureFixture[str]) -> None:
    """What a verifier prints goes to standard error; it finds nothing to read."""
    async with open_scorer() as scorer:
        assert await score(scorer, 'print {"reward": 0.9}', "reward 0.1") == [1.0, 0.1]
    assert '{"reward": 0.9}' in capfd.readouterr().err


async def test_failures_are_logged_once_in_a_while_with_the_problem(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A verifier that fails on every response does not fill the disk with its log."""
    now = [0.0]
    settings = GeneratorSettings(task=OBEDIENT, reward_workers=0)
    scorer = Scorer(create_task(OBEDIENT), settings, clock=lambda: now[0])
    with caplog.at_level(logging.WARNING):
        await score(scorer, *["raise one"] * 100, "reward nan")
        assert [record.getMessage() for record in caplog.records] == [
            "no reward for a response to train-0: LookupError: one; it scores 0.0 (raised: 1 so far)",
            "no reward for a response to train-0: the verifier returned nan; it scores 0.0 (not_finite: 1 so far)",
        ]
        now[0] = 31.0
        await score(scorer, "raise two")
        assert "LookupError: two; it scores 0.0 (raised: 101 so far)" in caplog.records[-1].getMessage()


@pytest.mark.parametrize(("task", "in_process"), [("addition", True), ("geometry-tiny", True), (OBEDIENT, False)])
async def test_plain_built_in_verifiers_run_in_the_generator_itself(task: str, in_process: bool) -> None:
    """By default processes are started for those verifiers only that may need them."""
    async with open_scorer(task, reward_workers=None) as scorer:
        assert (not workers()) == in_process
        assert await scorer.score(create_task(task).problem(0, "train"), ["raise"]) == [0.0]
    assert not workers()


async def test_a_worker_that_cannot_start_says_so_at_once() -> None:
    """A task that cannot be made elsewhere ends the generator in words, before anything is generated."""
    with pytest.raises(ChildProcessError, match=r"BrokenTask.*did not become ready .*exit status 1"):
        async with open_scorer("verifiers:BrokenTask"):
            pass


async def test_a_problem_that_cannot_be_sent_is_an_error_of_the_task() -> None:
    """The message names the problem and both ways out."""
    async with open_scorer("verifiers:Unpicklable") as scorer:
        problem = create_task("verifiers:Unpicklable").problem(0, "train")
        with pytest.raises(ValueError, match=r"'train-0' cannot be sent .* plain data, or .* reward_workers 0"):
            await scorer.score(problem, ["reward 1"])
        assert await score(scorer, "reward 1") == [1.0]


async def test_workers_end_with_a_generator_that_was_killed() -> None:
    """Also one whose verifier hangs with the interpreter's lock held."""
    program = f"""
import asyncio, sys
sys.path.insert(0, {str(HERE)!r})
from groupreplay_generator.scoring import Scorer
from groupreplay_generator.settings import GeneratorSettings
from groupreplay_generator.tasks import create_task
async def main():
    task = create_task({OBEDIENT!r})
    async with Scorer(task, GeneratorSettings(task={OBEDIENT!r}, reward_workers=1, reward_timeout_s=2.0)) as scorer:
        problem = task.problem(0, "train")
        print(int((await scorer.score(problem, ["pid"]))[0]), flush=True)
        await scorer.score(problem, ["hang-in-c"])
asyncio.run(main())
"""
    generator = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=subprocess.PIPE)
    assert generator.stdout is not None
    worker = int(await generator.stdout.readline())
    await until(lambda: b"nanosleep" in Path(f"/proc/{worker}/wchan").read_bytes(), "the verifier does not hang")
    generator.kill()
    await generator.wait()
    await until(lambda: not members(worker), "the worker outlives its generator")


@pytest.mark.parametrize("settings", [GeneratorSettings, EvaluatorSettings])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"reward_workers": -1}, "reward_workers -1 must be at least 0"),
        ({"reward_timeout_s": 0.0}, "reward_timeout_s 0.0 must be above 0"),
        ({"reward_timeout_s": float("nan")}, "reward_timeout_s nan must be above 0"),
        ({"reward_on_error": float("inf")}, "reward_on_error inf must be finite"),
        ({"max_response_tokens": 0}, "max_response_tokens 0 must be at least 1"),
    ],
)
def test_impossible_reward_settings_are_refused(
    settings: type[GeneratorSettings], values: dict[str, float], message: str
) -> None:
    """A wrong setting fails where it is written down, for the generator and the evaluator alike."""
    with pytest.raises(InvalidRequestError, match=message):
        settings(**values)  # type: ignore[arg-type]
