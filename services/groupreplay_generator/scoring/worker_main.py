"""A reward worker: a process that scores what it is sent.

Frames come on standard input: a length and a pickle, the first one a `Setup`, the others (problem, response texts).
Each answer is a line of JSON on standard output. Nothing that a verifier prints or reads touches either.
"""

import faulthandler
import json
import os
import pickle
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from groupreplay_generator.scoring.verdict import judge
from groupreplay_generator.tasks import create_task

LENGTH: Final = struct.Struct("<Q")
ORPHAN_GRACE_S: Final = 5.0
"""How far past all its time limits a worker may run before it ends itself: its generator must be gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a worker is told first.

    Attributes:
        task, seed: arguments of `create_task`.
        timeout_s: the limit of one score, which the generator keeps; the worker only outlives it by so much.
    """

    task: str
    seed: int
    timeout_s: float


def frame(content: object) -> bytes:
    """Return an object as the bytes that `main` reads.

    Raises:
        ValueError: it cannot be pickled.
    """
    try:
        pickled = pickle.dumps(content, protocol=pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise ValueError(f"it cannot be pickled: {error}") from error
    return LENGTH.pack(len(pickled)) + pickled


def main() -> None:
    """Make the task, say so, then score until the generator hangs up."""
    source, sink = _take_standard_streams()
    setup: Setup = next(_frames(source))
    task = create_task(setup.task, seed=setup.seed)
    _answer(sink, {"ready": True})
    for problem, texts in _frames(source):
        # Without the interpreter's help: a verifier may hold the lock that a thread or a signal handler would need.
        faulthandler.dump_traceback_later(setup.timeout_s * len(texts) + ORPHAN_GRACE_S, exit=True)
        for text in texts:
            verdict = judge(task, problem, text)
            _answer(sink, {"reward": verdict.reward, "failure": verdict.failure, "message": verdict.message})
        faulthandler.cancel_dump_traceback_later()


def _take_standard_streams() -> tuple[BinaryIO, BinaryIO]:
    """Return the two ends of the generator, and leave verifiers an empty input, and standard error to print to."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.dup2(2, 1)
    os.close(empty)
    return source, sink


def _frames(source: BinaryIO) -> Iterator[Any]:
    while len(head := source.read(LENGTH.size)) == LENGTH.size:
        yield pickle.loads(source.read(LENGTH.unpack(head)[0]))  # noqa: S301 - from the process that started this one


def _answer(sink: BinaryIO, content: dict[str, object]) -> None:
    sink.write(json.dumps(content).encode() + b"\n")
    sink.flush()
