"""Figures to be measured: what is asked is in the picture, and can be found there."""

import numpy as np
import pytest

from groupreplay_generator.tasks import Problem, SolvableTask, create_task
from groupreplay_generator.tasks.geometry import GeometryAnswer, GeometryTask


@pytest.fixture(scope="module")
def tiny() -> GeometryTask:
    """The style for the tiny model: 24 x 24 pixels."""
    return GeometryTask(style="tiny", seed=3)


def problems(task: GeometryTask, kind: str) -> list[Problem[GeometryAnswer]]:
    """Return the training problems of one kind, a few hundred."""
    found = (task.problem(index, "train") for index in range(task.problem_count("train")))
    return [problem for problem in found if f"/{kind}/" in problem.prompt_id]


def ink(problem: Problem[GeometryAnswer]) -> np.ndarray:
    """Return which pixels are black, [H, W]."""
    assert problem.image is not None
    return np.asarray(problem.image[..., 0] == 0)


def test_area_and_perimeter_can_be_read_off_the_pixels(tiny: GeometryTask) -> None:
    """Two pixels are the side of a cell."""
    for problem in problems(tiny, "area"):
        assert problem.answer.number == ink(problem).sum() / 4
    for problem in problems(tiny, "perimeter"):
        black = ink(problem)
        assert problem.answer.number == black.any(axis=0).sum() + black.any(axis=1).sum()


def test_squares_can_be_counted(tiny: GeometryTask) -> None:
    """Each has 16 pixels, and none touches another."""
    counts = set()
    for problem in problems(tiny, "count"):
        black = np.pad(ink(problem), 1)
        corners = black[1:, 1:] & ~black[:-1, 1:] & ~black[1:, :-1]
        assert problem.answer.number == black.sum() / 16 == corners.sum()
        counts.add(problem.answer.number)
    assert counts == set(range(1, 10))


def test_lines_are_as_long_as_they_are_said_to_be(tiny: GeometryTask) -> None:
    """From corner to corner of the cells."""
    for problem in problems(tiny, "length"):
        assert problem.answer.number == (ink(problem).sum() - 1) / 2


def test_angles_are_those_between_the_lines_drawn(tiny: GeometryTask) -> None:
    """The corner is where both lines end; they are as far apart as the answer says."""
    seen = set()
    for problem in problems(tiny, "angle"):
        ends = [((x0, y0), (x1, y1)) for x0, y0, x1, y1 in problem.answer.figure.segments]
        (corner,) = set(ends[0]) & set(ends[1])
        legs = [np.subtract(b if a == corner else a, corner) for a, b in ends]
        cosine = legs[0] @ legs[1] / np.linalg.norm(legs[0]) / np.linalg.norm(legs[1])
        assert problem.answer.number == round(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
        assert all(ink(problem)[2 * y, 2 * x] for end in ends for x, y in end)
        seen.add(problem.answer.number)
    assert seen == {45, 90, 135, 180}


def test_the_styles_show_the_same_figures_to_different_eyes() -> None:
    """Words and a ruled image for a vision-language model, a number and 24 pixels for the tiny one."""
    words, tiny = GeometryTask(style="words", seed=1), GeometryTask(style="tiny", seed=1)
    for index in range(20):
        large, small = words.problem(index, "train"), tiny.problem(index, "train")
        assert large.prompt_id == small.prompt_id
        assert large.answer == small.answer
        assert large.image is not None
        assert small.image is not None
        assert (large.image.shape, small.image.shape) == ((240, 240, 1), (24, 24, 1))
        assert large.prompt_text.endswith("?")
        assert set(small.prompt_text) <= set("12345:")


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        ("12", 1.0),
        ("It is 3 x 4 = 12.", 1.0),
        ("12 or 13", 0.0),
        ("012", 0.0),
        ("", 0.0),
        ("twelve", 0.0),
        ("112", 0.0),
    ],
)
def test_the_last_number_of_a_response_counts(tiny: GeometryTask, response: str, reward: float) -> None:
    """A policy may think before it answers."""
    problem = next(problem for problem in problems(tiny, "area") if problem.answer.number == 12)
    assert tiny.score(problem, response) == reward


def test_both_styles_can_be_solved() -> None:
    """The reference response earns the reward."""
    for name in ("geometry", "geometry-tiny"):
        task = create_task(name, train_problems=20, heldout_problems=2)
        assert isinstance(task, SolvableTask)
        problem = task.problem(7, "train")
        assert task.score(problem, task.reference_response(problem)) == 1.0


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4, 1), np.float32)]
)
def test_a_picture_of_another_shape_is_refused(image: np.ndarray) -> None:
    """Whoever makes a task learns what an image is where they make it."""
    with pytest.raises(ValueError, match=r"must be uint8 \[H, W, 1\] or \[H, W, 3\]"):
        Problem(prompt_id="p", prompt_text="?", answer=None, image=image)


def test_a_style_that_nobody_knows_is_refused() -> None:
    """A misspelt style is an error."""
    with pytest.raises(ValueError, match="unknown style 'huge'; known: words, tiny"):
        GeometryTask(style="huge")  # type: ignore[arg-type]
