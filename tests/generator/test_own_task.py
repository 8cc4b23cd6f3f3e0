"""Tasks of one's own: found by module and class, and checked before anything is generated."""

import sys
from pathlib import Path

import pytest

from groupreplay_generator.tasks import create_task

MODULE = """
from groupreplay_generator.tasks import Problem

class Doubling:
    name = "doubling"
    max_response_tokens = 4

    def __init__(self, seed=0, train_problems=3):
        self.seed, self.size = seed, train_problems

    def problem_count(self, split):
        return self.size if split == "train" else 1

    def problem(self, index, split):
        return Problem(prompt_id=f"{split}/{index}", prompt_text=f"2*{index}=", answer=str(2 * index))

    def score(self, problem, response_text):
        return float(response_text == problem.answer)

class Bare:
    pass

class Unnamed(Doubling):
    name = ""

class Endless(Doubling):
    max_response_tokens = 0

class Silent(Doubling):
    score = None

class Vague(Doubling):
    def problem_count(self, split):
        return None

class Raw(Doubling):
    def problem(self, index, split):
        return {"prompt": "2*1="}

def made_by_a_function(**options):
    return Doubling(**{name: value for name, value in options.items() if name != "heldout_problems"})

number = 4
"""


@pytest.fixture(autouse=True)
def current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder with a module that nobody installed."""
    (tmp_path / "own_tasks.py").write_text(MODULE)
    (tmp_path / "needy.py").write_text("import surely_not_installed\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_tasks", raising=False)


def test_a_class_in_the_current_folder_is_a_task() -> None:
    """It is given the options that its constructor takes."""
    task = create_task("own_tasks:Doubling", seed=7, train_problems=5)
    assert (task.name, task.seed, task.problem_count("train")) == ("doubling", 7, 5)  # type: ignore[attr-defined]
    assert task.score(task.problem(4, "train"), "8") == 1.0


def test_a_function_may_make_the_task() -> None:
    """Whoever needs to configure more writes a function."""
    assert create_task("own_tasks:made_by_a_function", seed=2, train_problems=9).problem_count("train") == 9


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_task:Doubling", "there is no module 'own_task' on the module path or in the folder"),
        ("own_tasks.deeper:Doubling", "there is no module 'own_tasks.deeper'"),
        ("own_tasks:Doublin", "has no class 'Doublin'; its classes: Doubling, Bare, Unnamed"),
        ("own_tasks:number", "has no class 'number'"),
        ("own_tasks:Bare", "needs a `name`, text of 1 to 128 bytes"),
        ("own_tasks:Unnamed", "needs a `name`"),
        ("own_tasks:Endless", "needs `max_response_tokens`, an integer >= 1, got 0"),
        ("own_tasks:Silent", "it has no method score"),
        ("own_tasks:Vague", r"problem_count\('train'\) is None, not a number of problems"),
        ("own_tasks:Raw", r"problem\(0, 'train'\) is a dict, not a Problem"),
    ],
)
def test_what_is_no_task_is_refused_in_words(name: str, message: str) -> None:
    """The error names what is missing."""
    with pytest.raises(ValueError, match=message):
        create_task(name)


def test_a_module_that_lacks_something_itself_says_so() -> None:
    """A missing import inside the module is not taken for a missing module."""
    with pytest.raises(ModuleNotFoundError, match="surely_not_installed"):
        create_task("needy:Task")
