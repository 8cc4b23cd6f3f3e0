"""What every task promises, and addition."""

import subprocess
import sys
from typing import Any

import pytest

from groupreplay_generator.tasks import Problem, SolvableTask, Split, Task, create_task, task_names
from groupreplay_generator.tasks.addition import AdditionTask
from groupreplay_generator.tasks.base import split_of
from groupreplay_tinylm import CharTokenizer

SPLITS: tuple[Split, ...] = ("train", "heldout")


def problems_of(task: Task[Any], split: Split) -> list[Problem[Any]]:
    """Return all problems of a split."""
    return [task.problem(index, split) for index in range(task.problem_count(split))]


@pytest.fixture(scope="module", params=["addition", "countdown3", "countdown4", "geometry-tiny"])
def task(request: pytest.FixtureRequest) -> Task[Any]:
    """Each task in turn."""
    return create_task(request.param, seed=3)


@pytest.mark.parametrize("split", SPLITS)
def test_the_same_seed_gives_the_same_problems(task: Task[Any], split: Split) -> None:
    """Generator and evaluation, on any machine, mean the same problem by the same index."""
    assert problems_of(task, split) == problems_of(create_task(task.name, seed=3), split)
    assert problems_of(task, split) != problems_of(create_task(task.name, seed=4), split)


def test_no_problem_appears_twice_and_none_in_both_splits(task: Task[Any]) -> None:
    """Held-out accuracy is measured on problems that were never trained on."""
    prompt_ids = [problem.prompt_id for split in SPLITS for problem in problems_of(task, split)]
    assert len(prompt_ids) == len(set(prompt_ids)) == 2256


def test_problems_held_out_under_one_seed_are_not_trained_on_under_another(task: Task[Any]) -> None:
    """Changing the seed, or training longer from a checkpoint, never leaks the test set."""
    heldout = {problem.prompt_id for problem in problems_of(task, "heldout")}
    train = {problem.prompt_id for problem in problems_of(create_task(task.name, seed=4), "train")}
    assert not heldout & train
    assert {split_of(prompt_id) for prompt_id in heldout} == {"heldout"}


def test_the_reference_response_earns_the_full_reward_within_the_limit(task: Task[Any]) -> None:
    """Every problem can be solved, in the alphabet and the number of tokens that a policy has."""
    assert isinstance(task, SolvableTask)
    tokenizer = CharTokenizer()
    for problem in (problem for split in SPLITS for problem in problems_of(task, split)):
        response = task.reference_response(problem)
        assert task.score(problem, response) == 1.0
        assert tokenizer.encode(problem.prompt_text)
        assert len(tokenizer.encode(response)) < task.max_response_tokens


@pytest.mark.parametrize("response", ["", " ", "\0", "²", "9" * 100_000, "(" * 100_000, "__import__('os')"])
def test_a_useless_response_earns_nothing(task: Task[Any], response: str) -> None:
    """Whatever a policy writes is scored and never raises."""
    assert task.score(task.problem(0, "train"), response) == 0.0


@pytest.mark.parametrize("index", [-1, 2000])
def test_an_index_outside_the_split_is_refused(task: Task[Any], index: int) -> None:
    """A wrong index is an error that names the range, not some other problem."""
    with pytest.raises(IndexError, match=rf"problem {index} of 'train' is outside \[0, 2000\)"):
        task.problem(index, "train")


def test_an_unknown_task_is_answered_with_the_known_ones() -> None:
    """A misspelt name gets the list of the right ones."""
    with pytest.raises(
        ValueError, match=r"unknown task 'additon'; did you mean addition\? known: addition, countdown, c"
    ):
        create_task("additon")


def test_every_known_name_makes_a_task() -> None:
    """The names in an error message or a help text all work, and `countdown` means three numbers."""
    assert {name: create_task(name).name for name in task_names()} == {
        "addition": "addition",
        "countdown": "countdown3",
        "countdown3": "countdown3",
        "countdown4": "countdown4",
        "geometry": "geometry",
        "geometry-tiny": "geometry-tiny",
    }


def test_asking_for_more_problems_than_exist_is_refused() -> None:
    """Countdown with so many problems ends in an error and not in an endless search."""
    with pytest.raises(ValueError, match="at least one problem, got 0"):
        AdditionTask(train_problems=0)
    with pytest.raises(ValueError, match=r"found only \d+ of the 100 different problems asked for in 'train'"):
        create_tiny_task(problems=100)


def create_tiny_task(*, problems: int) -> object:
    """Make a problem set over a space of a hundred problems."""
    from groupreplay_generator.tasks.problem_set import ProblemSet  # noqa: PLC0415 - only this test needs it

    def draw(rng: Any) -> Problem[None]:
        return Problem(prompt_id=str(rng.randrange(100)), prompt_text="?", answer=None)

    return ProblemSet(draw, seed=0, train_problems=problems, heldout_problems=1)


def test_addition_is_written_least_significant_digit_first() -> None:
    """The reward is 1 for exactly the sum, reversed like the numbers in the prompt."""
    task = AdditionTask()
    problem = Problem(prompt_id="addition/95+7", prompt_text="59+7=", answer="201")
    assert task.score(problem, "201") == 1.0
    assert [task.score(problem, response) for response in ("102", "201 ", "2010", "+201", "")] == [0.0] * 5
    for drawn in problems_of(task, "heldout"):
        left, right = (int(text[::-1]) for text in drawn.prompt_text.removesuffix("=").split("+"))
        assert int(drawn.answer[::-1]) == left + right


def test_tasks_are_imported_without_torch() -> None:
    """A generator that talks to a remote engine does not load torch to score responses."""
    program = "import groupreplay_generator.tasks, groupreplay_generator.engines, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
