"""Countdown: combine the given numbers with + - * / and parentheses so that they make the target."""

import random
from dataclasses import dataclass
from typing import Final

from groupreplay_generator.tasks.arithmetic import ExpressionError, evaluate
from groupreplay_generator.tasks.base import Problem, Split
from groupreplay_generator.tasks.problem_set import ProblemSet

MAX_NUMBER: Final = 10
MAX_TARGET: Final = 99
FORMAT_REWARD: Final = 0.1

_RESPONSE_TOKENS: Final = {3: 16, 4: 24}
"""Per count of numbers. The longest solutions, `(10+10)*10` and `(10-(10-10))*10`, leave room for needless ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CountdownAnswer:
    """What judges a response: the numbers to use, the target to make, and one way to do it."""

    numbers: tuple[int, ...]
    target: int
    solution: str


class CountdownTask:
    """`2,7,3=27:` is answered by `(2+7)*3`, or by any other expression that makes 27 of 2, 7 and 3.

    Every number is used exactly once, the rule of the language-model version of the game; on television a number may
    be left out. The reward is 1 for a solution, 0.1 for any other expression that has a value, and 0 for the rest.
    """

    scores_in_process: Final = True

    def __init__(
        self, *, numbers: int = 3, seed: int = 0, train_problems: int = 2000, heldout_problems: int = 256
    ) -> None:
        """Draw the problems, each from a random expression, so that all of them can be solved.

        Args:
            numbers: how many are given, 3 or 4.
            seed: another seed draws other problems.
            train_problems, heldout_problems: how many different ones of each split. The order in which the numbers
                are given makes no difference.

        Raises:
            ValueError: `numbers` is neither 3 nor 4, or there are not that many problems.
        """
        if numbers not in _RESPONSE_TOKENS:
            raise ValueError(f"countdown is played with 3 or 4 numbers, got {numbers}")
        self._numbers = numbers
        self._problems = ProblemSet(
            self._draw, seed=seed, train_problems=train_problems, heldout_problems=heldout_problems
        )

    @property
    def name(self) -> str:
        """`countdown3` or `countdown4`."""
        return f"countdown{self._numbers}"

    @property
    def max_response_tokens(self) -> int:
        """Room for every solution without needless parentheses, and EOS."""
        return _RESPONSE_TOKENS[self._numbers]

    def problem_count(self, split: Split) -> int:
        """Return the number of different problems in `split`."""
        return self._problems.count(split)

    def problem(self, index: int, split: Split) -> Problem[CountdownAnswer]:
        """Return problem `index` of `split`.

        Raises:
            IndexError: `index` is outside [0, problem_count(split)).
        """
        return self._problems.problem(index, split)

    def score(self, problem: Problem[CountdownAnswer], response_text: str) -> float:
        """Return 1.0 for a solution, 0.1 for another expression that has a value, 0.0 for anything else."""
        try:
            result = evaluate(response_text)
        except ExpressionError:
            return 0.0
        answer = problem.answer
        solved = result.value == answer.target and sorted(result.numbers) == sorted(answer.numbers)
        return 1.0 if solved else FORMAT_REWARD

    def reference_response(self, problem: Problem[CountdownAnswer]) -> str:
        """Return one solution, without needless parentheses."""
        return problem.answer.solution

    def _draw(self, rng: random.Random) -> Problem[CountdownAnswer]:
        numbers = tuple(rng.randint(1, MAX_NUMBER) for _ in range(self._numbers))
        solution = _random_expression(rng, numbers)
        while solution is None or solution.value > MAX_TARGET:
            solution = _random_expression(rng, numbers)
        key = ",".join(map(str, sorted(numbers)))
        return Problem(
            prompt_id=f"countdown/{key}={solution.value}",
            prompt_text=f"{','.join(map(str, numbers))}={solution.value}:",
            answer=CountdownAnswer(numbers=numbers, target=solution.value, solution=solution.text),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Expression:
    """An expression under construction; `operator` is the outermost one, "" for a number."""

    text: str
    value: int
    operator: str = ""


def _random_expression(rng: random.Random, numbers: tuple[int, ...]) -> _Expression | None:
    """Join two random parts until one is left; None if a value on the way is not a whole number above 0."""
    parts = [_Expression(text=str(number), value=number) for number in numbers]
    while len(parts) > 1:
        left, right = (parts.pop(rng.randrange(len(parts))) for _ in range(2))
        joined = _join(left, rng.choice("+-*/"), right)
        if joined is None:
            return None
        parts.append(joined)
    return parts[0]


def _join(left: _Expression, operator: str, right: _Expression) -> _Expression | None:
    if operator == "-" and left.value <= right.value:
        return None
    if operator == "/" and left.value % right.value:
        return None
    value = {
        "+": left.value + right.value,
        "-": left.value - right.value,
        "*": left.value * right.value,
        "/": left.value // right.value,
    }[operator]
    # Parentheses only where the reading from left to right needs them: a-(b+c), (a+b)*c, a/(b*c), but a+b-c, a*b/c.
    weak_left = "+-" if operator in "*/" else ""
    weak_right = {"+": "", "-": "+-", "*": "+-", "/": "+-*/"}[operator]
    text = _wrapped(left, weak_left) + operator + _wrapped(right, weak_right)
    return _Expression(text=text, value=value, operator=operator)


def _wrapped(part: _Expression, weak_operators: str) -> str:
    return f"({part.text})" if part.operator and part.operator in weak_operators else part.text
