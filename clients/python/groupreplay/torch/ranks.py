"""How the processes of a trainer are one towards the service: the first one acts, and the others learn the outcome."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch.distributed as dist

_SILENCE = timedelta(days=1)
"""How long the others wait for the first, which may wait for a batch; they notice at once when it dies."""

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Which part of every batch this process trains on."""

    rank: int
    world_size: int

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} is not in 0 to world_size {self.world_size} - 1")


def is_distributed() -> bool:
    """Whether this process is one of several that know each other."""
    return dist.is_available() and dist.is_initialized()


def own_share(rank: int | None, world_size: int | None) -> Share:
    """Return the share that was named, or else the one of this process in torch.distributed, or else all.

    Raises:
        ValueError: rank is not below world_size, or there are other ranks and torch.distributed is not initialized.
    """
    if rank is not None and world_size is not None:
        share = Share(rank=rank, world_size=world_size)
    elif is_distributed():
        share = Share(rank=dist.get_rank(), world_size=dist.get_world_size())
    else:
        share = Share(rank=0, world_size=1)
    if share.world_size > 1 and not is_distributed():
        raise ValueError(
            f"{share.world_size} ranks agree on a batch over torch.distributed, which is not initialized; call "
            "torch.distributed.init_process_group() before"
        )
    return share


class Ranks:
    """One line of talk between all processes. Each thread needs a line of its own, and uses it in the same order."""

    def __init__(self) -> None:
        """Open the line; every process must, in the same order."""
        # Gloo, whatever the trainer uses: these are small objects in main memory, from threads beside the training.
        self._group = dist.new_group(backend="gloo", timeout=_SILENCE) if is_distributed() else None
        self.is_first = self._group is None or dist.get_rank() == 0

    def from_first(self, act: Callable[[], ResultT]) -> ResultT:
        """Let the first process act; return, on each, what that returned, or raise what it raised."""
        if self._group is None:
            return act()
        outcome: list[Any] = [_outcome(act) if self.is_first else None]
        dist.broadcast_object_list(outcome, src=0, group=self._group)
        result, error = outcome[0]
        if error is not None:
            raise error
        return cast(ResultT, result)

    def gather(self, items: list[ResultT]) -> list[ResultT]:
        """Wait until every process has come here; return the items of all on the first, and nothing elsewhere."""
        if self._group is None:
            return items
        gathered: list[Any] | None = [None] * dist.get_world_size() if self.is_first else None
        dist.gather_object(items, gathered, dst=0, group=self._group)
        return [item for part in gathered or () for item in part]

    def close(self) -> None:
        """Close the line."""
        if self._group is not None and is_distributed():
            dist.destroy_process_group(self._group)
            self._group = None


def _outcome(act: Callable[[], ResultT]) -> tuple[ResultT | None, Exception | None]:
    try:
        return act(), None
    except Exception as error:  # noqa: BLE001 - raised again, on every rank
        return None, error
