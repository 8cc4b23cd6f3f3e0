"""The verifiable tasks of the package reasoning-gym, by name: https://github.com/open-thought/reasoning-gym."""

import difflib
import hashlib
import random
from types import ModuleType
from typing import Any, Final

from groupreplay_generator.tasks.base import Problem, Split, split_of
from groupreplay_generator.tasks.extras import import_extra

PREFIX: Final = "reasoning-gym"
INSTRUCTION: Final = "Give the final answer, and nothing else, between <answer> and </answer>."
MAX_RESPONSE_TOKENS: Final = 1024

_NEEDS_CONFIGURATION: Final = frozenset({"composite"})
_DATASET_ENTRIES: Final = 4000
"""Some data sets prepare all their entries at once, in milliseconds each, and some allow no more than 20000."""
_BARREN_DRAWS: Final = 1000
"""So many entries one after the other that bring no new problem to a split: it has no more."""

Entry = dict[str, Any]
"""What reasoning-gym calls an item: question, answer and metadata; its dataset scores responses to it."""


class ReasoningGymTask:
    """One task of reasoning-gym with its default configuration; its `score_answer` gives the reward.

    Scored is what the response says last between `<answer>` and `</answer>`, or all of it where there are no such
    tags. Problems are drawn when they are first asked for: some tasks take a tenth of a second for each.
    """

    def __init__(
        self, dataset_name: str, *, seed: int = 0, train_problems: int = 2000, heldout_problems: int = 256
    ) -> None:
        """Prepare to draw.

        Args:
            dataset_name: one of `dataset_names()`.
            seed: another seed draws other problems.
            train_problems, heldout_problems: how many of each split, at most: small tasks have fewer.

        Raises:
            ValueError: there is no task of that name, or a number is below 1.
            ImportError: reasoning-gym is not installed.
        """
        if dataset_name not in dataset_names():
            near = difflib.get_close_matches(dataset_name, dataset_names(), n=5, cutoff=0.5)
            hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(dataset_names())}"
            raise ValueError(f"reasoning-gym has no task {dataset_name!r}; {hint}")
        self._wanted: dict[Split, int] = {"train": train_problems, "heldout": heldout_problems}
        for split, count in self._wanted.items():
            if count < 1:
                raise ValueError(f"the split {split!r} needs at least one problem, got {count}")
        self._name = dataset_name
        self._seed = seed
        self._dataset = self._make_dataset(0)
        self._problems: dict[Split, dict[str, Problem[Entry]]] = {"train": {}, "heldout": {}}
        self._listed: dict[Split, list[Problem[Entry]]] = {}
        self._drawn = 0

    @property
    def name(self) -> str:
        """`reasoning-gym:` and the name of the task there."""
        return f"{PREFIX}:{self._name}"

    @property
    def max_response_tokens(self) -> int:
        """Room for some thought before the answer."""
        return MAX_RESPONSE_TOKENS

    def problem_count(self, split: Split) -> int:
        """Return the number of different problems in `split`, after drawing all of them."""
        return len(self._all(split))

    def problem(self, index: int, split: Split) -> Problem[Entry]:
        """Return problem `index` of `split`.

        Raises:
            IndexError: `index` is outside [0, problem_count(split)).
        """
        problems = self._all(split)
        if not 0 <= index < len(problems):
            raise IndexError(f"problem {index} of {split!r} is outside [0, {len(problems)})")
        return problems[index]

    def score(self, problem: Problem[Entry], response_text: str) -> float:
        """Return what the task's own verifier gives, in [0, 1]."""
        tagged = _import().utils.extract_answer(response_text)
        return float(self._dataset.score_answer(response_text.strip() if tagged is None else tagged, problem.answer))

    def reference_response(self, problem: Problem[Entry]) -> str:
        """Return the answer that comes with the problem.

        Raises:
            ValueError: the task only has a verifier, and no answers.
        """
        answer = problem.answer["answer"]
        if answer is None:
            raise ValueError(f"{self.name} verifies responses but comes with none")
        return f"<answer>{answer}</answer>"

    def _all(self, split: Split) -> list[Problem[Entry]]:
        """Draw until `split` has what is wanted of it, or no new problem is found; one stream serves both splits."""
        if split not in self._wanted:
            raise ValueError(f"unknown split {split!r}; known: {', '.join(self._wanted)}")
        if split not in self._listed:
            found, barren = self._problems[split], 0
            while len(found) < self._wanted[split] and barren < _BARREN_DRAWS:
                before = len(found)
                self._draw_one()
                barren = 0 if len(found) > before else barren + 1
            self._listed[split] = list(found.values())[: self._wanted[split]]
        return self._listed[split]

    def _draw_one(self) -> None:
        number, index = divmod(self._drawn, _DATASET_ENTRIES)
        if index == 0 and number:
            self._dataset = self._make_dataset(number)
        entry = _entry(self._dataset, index, f"{self.name}/{self._seed}/{self._drawn}")
        self._drawn += 1
        digest = hashlib.blake2b(entry["question"].encode(), digest_size=16).hexdigest()
        prompt_id = f"{self.name}/{digest}"
        problem = Problem(prompt_id=prompt_id, prompt_text=f"{entry['question']}\n\n{INSTRUCTION}", answer=entry)
        self._problems[split_of(prompt_id)].setdefault(prompt_id, problem)

    def _make_dataset(self, number: int) -> Any:
        """Return the data set of the given number. Entry i has its seed plus i, so the seeds must lie far apart."""
        digest = hashlib.blake2b(f"{self._name}/{self._seed}/{number}".encode(), digest_size=4).digest()
        seed = int.from_bytes(digest, "little") // 2
        return _import().create_dataset(self._name, seed=seed, size=_DATASET_ENTRIES)


def dataset_names() -> tuple[str, ...]:
    """Return the names of all tasks of reasoning-gym, sorted, but for those that need a configuration.

    Raises:
        ImportError: reasoning-gym is not installed.
    """
    return tuple(sorted(set(_import().factory.DATASETS) - _NEEDS_CONFIGURATION))


def _import() -> ModuleType:
    return import_extra("reasoning_gym", package="reasoning-gym", what=f"--task {PREFIX}:...")


def _entry(dataset: Any, index: int, seed: str) -> Entry:
    """Return an entry; some tasks also draw from the generator that the whole process shares."""
    state = random.getstate()
    random.seed(seed)
    try:
        entry: Entry = dataset[index]
    finally:
        random.setstate(state)
    return entry
