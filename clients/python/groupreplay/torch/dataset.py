"""GroupDataset: the batches of a table as a PyTorch dataset, for trainers of one's own."""

import itertools
import logging
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from groupreplay.torch.advantages import AdvantageEstimator
from groupreplay.torch.ahead import Ahead
from groupreplay.torch.collate import TrainingBatch, collate
from groupreplay.torch.ranks import is_distributed, own_share
from groupreplay.torch.session import BatchSource, Session
from groupreplay.types import Batch, BatchOutline, GroupFeedback

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepBatch:
    """What one rank trains on in one step."""

    step: int
    """The step to commit it with."""
    batch: Batch
    """With the groups of this rank; every other field is that of the whole batch, of all ranks."""
    outline: BatchOutline
    """Of the whole batch: which groups the others have, and how long they are."""
    rollouts: TrainingBatch | None
    """The groups of `batch` as tensors, in main memory; None where no group fell to this rank."""

    @property
    def response_tokens(self) -> int:
        """Response tokens of the whole batch, those that loss masks leave out included."""
        return sum(sum(group.response_lengths) for group in self.outline.groups)

    def to(self, device: torch.device | str) -> Self:
        """Return it with its tensors on a device."""
        return replace(self, rollouts=None if self.rollouts is None else _moved(self.rollouts, device))


