"""The machine that a benchmark ran on, and how busy it was with other things."""

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Self

from service.measured import Round
from service.private_redis import valkey_server


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What there was."""

    cores: int
    processor: str
    memory_gb: float
    system: str
    python: str
    redis: str
    grpcio: str
    load_before: float
    """Load average of the last minute when the benchmark began: above some tenths, other work shared the cores."""
    load_mean: float
    """Mean over the rounds; the benchmark itself keeps two to four processes busy."""

    @classmethod
    def here(cls, load_before: float, rounds: Sequence[Round]) -> Self:
        """Return this machine."""
        redis = subprocess.run([valkey_server(), "--version"], check=True, capture_output=True, text=True).stdout
        found = re.search(r"v=(\S+)", redis)
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return cls(
            cores=os.cpu_count() or 1,
            processor=_processor(),
            memory_gb=round(pages / 1e9, 1),
            system=f"{platform.system()} {platform.release()}",
            python=platform.python_version(),
            redis=f"{redis.split()[0]} {found.group(1) if found else ''}".strip(),
            grpcio=version("grpcio"),
            load_before=round(load_before, 1),
            load_mean=round(sum(each.load for each in rounds) / max(1, len(rounds)), 1),
        )


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.*)$", facts.read_text(), re.MULTILINE) if facts.exists() else None
    return found.group(1) if found else platform.processor() or platform.machine()
