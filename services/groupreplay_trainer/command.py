"""`groupreplay train`: the trainer service from the command line."""

import logging
import signal
import threading
from types import FrameType
from typing import Annotated, Final

from cyclopts import Parameter

from groupreplay import GroupReplayError
from groupreplay.logs import configure_logging
from groupreplay_trainer.settings import TrainerSettings

_DEFAULTS: Final = TrainerSettings()


def train(settings: Annotated[TrainerSettings, Parameter(name="*")] = _DEFAULTS) -> int:
    """Train a policy on batches from the replay service, and publish its weights after every step.

    May be killed at any moment and started again with the same settings: it continues where it was. SIGTERM and
    SIGINT end it cleanly; a second one ends it at once.
    """
    # Imported late: torch takes seconds, and `groupreplay --help` needs none of it.
    from groupreplay_trainer.failures import RejectedStepError, TrainingMemoryError  # noqa: PLC0415
    from groupreplay_trainer.run_folder import RunFolderBusyError  # noqa: PLC0415
    from groupreplay_trainer.service_calls import StarvedError  # noqa: PLC0415
    from groupreplay_trainer.trainer import TrainingConflictError, run_trainer  # noqa: PLC0415

    configure_logging(settings.log_format)
    try:
        run_trainer(settings, stop=_stop_on_signal())
    except (
        GroupReplayError,
        RejectedStepError,
        RunFolderBusyError,
        StarvedError,
        TrainingConflictError,
        TrainingMemoryError,
        ModuleNotFoundError,
        OSError,
        ValueError,
    ) as error:
        logging.getLogger(__name__).error("the trainer gives up: %s", error)
        return 1
    return 0


def _stop_on_signal() -> threading.Event:
    """Return an event that the first SIGTERM or SIGINT sets; the second has its usual effect."""
    stop = threading.Event()

    def request_stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        logging.getLogger(__name__).info("%s: stopping", signal.Signals(number).name)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, request_stop)
    return stop
