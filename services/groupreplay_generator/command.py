"""`groupreplay generate` and `groupreplay evaluate`."""

import asyncio
import logging
import signal
from collections.abc import Coroutine
from typing import Any

from groupreplay import GroupReplayError
from groupreplay.logs import configure_logging
from groupreplay_generator.settings import EvaluatorSettings, GeneratorSettings
from groupreplay_generator.tasks.extras import MissingPackageError

_GENERATOR = GeneratorSettings()
_EVALUATOR = EvaluatorSettings()


def generate(settings: GeneratorSettings = _GENERATOR) -> int:
    """Generate scored rollout groups for a table, with the newest policy of its run.

    Produces what the table asks for: it waits while the trainer has enough. Start as many as you have engines; each
    can be killed and started again at any time.
    """
    from groupreplay_generator.generator import run_generator  # noqa: PLC0415  numpy and torch: not for --help

    return _run(run_generator(settings), settings)


def evaluate(settings: EvaluatorSettings = _EVALUATOR) -> int:
    """Measure the policies of a run on held-out problems, as they are published."""
    from groupreplay_generator.evaluator import run_evaluator  # noqa: PLC0415

    return _run(run_evaluator(settings), settings)


def _run(work: Coroutine[Any, Any, None], settings: GeneratorSettings | EvaluatorSettings) -> int:
    """Run until the work ends or SIGTERM or SIGINT comes."""
    configure_logging(settings.log_format)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # else a line for each request to vLLM
    if settings.threads is not None:
        import torch  # noqa: PLC0415

        torch.set_num_threads(settings.threads)
    try:
        asyncio.run(_until_signal(work))
    except asyncio.CancelledError:
        return 0
    except (GroupReplayError, MissingPackageError, OSError, ValueError) as error:
        logging.getLogger(__name__).error("giving up: %s", error)
        return 1
    return 0


async def _until_signal(work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.ensure_future(work)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    await task
