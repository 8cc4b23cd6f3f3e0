"""How a peer's process is told what to do: a line of JSON in, a line of JSON out."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Tallied = dict[str, Any]
"""The fields of a Tally."""


def answer_requests(operations: Mapping[str, Callable[..., Tallied]]) -> None:
    """Do what each line of standard input asks, until it ends: {"do": name, ...arguments}."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # what libraries print is no answer
    for line in sys.stdin:
        arguments = json.loads(line)
        cpu_before = time.process_time()
        answer = operations[arguments.pop("do")](**arguments)
        answers.write(json.dumps({"cpu_s": time.process_time() - cpu_before} | answer) + "\n")
        answers.flush()


def until(seconds: float) -> Iterator[float]:
    """Yield the clock, over and over, for so many seconds."""
    end = time.perf_counter() + seconds
    while (now := time.perf_counter()) < end:
        yield now
