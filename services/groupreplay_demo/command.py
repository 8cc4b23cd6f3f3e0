"""`groupreplay demo`."""

import signal
import sys
from types import FrameType

from groupreplay_demo.settings import DemoSettings

_DEFAULTS = DemoSettings()
_INTERRUPTED = 130


def demo(settings: DemoSettings = _DEFAULTS) -> int:
    """Show the whole loop on this machine in a few minutes: a tiny model learns, refilled by groupreplay.

    Starts the service with a private Redis, a trainer, a generator and an evaluator as processes of their own; ends
    with a table, a picture and summary.json in --run-dir. Ctrl-C stops all of them.
    """
    from rich.console import Console  # noqa: PLC0415  and matplotlib: not for --help

    from groupreplay_demo.children import INTERRUPTS, ChildFailedError  # noqa: PLC0415
    from groupreplay_demo.demo import run_demo  # noqa: PLC0415
    from groupreplay_demo.local_service import DemoError  # noqa: PLC0415

    for number in INTERRUPTS:
        signal.signal(number, _interrupt)
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    try:
        run_demo(settings, console)
    except KeyboardInterrupt:
        console.print(f"interrupted: every process was stopped; logs are in {settings.run_dir}")
        return _INTERRUPTED
    except (DemoError, ChildFailedError) as error:
        print(f"groupreplay demo: {error}", file=sys.stderr)
        return 1
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
