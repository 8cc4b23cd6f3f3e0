"""What processes use, from /proc: elsewhere than on Linux nobody knows."""

import contextlib
import os
from pathlib import Path
from typing import Final

_TICKS_A_SECOND: Final = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has taken, its threads included."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / _TICKS_A_SECOND


def resident_bytes(pid: int) -> int:
    """Return the memory that a process has now."""
    return _kilobytes(pid, "VmRSS") * 1024


def peak_bytes(pid: int) -> int:
    """Return the most memory that a process has had since reset_peak."""
    return _kilobytes(pid, "VmHWM") * 1024


def reset_peak(pid: int) -> None:
    """Let the peak begin anew with what the process has now."""
    with contextlib.suppress(PermissionError):  # a container may forbid it: the peak is then that of its life
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def open_files(pid: int) -> int:
    """Return how many file descriptors a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()


def _kilobytes(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    return 0
