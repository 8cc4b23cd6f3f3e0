"""Countdown's verifier: exact, and safe to point at anything a policy writes."""

import time
from fractions import Fraction

import pytest

from groupreplay_generator.tasks import Problem
from groupreplay_generator.tasks.arithmetic import MAX_CHARACTERS, MAX_DEPTH, ExpressionError, evaluate
from groupreplay_generator.tasks.countdown import CountdownAnswer, CountdownTask


@pytest.fixture(scope="module")
def task() -> CountdownTask:
    """Countdown with three numbers."""
    return CountdownTask(numbers=3, train_problems=1, heldout_problems=1)


def make_problem(*numbers: int, target: int) -> Problem[CountdownAnswer]:
    """Return the problem of making `target` of `numbers`."""
    answer = CountdownAnswer(numbers=numbers, target=target, solution="")
    return Problem(prompt_id="countdown/test", prompt_text="test", answer=answer)


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        ("(8-3)*5", 1.0),
        (" 5 * ( 8 - 3 ) ", 1.0),
        ("((5))*(8-3)", 1.0),
        ("8-3*5", 0.1),
        ("5*5", 0.1),
        ("25", 0.1),
        ("(8-3)*5+3-3", 0.1),
        ("(8-3)*5=25", 0.0),
        ("(8-3)*", 0.0),
        ("(8-3)5", 0.0),
        ("(8-3", 0.0),
        ("8-3)", 0.0),
        ("-3+8*5", 0.0),
        ("8/(5-5)", 0.0),
        ("8**3", 0.0),
        ("8//3", 0.0),
        ("8.0-3", 0.0),
        ("8_3", 0.0),
        ("٣+8", 0.0),
        ("()", 0.0),
    ],
)
def test_a_solution_uses_every_number_once_and_makes_the_target(
    task: CountdownTask, response: str, reward: float
) -> None:
    """1 for a solution, 0.1 for another expression that has a value, 0 for the rest."""
    assert task.score(make_problem(3, 5, 8, target=25), response) == reward


@pytest.mark.parametrize(("response", "reward"), [("3/3*8", 1.0), ("8*3/3", 1.0), ("8", 0.1), ("3/3+8-1", 0.1)])
def test_a_number_given_twice_is_used_twice(task: CountdownTask, response: str, reward: float) -> None:
    """Numbers are counted, not merely looked up."""
    assert task.score(make_problem(3, 3, 8, target=8), response) == reward


def test_division_is_exact(task: CountdownTask) -> None:
    """A third times three is one, which floating point would not promise for larger numbers."""
    assert task.score(make_problem(8, 3, 3, 8, target=24), "8/(3-8/3)") == 1.0
    assert evaluate("1/49*49").value == 1
    assert evaluate("7/2/2-1").value == Fraction(3, 4)


@pytest.mark.parametrize(
    ("text", "value"), [("2+3*4", 14), ("2*3+4", 10), ("9-3-2", 4), ("9-(3-2)", 8), ("8/4*2", 4), ("8/(4*2)", 1)]
)
def test_operators_bind_as_at_school(text: str, value: int) -> None:
    """Products before sums, and from left to right."""
    assert evaluate(text).value == value


def test_the_numbers_are_reported_in_order() -> None:
    """Whoever judges an expression sees what was written."""
    assert evaluate("(10-3)*10").numbers == (10, 3, 10)


@pytest.mark.parametrize(
    "response",
    [
        "(" * 1_000_000,
        "(" * 1_000_000 + "1" + ")" * 1_000_000,
        "9" * 1_000_000,
        "9*" * 500_000 + "9",
        "1/" * 500_000 + "0",
        "9**9**9**9",
        "__import__('os').system('false')",
        "\0" * 1_000_000,
        " " * 1_000_000,
    ],
)
def test_hostile_input_costs_next_to_nothing(task: CountdownTask, response: str) -> None:
    """A policy that learns to write monsters gets 0 at once; it cannot hang or crash a generator."""
    problem = make_problem(3, 5, 8, target=25)
    started = time.process_time()
    assert task.score(problem, response) == 0.0
    assert time.process_time() - started < 0.1


def test_the_largest_numbers_that_are_read_stay_cheap() -> None:
    """Within the length limit the exact arithmetic itself cannot explode."""
    started = time.process_time()
    assert evaluate("9" * MAX_CHARACTERS).value == 10**MAX_CHARACTERS - 1
    assert evaluate("*".join(["99"] * (MAX_CHARACTERS // 3))).value == 99 ** (MAX_CHARACTERS // 3)
    assert time.process_time() - started < 0.1


def test_nesting_is_limited_to_a_depth_that_is_stated() -> None:
    """Deep nesting is refused by its own rule, long before the interpreter's stack ends."""
    assert evaluate("(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH).value == 1
    with pytest.raises(ExpressionError, match=f"deeper than {MAX_DEPTH}"):
        evaluate("(" * (MAX_DEPTH + 1) + "1" + ")" * (MAX_DEPTH + 1))


@pytest.mark.parametrize("numbers", [0, 2, 5])
def test_only_three_or_four_numbers_are_played_with(numbers: int) -> None:
    """A game that was not calibrated is refused rather than truncated."""
    with pytest.raises(ValueError, match=f"3 or 4 numbers, got {numbers}"):
        CountdownTask(numbers=numbers)
