"""Plane figures on squared paper, to be measured by looking: the answer is in the image alone."""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from groupreplay_generator.tasks.base import Problem, Split
from groupreplay_generator.tasks.problem_set import ProblemSet

CELLS: Final = 12
"""Width and height of the paper, in cells."""

Image = npt.NDArray[np.uint8]
Style = Literal["words", "tiny"]

_PAPER, _GRID, _INK = 255, 200, 0
_NUMBER: Final = re.compile(r"[0-9]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class _StyleRules:
    """How a problem looks: pixels of a cell, whether the cells are ruled, room for a response."""

    cell_pixels: int
    ruled: bool
    max_response_tokens: int


_STYLES: Final[dict[Style, _StyleRules]] = {
    "words": _StyleRules(cell_pixels=20, ruled=True, max_response_tokens=512),
    "tiny": _StyleRules(cell_pixels=2, ruled=False, max_response_tokens=4),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What is drawn: filled rectangles (left, top, right, bottom) and segments (x0, y0, x1, y1), in cells."""

    rectangles: tuple[tuple[int, int, int, int], ...] = ()
    segments: tuple[tuple[int, int, int, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GeometryAnswer:
    """The number asked for, and what it was taken from."""

    number: int
    figure: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """A kind of problem: `code` asks it of the tiny model, whose alphabet has no letters."""

    name: str
    code: str
    words: str
    draw: Callable[[random.Random], tuple[Figure, int]]


class GeometryTask:
    """How many squares, what area, perimeter, length or angle? The reward is 1 if the response's last number is right.

    The style `words` asks in English about a ruled grey image of 240 x 240 pixels, for a vision-language model; `tiny`
    asks by number about one of 24 x 24 pixels, for the tiny model of the tests.
    """

    scores_in_process: Final = True

    def __init__(
        self, *, style: Style = "words", seed: int = 0, train_problems: int = 2000, heldout_problems: int = 256
    ) -> None:
        """Draw the problems; every kind is as common.

        Raises:
            ValueError: there is no such style, or there are not that many problems.
        """
        if style not in _STYLES:
            raise ValueError(f"unknown style {style!r}; known: {', '.join(_STYLES)}")
        self._style: Style = style
        self._problems = ProblemSet(
            self._draw, seed=seed, train_problems=train_problems, heldout_problems=heldout_problems
        )

    @property
    def name(self) -> str:
        """`geometry` or `geometry-tiny`."""
        return "geometry" if self._style == "words" else "geometry-tiny"

    @property
    def max_response_tokens(self) -> int:
        """Three digits and EOS for the tiny model; some thought for others."""
        return _STYLES[self._style].max_response_tokens

    def problem_count(self, split: Split) -> int:
        """Return the number of different problems in `split`."""
        return self._problems.count(split)

    def problem(self, index: int, split: Split) -> Problem[GeometryAnswer]:
        """Return problem `index` of `split`, with its image.

        Raises:
            IndexError: `index` is outside [0, problem_count(split)).
        """
        problem = self._problems.problem(index, split)
        rules = _STYLES[self._style]
        # Drawn anew each time: all images of a task would be a hundred megabytes.
        image = render(problem.answer.figure, cell_pixels=rules.cell_pixels, ruled=rules.ruled)
        return replace(problem, image=image)

    def score(self, problem: Problem[GeometryAnswer], response_text: str) -> float:
        """Return 1.0 if the last whole number of the response is the answer, else 0.0."""
        numbers = _NUMBER.findall(response_text)
        return float(bool(numbers) and numbers[-1] == str(problem.answer.number))

    def reference_response(self, problem: Problem[GeometryAnswer]) -> str:
        """Return the answer."""
        return str(problem.answer.number)

    def _draw(self, rng: random.Random) -> Problem[GeometryAnswer]:
        question = rng.choice(QUESTIONS)
        figure, number = question.draw(rng)
        return Problem(
            prompt_id=f"geometry/{question.name}/{_key(figure)}",
            prompt_text=question.words if self._style == "words" else f"{question.code}:",
            answer=GeometryAnswer(number=number, figure=figure),
        )


def render(figure: Figure, *, cell_pixels: int, ruled: bool) -> Image:
    """Return the figure in black on white, uint8 [H, W, 1], both sides CELLS x cell_pixels; `ruled` shows the cells."""
    side = CELLS * cell_pixels
    image = np.full((side, side, 1), _PAPER, np.uint8)
    for left, top, right, bottom in figure.rectangles:
        image[top * cell_pixels : bottom * cell_pixels, left * cell_pixels : right * cell_pixels] = _INK
    if ruled:
        lines = np.arange(0, side, cell_pixels)
        image[lines], image[:, lines] = np.minimum(image[lines], _GRID), np.minimum(image[:, lines], _GRID)
    for segment in figure.segments:
        _draw_segment(image, segment, cell_pixels)
    return image


def _draw_segment(image: Image, segment: tuple[int, int, int, int], cell_pixels: int) -> None:
    """Draw a line between two corners of cells, an eighth of a cell wide, at least one pixel."""
    x0, y0, x1, y1 = (value * cell_pixels for value in segment)
    steps = 2 * max(abs(x1 - x0), abs(y1 - y0)) + 1
    xs, ys = np.linspace(x0, x1, steps).round().astype(int), np.linspace(y0, y1, steps).round().astype(int)
    width = max(1, cell_pixels // 8)
    last = image.shape[0] - 1
    for dy in range(width):
        for dx in range(width):
            image[np.clip(ys + dy, 0, last), np.clip(xs + dx, 0, last)] = _INK


def _key(figure: Figure) -> str:
    shapes: Sequence[tuple[int, int, int, int]] = sorted(figure.rectangles) + sorted(figure.segments)
    return ";".join(",".join(map(str, shape)) for shape in shapes)


def _draw_squares(rng: random.Random) -> tuple[Figure, int]:
    """Place 1 to 9 squares of 2 x 2 cells in the nine fields of 4 x 4."""
    fields = rng.sample(range(9), rng.randint(1, 9))
    corners = [(4 * (field % 3) + rng.randint(0, 1), 4 * (field // 3) + rng.randint(0, 1)) for field in fields]
    return Figure(rectangles=tuple(sorted((x, y, x + 2, y + 2) for x, y in corners))), len(fields)


def _draw_rectangle(rng: random.Random) -> tuple[int, int, int, int]:
    width, height = rng.randint(1, CELLS), rng.randint(1, CELLS)
    left, top = rng.randint(0, CELLS - width), rng.randint(0, CELLS - height)
    return left, top, left + width, top + height


def _draw_area(rng: random.Random) -> tuple[Figure, int]:
    left, top, right, bottom = rectangle = _draw_rectangle(rng)
    return Figure(rectangles=(rectangle,)), (right - left) * (bottom - top)


def _draw_perimeter(rng: random.Random) -> tuple[Figure, int]:
    left, top, right, bottom = rectangle = _draw_rectangle(rng)
    return Figure(rectangles=(rectangle,)), 2 * (right - left + bottom - top)


def _draw_length(rng: random.Random) -> tuple[Figure, int]:
    length, across = rng.randint(1, CELLS - 1), rng.randint(0, CELLS - 1)
    start = rng.randint(0, CELLS - 1 - length)
    flat = (start, across, start + length, across)
    upright = (across, start, across, start + length)
    return Figure(segments=(rng.choice((flat, upright)),)), length


_DIRECTIONS: Final = ((1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1))


def _draw_angle(rng: random.Random) -> tuple[Figure, int]:
    """Draw two legs from one corner, 45 to 180 degrees apart."""
    first, turn = rng.randrange(8), rng.randint(1, 4)
    reach = rng.randint(2, 4)
    x, y = rng.randint(reach, CELLS - 1 - reach), rng.randint(reach, CELLS - 1 - reach)
    legs = (_DIRECTIONS[first], _DIRECTIONS[(first + turn) % 8])
    segments = tuple(sorted((x, y, x + reach * dx, y + reach * dy) for dx, dy in legs))
    return Figure(segments=segments), 45 * turn


QUESTIONS: Final = (
    _Question(name="count", code="1", words="How many black squares are in the image?", draw=_draw_squares),
    _Question(
        name="area",
        code="2",
        words="What is the area of the black rectangle, in cells of the grid?",
        draw=_draw_area,
    ),
    _Question(
        name="perimeter",
        code="3",
        words="What is the perimeter of the black rectangle, in sides of a cell of the grid?",
        draw=_draw_perimeter,
    ),
    _Question(
        name="length",
        code="4",
        words="How long is the black line, in sides of a cell of the grid?",
        draw=_draw_length,
    ),
    _Question(
        name="angle",
        code="5",
        words="What is the angle between the two black lines, in degrees, at most 180?",
        draw=_draw_angle,
    ),
)
