"""The processes that train one model together: torchrun starts them, and each is a rank.

All ranks run the same loop. What touches the service or the run folder is done by the first rank alone, and its
outcome, an exception too, is that of all; so every rank takes the same way through the loop. Of a batch each rank reads
a share, and they exchange what they read. The weights are divided among them (FSDP2), each computes its share of every
minibatch, and gradients, losses and counts are summed: several ranks make the update that one would make.

Shape legend: N rows of a minibatch.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from groupreplay.shares import share_by_tokens

WAIT: Final = timedelta(days=30)
"""How long ranks wait for the first one: as long as it waits for the service. If it dies they notice at once."""

ResultT = TypeVar("ResultT")


class Ranks(AbstractContextManager["Ranks"]):
    """The ranks of one trainer, as one of them sees them. A process that torchrun did not start is the only one."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        """Use a process group of the CPU; None = there is one process."""
        self._group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        """Number of this process, from 0."""
        self.size = 1 if group is None else dist.get_world_size(group)
        """How many there are."""

    @classmethod
    def join(cls) -> Self:
        """Join the ranks that torchrun started; wait until all are there. Without torchrun return the only rank."""
        if not dist.is_torchelastic_launched():
            return cls()
        if torch.cuda.is_available():
            torch.cuda.set_device(dist.get_node_local_rank())
            dist.init_process_group("cpu:gloo,cuda:nccl")
        else:
            dist.init_process_group("gloo")
        ranks = cls(dist.new_group(backend="gloo", timeout=WAIT))
        if not ranks.is_first:
            # The first rank says it all; the others add what they cannot go on with.
            logging.getLogger("groupreplay_trainer").setLevel(logging.ERROR)
        return ranks

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the group. After an error leave without a word: ranks that wait for each other would never end."""
        if self._group is not None and error is None:
            dist.destroy_process_group()

    @property
    def is_first(self) -> bool:
        """Whether this rank talks to the service and owns the run folder."""
        return self.rank == 0

    def first(self, call: Callable[[], ResultT]) -> ResultT:
        """Return on all ranks what `call` returns, or raise what it raises, on the first; it is not called elsewhere.

        All ranks must come here. What is returned or raised is pickled.
        """
        if self._group is None:
            return call()
        outcome: list[Any] = [_outcome(call) if self.is_first else None]
        dist.broadcast_object_list(outcome, src=0, group=self._group)
        result: ResultT = _result(outcome[0])
        return result

    def exchange(self, call: Callable[[], ResultT]) -> list[ResultT]:
        """Return on all ranks what `call` returns on each, by rank; what it raises on any is raised on all.

        All ranks must come here. What is returned or raised is pickled.
        """
        if self._group is None:
            return [call()]
        outcomes: list[Any] = [None] * self.size
        dist.all_gather_object(outcomes, _outcome(call), group=self._group)
        return [_result(outcome) for outcome in outcomes]

    def any(self, flag: bool) -> bool:
        """Return on all ranks whether the flag is set on any."""
        return bool(self.sum(torch.tensor(int(flag))))

    def sum(self, values: Tensor) -> Tensor:
        """Return on all ranks the sum of their values, which are on the CPU and of the same shape everywhere."""
        if self._group is None:
            return values
        total = values.clone()
        dist.all_reduce(total, group=self._group)
        return total

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors that may be divided among the ranks as whole ones; on the first rank, elsewhere none.

        All ranks must come here with the same names. On one rank they are the tensors as they are.
        """
        if self._group is None:
            return dict(tensors)
        found = {}
        for name, tensor in tensors.items():
            # One at a time, and off the device at once: whole, they may not fit there.
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if self.is_first:
                found[name] = whole.detach().cpu()
        return found

    def mesh(self, device: torch.device) -> DeviceMesh:
        """Return the devices of all ranks, to divide weights over."""
        return init_device_mesh(device.type, (self.size,))


def _outcome(call: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return call(), None
    except Exception as error:  # noqa: BLE001 - raised on every rank, by `_result`
        return None, error


def _result(outcome: tuple[Any, Exception | None]) -> Any:
    result, error = outcome
    if error is not None:
        raise error
    return result


def divide(root: nn.Module, blocks: list[nn.Module], mesh: DeviceMesh, *, dtype: torch.dtype = torch.float32) -> None:
    """Divide the parameters of a module over a mesh, in place: one piece of each on each rank, gathered when needed.

    Gradients are summed over the ranks, not averaged: the loss is divided by the tokens of all ranks already.

    Args:
        root: its forward is what ranks call, all as often and at the same time.
        blocks: modules inside `root` whose parameters are gathered one block at a time.
        mesh: of one dimension.
        dtype: what parameters are gathered and computed in; the pieces and the sums of gradients stay float32.
    """
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for module in [*blocks, root]:
        fully_shard(module, mesh=mesh, mp_policy=policy)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(enable=True)  # gloo knows sums alone


def divided_like(parameter: Tensor, value: Tensor) -> Tensor:
    """Return a whole tensor divided as a parameter of the same shape is; as it is where the parameter is not."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    # Every rank has read the same file, so that nothing needs to be sent.
    value = value.to(parameter.device, parameter.dtype)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def own_part(parameter: Tensor) -> Tensor:
    """Return what of a parameter lies on this rank."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def whole_norm(norm: Tensor) -> float:
    """Return the norm of gradients that may be divided; all ranks must come here."""
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()


def split_shares(rows_N: Tensor, lengths_B: Tensor, *, count: int) -> list[Tensor]:
    """Return `count` shares of the given rows of about as many tokens each; a share may be empty.

    Args:
        rows_N: int64, rows of the batch.
        lengths_B: int64, tokens of each row of the batch.
        count: ranks.
    """
    shares = share_by_tokens(lengths_B[rows_N].tolist(), count)
    return [rows_N[torch.tensor(share, dtype=torch.int64)] for share in shares]
