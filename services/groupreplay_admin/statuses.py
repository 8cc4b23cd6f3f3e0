"""Exit statuses of all commands; docs/reference/command-line.md lists them."""

from enum import IntEnum


class Status(IntEnum):
    """How a command ended."""

    DONE = 0
    """Done; ready; healthy."""
    FAILED = 1
    """It could not be done; standard error says why."""
    WRONG_CALL = 2
    """An unknown flag or setting, or a value out of its range; nothing was done."""
    NOT_READY = 3
    """diagnose: no batch is ready. doctor: something must be mended."""
