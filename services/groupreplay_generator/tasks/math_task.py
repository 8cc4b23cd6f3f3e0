"""Mathematical problems from a file or a data set, verified by math-verify."""

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl

from groupreplay_generator.tasks.base import Problem, Split, split_of
from groupreplay_generator.tasks.extras import import_extra

PREFIX: Final = "math"
INSTRUCTION: Final = "Please reason step by step, and put your final answer within \\boxed{}."
MAX_RESPONSE_TOKENS: Final = 2048
READ_CHARACTERS: Final = 4000
"""The end of a response, where its answer stands. The parser's time grows with what it is given."""

_QUESTION_FIELDS: Final = ("question", "problem")
_ANSWER_FIELDS: Final = ("answer",)
_HF: Final = "hf:"
_FILE_BUILDERS: Final = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
_OPTIONS: Final = frozenset({"question", "answer", "heldout", "config", "split"})


@dataclass(frozen=True, slots=True, kw_only=True)
class MathSource:
    """Where problems are read from: `PATH.jsonl` or `hf:DATASET`, and options after a question mark.

    Attributes:
        location: a JSON Lines file, or what `datasets` loads.
        is_dataset: whether `datasets` loads it.
        question, answer: names of the fields; None = the usual ones.
        heldout: a second file, or another split of the data set; None = every eighth problem is held out.
        config, split: of the data set.
    """

    location: str
    is_dataset: bool = False
    question: str | None = None
    answer: str | None = None
    heldout: str | None = None
    config: str | None = None
    split: str = "train"

    @classmethod
    def parse(cls, text: str) -> "MathSource":
        """Return the source that `math:` was followed by.

        Raises:
            ValueError: it names no place, or has an option that is not known.
        """
        location, _, query = text.removeprefix(_HF).partition("?")
        options = dict(parse_qsl(query, keep_blank_values=True))
        if not location:
            raise ValueError(f"{PREFIX}:{text} names no file; write math:PATH.jsonl or math:hf:DATASET")
        if unknown := sorted(set(options) - _OPTIONS):
            raise ValueError(f"math:{text} has the unknown option {unknown[0]!r}; known: {', '.join(sorted(_OPTIONS))}")
        return cls(location=location, is_dataset=text.startswith(_HF), **options)


