"""What a task is: a source of problems and the verifier of their answers."""

import hashlib
from dataclasses import dataclass, field
from typing import Final, Generic, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt

Split = Literal["train", "heldout"]

HELDOUT_SHARE: Final = 8
"""One problem in this many belongs to the held-out split."""

AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem(Generic[AnswerT]):
    """One problem: what the policy is asked, and what the verifier needs to judge a response.

    Attributes:
        prompt_id: the same for the same problem in every process and for every seed; different for any other problem.
        prompt_text: what the policy reads.
        answer: read by the task that made the problem, and by nobody else. Plain data, or anything that can be pickled.
        image: uint8 [H, W, C], with 1 (grey) or 3 (RGB) channels: what the policy sees, before it reads the prompt.
    """

    prompt_id: str
    prompt_text: str
    answer: AnswerT
    image: npt.NDArray[np.uint8] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Raise ValueError for an empty id or prompt, or an image of another shape or dtype."""
        if not self.prompt_id:
            raise ValueError("prompt_id must not be empty")
        if not self.prompt_text:
            raise ValueError(f"prompt_text of {self.prompt_id!r} must not be empty")
        image = self.image
        if image is not None and (image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3)):
            raise ValueError(
                f"the image of {self.prompt_id!r} is {image.dtype} of shape {image.shape}; "
                "it must be uint8 [H, W, 1] or [H, W, 3]"
            )


class Task(Protocol[AnswerT]):
    """A seeded, finite set of training and held-out problems that share no problem, and their verifier.

    Two tasks of the same name and seed are the same task, on any machine. A task whose verifier is so plain that it
    can neither hang nor crash may say so by an attribute `scores_in_process = True`; the others are scored in processes
    of their own.
    """

    @property
    def name(self) -> str:
        """The name that `create_task` knows it by, and that groups carry."""

    @property
    def max_response_tokens(self) -> int:
        """How many tokens, EOS included, a policy needs at most to write a correct response; > 0."""

    def problem_count(self, split: Split) -> int:
        """Return the number of different problems in `split`."""

    def problem(self, index: int, split: Split) -> Problem[AnswerT]:
        """Return a problem; the same for the same arguments.

        Raises:
            IndexError: `index` is outside [0, problem_count(split)).
        """

    def score(self, problem: Problem[AnswerT], response_text: str) -> float:
        """Return the reward of a response, 1 for a correct one. Promptly, and without raising, for any response."""


@runtime_checkable
class SolvableTask(Task[AnswerT], Protocol[AnswerT]):
    """A task that knows a correct response to each of its problems."""

    def reference_response(self, problem: Problem[AnswerT]) -> str:
        """Return a response that scores 1, for warm starts."""


def split_of(prompt_id: str) -> Split:
    """Return the split that a problem belongs to, from its identity alone.

    No seed enters, so a problem held out under one seed is never trained on under another, nor in a warm start.
    """
    digest = hashlib.blake2b(prompt_id.encode(), digest_size=8).digest()
    return "heldout" if int.from_bytes(digest, "little") % HELDOUT_SHARE == 0 else "train"
