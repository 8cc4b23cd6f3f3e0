"""Tasks of reasoning-gym: the same problems everywhere, held-out ones never trained on, and its own verifiers."""

import random
import subprocess
import sys

import pytest

pytest.importorskip(
    "reasoning_gym", reason="reasoning-gym is not installed: one of its dependencies needs a C compiler"
)

from groupreplay_generator.command import generate
from groupreplay_generator.settings import GeneratorSettings
from groupreplay_generator.tasks import SolvableTask, create_task
from groupreplay_generator.tasks.base import split_of
from groupreplay_generator.tasks.reasoning_gym_task import ReasoningGymTask, dataset_names

NAMES = ["basic_arithmetic", "list_functions", "knights_knaves", "game_of_life", "maze", "tower_of_hanoi"]
SHOW_PROBLEMS = """
import sys
from groupreplay_generator.tasks import create_task
task = create_task(sys.argv[1], seed=3, train_problems=20)
print([(problem.prompt_id, problem.prompt_text) for problem in (task.problem(index, "train") for index in range(20))])
"""


def make_task(name: str, *, seed: int = 3) -> SolvableTask[object]:
    """Return a task with 40 training and 8 held-out problems."""
    task = create_task(f"reasoning-gym:{name}", seed=seed, train_problems=40, heldout_problems=8)
    assert isinstance(task, SolvableTask)
    return task


@pytest.mark.parametrize("name", NAMES)
def test_the_right_answer_earns_1_and_nonsense_next_to_nothing(name: str) -> None:
    """The verifier is that of the package; the answer stands between tags."""
    task = make_task(name)
    for problem in (task.problem(index, "train") for index in range(8)):
        reference = task.reference_response(problem)
        assert task.score(problem, f"Let me think. <answer>no</answer> But {reference}") == 1.0
        assert task.score(problem, "<answer>no</answer>") < 0.2
        assert task.score(problem, "") < 0.2


def test_a_response_without_tags_is_scored_as_it_stands() -> None:
    """A policy that has not learnt the tags yet can still succeed."""
    task = make_task("basic_arithmetic")
    problem = task.problem(0, "train")
    answer = task.reference_response(problem).removeprefix("<answer>").removesuffix("</answer>")
    assert task.score(problem, f" {answer}\n") == 1.0
    assert problem.prompt_text.endswith("between <answer> and </answer>.")


@pytest.mark.parametrize("name", ["basic_arithmetic", "list_functions"])
def test_another_process_draws_the_same_problems(name: str) -> None:
    """Also where the package itself draws from the process's own generator."""
    command = [sys.executable, "-c", SHOW_PROBLEMS, f"reasoning-gym:{name}"]
    shown = [subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(2)]
    task = create_task(f"reasoning-gym:{name}", seed=3, train_problems=20)
    random.seed(7)
    here = [(problem.prompt_id, problem.prompt_text) for problem in (task.problem(i, "train") for i in range(20))]
    assert shown == [f"{here}\n"] * 2


def test_drawing_leaves_the_random_numbers_of_the_process_alone() -> None:
    """Whoever seeded their program gets what they seeded."""
    random.seed(7)
    expected = random.random()
    random.seed(7)
    make_task("list_functions").problem(0, "train")
    assert random.random() == expected


@pytest.mark.parametrize("name", ["basic_arithmetic", "tower_of_hanoi"])
def test_what_is_held_out_under_one_seed_is_trained_on_under_none(name: str) -> None:
    """The split is one of content: neighbouring seeds draw other problems and share no held-out one with training."""
    tasks = [make_task(name, seed=seed) for seed in (3, 4)]
    train = [{t.problem(i, "train").prompt_id for i in range(t.problem_count("train"))} for t in tasks]
    heldout = {tasks[0].problem(i, "heldout").prompt_id for i in range(tasks[0].problem_count("heldout"))}
    assert len(train[0]) == len(train[1]) == 40
    assert train[0] != train[1]
    assert not heldout & (train[0] | train[1])
    assert {split_of(prompt_id) for prompt_id in heldout} == {"heldout"}


def test_a_larger_set_begins_with_the_smaller_one() -> None:
    """Asking for more problems later does not change those there were."""
    small, large = (ReasoningGymTask("leg_counting", seed=1, train_problems=count) for count in (10, 30))
    assert [small.problem(i, "train") for i in range(10)] == [large.problem(i, "train") for i in range(10)]


def test_a_task_with_few_problems_has_as_many_as_there_are() -> None:
    """Asking for more does not end in an endless search."""
    task = ReasoningGymTask("tower_of_hanoi")
    count = task.problem_count("train")
    assert 50 < count < 200
    assert len({task.problem(index, "train").prompt_id for index in range(count)}) == count
    with pytest.raises(IndexError, match=rf"problem {count} of 'train' is outside \[0, {count}\)"):
        task.problem(count, "train")


def test_every_task_of_the_package_has_a_name_here() -> None:
    """More than a hundred."""
    assert len(dataset_names()) > 100


def test_a_misspelt_name_is_answered_with_near_ones() -> None:
    """A list of a hundred names would bury the right one."""
    with pytest.raises(ValueError, match=r"no task 'basic_aritmetic'; did you mean .*basic_arithmetic"):
        create_task("reasoning-gym:basic_aritmetic")


def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator installed without extras says what to install."""
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ImportError, match=r"needs the package reasoning-gym: pip install 'groupreplay\[tasks\]'"):
        create_task("reasoning-gym:basic_arithmetic")


def test_the_command_ends_in_words_without_the_package(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`groupreplay generate` names the right extra, and not its own."""
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    assert generate(GeneratorSettings(task="reasoning-gym:basic_arithmetic")) == 1
    assert caplog.records[-1].getMessage() == (
        "giving up: --task reasoning-gym:... needs the package reasoning-gym: pip install 'groupreplay[tasks]'"
    )