class MathTask:
    """Problems with a final answer. The reward is 1 for a response whose answer is equal to it, else 0.

    Equal as math-verify finds: 1/2, 0.5 and \\frac{1}{2} are, and so are x+1 and 1+x. Of an answer with a derivation,
    as in GSM8K, counts what stands after `####`.
    """

    def __init__(self, source: str) -> None:
        """Read all problems; a question that appears twice is read once.

        Args:
            source: as `MathSource` describes.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a line is not what it should be; the message says which.
            ImportError: math-verify, or datasets for `hf:`, is not installed.
        """
        _math_verify()
        self._source = MathSource.parse(source)
        read = _read_dataset if self._source.is_dataset else _read_lines
        heldout = None if self._source.heldout is None else _problems(read(self._source, heldout=True), self._source)
        self._problems = _split(_problems(read(self._source, heldout=False), self._source), heldout)

    @property
    def name(self) -> str:
        """`math:` and the name of the file or data set, without its folder."""
        return f"{PREFIX}:{Path(self._source.location).name}"[:128]

    @property
    def max_response_tokens(self) -> int:
        """Room for a derivation of a page or two."""
        return MAX_RESPONSE_TOKENS

    def problem_count(self, split: Split) -> int:
        """Return the number of different problems in `split`."""
        return len(self._problems[split])

    def problem(self, index: int, split: Split) -> Problem[str]:
        """Return problem `index` of `split`, in the order of the file.

        Raises:
            IndexError: `index` is outside [0, problem_count(split)).
        """
        problems = self._problems[split]
        if not 0 <= index < len(problems):
            raise IndexError(f"problem {index} of {split!r} is outside [0, {len(problems)})")
        return problems[index]

    def score(self, problem: Problem[str], response_text: str) -> float:
        """Return 1.0 for an answer equal to the problem's, else 0.0; without a limit of time, which callers keep.

        Raises:
            ValueError: the problem's own answer cannot be read.
        """
        math_verify = _math_verify()
        expected = _parsed_answer(problem.answer)
        if not expected:
            raise ValueError(
                f"the answer {problem.answer!r} of {problem.prompt_id} is nothing that math-verify can read"
            )
        # No timeouts of its own: they are signals, which only a main thread gets, and not while sympy is busy in C.
        given = math_verify.parse(response_text[-READ_CHARACTERS:], parsing_timeout=None)
        return float(math_verify.verify(expected, given, timeout_seconds=None))

    def reference_response(self, problem: Problem[str]) -> str:
        """Return the answer in a box."""
        return f"\\boxed{{{problem.answer}}}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """One record and where it stands, for errors."""

    place: str
    fields: Mapping[str, Any]


def _read_lines(source: MathSource, *, heldout: bool) -> Iterator[_Record]:
    path = Path(str(source.heldout) if heldout else source.location)
    if not path.is_file():
        raise FileNotFoundError(f"math: there is no file {path}; it holds one JSON object a line")
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _Record(place=f"{path}:{number}", fields=_json_object(line, f"{path}:{number}"))


def _json_object(line: str, place: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{place}: this is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{place}: expected a JSON object, got {line.strip()[:80]}")
    return value


def _read_dataset(source: MathSource, *, heldout: bool) -> Iterator[_Record]:
    datasets = import_extra("datasets", package="datasets", what=f"--task {PREFIX}:{_HF}...")
    split = str(source.heldout) if heldout else source.split
    path = Path(source.location)
    if path.is_file():
        if path.suffix not in _FILE_BUILDERS:
            raise ValueError(f"math:hf:{path} ends in none of {', '.join(_FILE_BUILDERS)}")
        rows = datasets.load_dataset(_FILE_BUILDERS[path.suffix], data_files={split: str(path)}, split=split)
    elif (path / "dataset_dict.json").is_file():
        rows = datasets.load_from_disk(str(path))[split]
    elif (path / "state.json").is_file():
        rows = datasets.load_from_disk(str(path))
    else:
        rows = datasets.load_dataset(source.location, source.config, split=split)
    for number, fields in enumerate(rows):
        yield _Record(place=f"{source.location}[{split}]:{number}", fields=fields)


def _problems(records: Iterable[_Record], source: MathSource) -> dict[str, Problem[str]]:
    """Return the problems by prompt_id; the first of those with the same question."""
    problems: dict[str, Problem[str]] = {}
    for record in records:
        question = _field(record, (source.question,) if source.question else _QUESTION_FIELDS)
        answer = _field(record, (source.answer,) if source.answer else _ANSWER_FIELDS)
        digest = hashlib.blake2b(" ".join(question.split()).encode(), digest_size=16).hexdigest()
        prompt_id = f"{PREFIX}/{digest}"
        prompt_text = f"{question}\n\n{INSTRUCTION}"
        problems.setdefault(prompt_id, Problem(prompt_id=prompt_id, prompt_text=prompt_text, answer=_final(answer)))
    return problems


def _field(record: _Record, names: tuple[str, ...]) -> str:
    for name in names:
        value = record.fields.get(name)
        if isinstance(value, str | int | float) and not isinstance(value, bool) and str(value).strip():
            return str(value).strip()
    raise ValueError(
        f"{record.place}: no text in {' or '.join(map(repr, names))}; it has the fields "
        f"{', '.join(map(repr, record.fields))}. Name others with ?question=...&answer=..."
    )


def _final(answer: str) -> str:
    return answer.rpartition("####")[2].strip() or answer


def _split(
    problems: dict[str, Problem[str]], heldout: dict[str, Problem[str]] | None
) -> dict[Split, tuple[Problem[str], ...]]:
    if heldout is None:
        heldout = {prompt_id: problem for prompt_id, problem in problems.items() if split_of(prompt_id) == "heldout"}
    train = (problem for prompt_id, problem in problems.items() if prompt_id not in heldout)
    return {"train": tuple(train), "heldout": tuple(heldout.values())}


def _math_verify() -> Any:
    return import_extra("math_verify", package="math-verify", what=f"--task {PREFIX}:...")


@functools.lru_cache(maxsize=1024)
def _parsed_answer(answer: str) -> Any:
    text = answer if "\\boxed" in answer or "$" in answer else f"\\boxed{{{answer}}}"
    return _math_verify().parse(text, parsing_timeout=None)
