"""Addition of two numbers of 1 to 6 digits, every number written with its digits reversed."""

import random
from typing import Final

from groupreplay_generator.tasks.base import Problem, Split
from groupreplay_generator.tasks.problem_set import ProblemSet

MAX_DIGITS: Final = 6


class AdditionTask:
    """`321+54=` asks for 123 + 45 and is answered by `861`: least significant digit first, as carries arise.

    The reward is 1 for exactly the right characters, else 0.
    """

    name: Final = "addition"
    scores_in_process: Final = True
    max_response_tokens: Final = MAX_DIGITS + 2  # the sum may have one digit more, and EOS follows it

    def __init__(self, *, seed: int = 0, train_problems: int = 2000, heldout_problems: int = 256) -> None:
        """Draw the problems; the length of each number is uniform, so that short numbers are as common as long ones.

        Raises:
            ValueError: a number of problems is below 1 or more than there are.
        """
        self._problems = ProblemSet(_draw, seed=seed, train_problems=train_problems, heldout_problems=heldout_problems)

    def problem_count(self, split: Split) -> int:
        """Return the number of different problems in `split`."""
        return self._problems.count(split)

    def problem(self, index: int, split: Split) -> Problem[str]:
        """Return problem `index` of `split`; its answer is the sum, reversed.

        Raises:
            IndexError: `index` is outside [0, problem_count(split)).
        """
        return self._problems.problem(index, split)

    def score(self, problem: Problem[str], response_text: str) -> float:
        """Return 1.0 if the response is the answer, to the character, else 0.0."""
        return float(response_text == problem.answer)

    def reference_response(self, problem: Problem[str]) -> str:
        """Return the answer."""
        return problem.answer


def _draw(rng: random.Random) -> Problem[str]:
    left, right = _draw_number(rng), _draw_number(rng)
    return Problem(
        prompt_id=f"addition/{left}+{right}",
        prompt_text=f"{_reversed(left)}+{_reversed(right)}=",
        answer=_reversed(left + right),
    )


def _draw_number(rng: random.Random) -> int:
    digits = rng.randint(1, MAX_DIGITS)
    return rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)


def _reversed(number: int) -> str:
    return str(number)[::-1]