class GroupDataset(IterableDataset[StepBatch]):
    """Yields one batch per training step, under a lease that `commit` ends.

        with GroupDataset("127.0.0.1:50051", run="math", table="train", batch_size=8, pad_token_id=0) as data:
            for item in data:
                ...  # train on item.rollouts, write your checkpoint
                data.commit(item.step)

    The lease is named after the step, so a trainer that died gets the same groups when it asks for the same step
    again. An iteration that ends early, by break or by an exception, gives back what commit was not called for. Leases
    are extended while training takes its time.

    With torch.distributed each rank gets whole groups of its own, as many tokens as the others; every rank must make
    as many steps and commits, and the service sees one lease and one commit. A rank reads its own groups only.

    It goes into a DataLoader with batch_size=None and 0 workers, or 1 where there are no other ranks.
    """

    def __init__(
        self,
        address: str,
        *,
        run: str,
        table: str,
        batch_size: int,
        pad_token_id: int,
        steps: int | None = None,
        first_step: int = 1,
        prefetch: int = 0,
        advantages: AdvantageEstimator = AdvantageEstimator.GRPO,
        max_tokens: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        lease_prefix: str = "trainer",
        lease_s: float = 600.0,
        timeout_s: float = 3600.0,
        call_timeout_s: float = 300.0,
        holder: str = "",
    ) -> None:
        """Prepare it; nothing is called before the first batch or commit.

        Args:
            address: host:port or unix:path of the service.
            run, table: names of a table that makes batches; it must exist.
            batch_size: groups of a batch, of all ranks together.
            pad_token_id: what padding holds.
            steps: steps in one iteration, which begins after the last committed step; None = no end.
            first_step: the first to train; after a restart the one after the checkpoint.
            prefetch: batches that are taken while another is trained on. 0 = none, strictly on-policy. With n, the
                batch of a step is drawn n steps early: before the commits of the n steps before it, so their groups
                cannot be replayed in it, and up to n policy versions older at training than `staleness` says.
            advantages: how rewards become advantages.
            max_tokens: what the model takes of prompt and response together; None = any.
            rank, world_size: which part of each batch is this process's, where that is not its rank in
                torch.distributed; with tensor parallelism, the data-parallel rank.
            lease_prefix: what the names of leases begin with. Of its own for each trainer on the table.
            lease_s: seconds until groups go back when this process is dead, 1 to 86400.
            timeout_s: seconds to wait for a batch.
            call_timeout_s: seconds for which calls are repeated while the service is away.
            holder: who takes the batches, for diagnosis.

        Raises:
            ValueError: a number is below its range, or only one of rank and world_size was passed.
            InvalidRequestError: lease_prefix cannot begin a name.
        """
        super().__init__()
        for name, value, least in (("steps", steps, 1), ("prefetch", prefetch, 0), ("first_step", first_step, 0)):
            if value is not None and value < least:
                raise ValueError(f"{name} {value} is below {least}")
        self._source = BatchSource(
            address=address,
            run=run,
            table=table,
            batch_size=batch_size,
            lease_prefix=lease_prefix,
            lease_s=lease_s,
            timeout_s=timeout_s,
            call_timeout_s=call_timeout_s,
            holder=holder,
        )
        if (rank is None) != (world_size is None):
            raise ValueError(f"rank {rank} and world_size {world_size} belong together; pass both, or neither")
        self._rank, self._world_size = rank, world_size
        self._steps, self._prefetch = steps, prefetch
        self._pad_token_id, self._advantages, self._max_tokens = pad_token_id, advantages, max_tokens
        self._next_step = first_step
        self._session: Session | None = None
        self._ahead: Ahead[StepBatch] | None = None
        self._among_ranks = False
        self._is_stuck = False
        self._pid = os.getpid()

    @property
    def next_step(self) -> int:
        """The step after the last committed one: where the next iteration begins."""
        return self._next_step

    def __iter__(self) -> Iterator[StepBatch]:
        """Iterate over the next `steps` steps.

        Raises:
            BatchNotReadyError: no complete batch within timeout_s; the message says what is missing.
            StepConflictError: the step was committed before: the trainer resumed from an older checkpoint.
            ValueError: a DataLoader has more workers than can be, a group cannot be trained on, or there are other
                ranks and torch.distributed is not initialized.
            RuntimeError: the ranks did not leave the iteration before at the same step.
        """
        self._check_workers()
        if self._is_stuck:
            raise RuntimeError(
                "this rank left its last loop and the others went on, so they are not at the same step any more; leave "
                "a loop on every rank at the same step, and restart from the checkpoint"
            )
        steps = itertools.count(self._next_step)
        return self._iterate(self._connected(), itertools.islice(steps, self._steps))

    def commit(self, step: int, feedback: Sequence[GroupFeedback] = ()) -> bool:
        """End the lease of a step that was trained on; return True if that was done before.

        Call it when the checkpoint of the step is on disk, on every rank; after a restart again, for the checkpoint's
        step: that changes nothing if it was done. feedback: what this rank found out about groups.

        Raises:
            LeaseExpiredError, UnknownLeaseError: the groups went, or may have gone, to somebody else: discard the step.
            StepConflictError: the step was committed with another lease.
        """
        repeated = self._connected().commit(step, feedback)
        self._next_step = max(self._next_step, step + 1)
        return repeated

    def close(self) -> None:
        """Disconnect. What was not committed goes back."""
        if self._pid == os.getpid():
            self._leave()
            if self._session is not None:
                self._session.close()
        self._session = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_session": None, "_ahead": None, "_among_ranks": is_distributed()}

    def _connected(self) -> Session:
        """Return the session of this process: a worker has inherited, and cannot use, that of its parent."""
        if self._session is None or self._pid != os.getpid():
            share = own_share(self._rank, self._world_size)
            self._session, self._ahead, self._pid = Session(self._source, share), None, os.getpid()
        return self._session

    def _iterate(self, session: Session, steps: Iterable[int]) -> Iterator[StepBatch]:
        stop = threading.Event()
        take = partial(self._take, session, stop)
        if self._prefetch:
            self._ahead = Ahead(take, steps, depth=self._prefetch, end=session.end_takes, stop=stop)
        try:
            yield from self._ahead or map(take, steps)
        except BaseException:  # GeneratorExit, too: the loop was left
            self._leave()
            session.give_back()
            raise

    def _leave(self) -> None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None and not ahead.close():
            self._is_stuck = True
            _log.warning("this rank left the loop, and the others have not: it prefetches no more")

    def _take(self, session: Session, stop: threading.Event, step: int) -> StepBatch:
        taken = session.take(step, stop)
        rollouts = None
        if taken.batch.groups:
            rollouts = collate(
                taken.batch,
                pad_token_id=self._pad_token_id,
                estimator=self._advantages,
                max_tokens=self._max_tokens,
            )
        return StepBatch(step=step, batch=taken.batch, outline=taken.outline, rollouts=rollouts)

    def _check_workers(self) -> None:
        worker = get_worker_info()
        if worker is None:
            return
        if worker.num_workers > 1:
            raise ValueError(
                f"num_workers {worker.num_workers}: each worker would take the batches of the same steps; pass "
                "num_workers=0, and prefetch to GroupDataset"
            )
        if self._among_ranks or is_distributed():
            raise ValueError(
                "num_workers 1 with other ranks: a worker process is not part of torch.distributed, so it cannot agree "
                "with them on a batch; pass num_workers=0, and prefetch to GroupDataset"
            )


def _moved(rollouts: TrainingBatch, device: torch.device | str) -> TrainingBatch:
    values = {field.name: getattr(rollouts, field.name) for field in fields(rollouts)}
    return replace(rollouts, **{name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)})
