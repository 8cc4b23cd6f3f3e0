"""`groupreplay` in the process of the test."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

# The command line is what the test sets as sys.argv.
IN_PROCESS = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    status: int
    output: str
    errors: str


Run = Callable[..., Ended]
