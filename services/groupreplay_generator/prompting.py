"""Sampling of responses to problems, without those that the engine cannot take."""

from collections.abc import Callable, Sequence
from typing import Any

from groupreplay_generator.engines import Engine, EngineAwayError, EngineResult, Sampling
from groupreplay_generator.tasks import Problem

Sampled = list[tuple[Problem[Any], EngineResult]]


async def sample_problems(
    engine: Engine,
    problems: Sequence[Problem[Any]],
    *,
    rollouts_per_prompt: int,
    sampling: Sampling,
    on_unfit: Callable[[Problem[Any], ValueError], None],
    sampled: Sampled | None = None,
) -> Sampled:
    """Return the problems that the engine takes, in order, each with its responses.

    An engine refuses a whole batch for one prompt that is too long, before it samples anything. Such a batch is halved
    until the prompt stands alone.

    Args:
        on_unfit: is told of each problem that is left out, and why.
        sampled: what is returned is appended to it, also what was finished before an error.

    Raises:
        EngineAwayError: the engine does not answer at the moment.
    """
    sampled = [] if sampled is None else sampled
    if not problems:
        return sampled
    try:
        results = await engine.generate(
            [problem.prompt_text for problem in problems],
            images=_images(problems),
            rollouts_per_prompt=rollouts_per_prompt,
            sampling=sampling,
        )
    except EngineAwayError as error:
        sampled += [(problems[index], result) for index, result in sorted(error.finished.items())]
        raise
    except ValueError as error:
        if len(problems) == 1:
            on_unfit(problems[0], error)
            return sampled
        middle = len(problems) // 2
        for half in (problems[:middle], problems[middle:]):
            await sample_problems(
                engine,
                half,
                rollouts_per_prompt=rollouts_per_prompt,
                sampling=sampling,
                on_unfit=on_unfit,
                sampled=sampled,
            )
        return sampled
    sampled += zip(problems, results, strict=True)
    return sampled


def _images(problems: Sequence[Problem[Any]]) -> list[Any] | None:
    """Return the image of every problem, or None where the problems have none.

    Raises:
        ValueError: some have one and others do not.
    """
    images = [problem.image for problem in problems if problem.image is not None]
    if len(images) not in (0, len(problems)):
        raise ValueError(
            f"{len(images)} of {len(problems)} problems have an image; a batch has one for each or for none"
        )
    return images or None
