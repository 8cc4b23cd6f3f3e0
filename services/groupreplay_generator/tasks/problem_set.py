"""The problems of a generated task: drawn once from a seed, all different, split by their content."""

import random
from collections.abc import Callable
from typing import Final, Generic

from groupreplay_generator.tasks.base import AnswerT, Problem, Split, split_of

_BARREN_DRAWS: Final = 10_000
"""Whoever asks for more problems than there are would wait for ever; so many draws without a new one end it."""


class ProblemSet(Generic[AnswerT]):
    """A fixed number of different problems of each split."""

    def __init__(
        self,
        draw: Callable[[random.Random], Problem[AnswerT]],
        *,
        seed: int,
        train_problems: int,
        heldout_problems: int,
    ) -> None:
        """Draw the problems.

        Args:
            draw: returns one problem, of either split, using no randomness but the generator it is given.
            seed: another seed gives other problems.
            train_problems, heldout_problems: how many of each split; >= 1.

        Raises:
            ValueError: a number is below 1, or `draw` does not have that many different problems.
        """
        self._problems: dict[Split, tuple[Problem[AnswerT], ...]] = {
            "train": _draw_split(draw, "train", train_problems, seed),
            "heldout": _draw_split(draw, "heldout", heldout_problems, seed),
        }

    def count(self, split: Split) -> int:
        """Return the number of problems in `split`."""
        return len(self._of(split))

    def problem(self, index: int, split: Split) -> Problem[AnswerT]:
        """Return problem `index` of `split`.

        Raises:
            IndexError: `index` is outside [0, count(split)).
            ValueError: there is no such split.
        """
        problems = self._of(split)
        if not 0 <= index < len(problems):
            raise IndexError(f"problem {index} of {split!r} is outside [0, {len(problems)})")
        return problems[index]

    def _of(self, split: Split) -> tuple[Problem[AnswerT], ...]:
        if split not in self._problems:
            raise ValueError(f"unknown split {split!r}; known: {', '.join(self._problems)}")
        return self._problems[split]


def _draw_split(
    draw: Callable[[random.Random], Problem[AnswerT]], split: Split, count: int, seed: int
) -> tuple[Problem[AnswerT], ...]:
    if count < 1:
        raise ValueError(f"the split {split!r} needs at least one problem, got {count}")
    # Seeded by a string: hashed with SHA-512, so neighbouring seeds and the two splits share no stretch of numbers.
    rng = random.Random(f"{split}/{seed}")
    problems: dict[str, Problem[AnswerT]] = {}
    barren = 0
    while barren < _BARREN_DRAWS:
        problem = draw(rng)
        barren += 1
        if split_of(problem.prompt_id) == split and problem.prompt_id not in problems:
            problems[problem.prompt_id] = problem
            barren = 0
        if len(problems) == count:
            return tuple(problems.values())
    raise ValueError(f"found only {len(problems)} of the {count} different problems asked for in {split!r}")
