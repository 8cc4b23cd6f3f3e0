"""The groups that are moved, the same on every machine. Needs numpy only, so that peers can move the same."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

_SHORTEST, _LONGEST = 0.4, 1.6
"""Responses are so much of the mean long; that of shape M are 512 to 2048 tokens."""
_VOCABULARY: Final = 150_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How large groups are."""

    name: str
    rollouts: int
    mean_tokens: int
    """Of a response."""
    like: str

    @property
    def mean_bytes(self) -> int:
        """Payload of a group, on average: four bytes of token id and four of log probability for each token."""
        return self.rollouts * self.mean_tokens * 8


SHAPES: Final = {
    shape.name: shape
    for shape in (
        Shape(name="S", rollouts=8, mean_tokens=512, like="Countdown"),
        Shape(name="M", rollouts=8, mean_tokens=1280, like="short math, 81 KB"),
        Shape(name="D", rollouts=16, mean_tokens=4800, like="7B DAPO, 0.61 MB"),
        Shape(name="L", rollouts=16, mean_tokens=32_768, like="the longest 7B, 4.2 MB"),
        Shape(name="A", rollouts=16, mean_tokens=131_072, like="agentic, 16.8 MB"),
        Shape(name="tiny", rollouts=2, mean_tokens=8, like="nothing: what is left is work on the index"),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupArrays:
    """The numbers of a group: lengths [G], token ids [T], log probabilities [T], rewards [G]."""

    lengths: npt.NDArray[np.int32]
    token_ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]
    rewards: npt.NDArray[np.float32]

    @property
    def size_bytes(self) -> int:
        """Bytes of token ids and log probabilities."""
        return self.token_ids.nbytes + self.logprobs.nbytes


def make_arrays(shape: Shape, index: int) -> GroupArrays:
    """Return group number `index` of a shape, always the same; its rewards differ."""
    rng = np.random.default_rng([*shape.name.encode(), index])
    low, high = int(_SHORTEST * shape.mean_tokens), int(_LONGEST * shape.mean_tokens)
    lengths = rng.integers(max(low, 1), high, size=shape.rollouts, endpoint=True, dtype=np.int32)
    total = int(lengths.sum())
    rewards = rng.integers(0, 2, size=shape.rollouts).astype(np.float32)
    rewards[:2] = (0.0, 1.0)
    return GroupArrays(
        lengths=lengths,
        token_ids=rng.integers(0, _VOCABULARY, size=total, dtype=np.int32),
        logprobs=(-rng.exponential(0.4, size=total)).astype(np.float32),
        rewards=rewards,
    )
