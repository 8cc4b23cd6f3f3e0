"""One rank of a trainer: `rank.py address run folder rank world_size`. Prints a line of JSON for each batch."""

import json
import pickle
import sys
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.utils.data._utils import worker

from groupreplay import BatchNotReadyError, GroupFeedback
from groupreplay.torch import GroupDataset, StepBatch


def say(what: str, **values: Any) -> None:
    """Print a line."""
    print(json.dumps({"what": what, **values}), flush=True)


def describe(item: StepBatch) -> dict[str, Any]:
    """Return what a test wants to know of a batch."""
    return {
        "step": item.step,
        "mine": [delivered.group.group_id for delivered in item.batch.groups],
        "all": [group.group_id for group in item.outline.groups],
        "tokens": int(item.rollouts.attention_mask_BT.sum()) if item.rollouts else 0,
        "response_tokens": item.response_tokens,
    }


def main() -> None:
    """Train two iterations of two steps, leave a third early, and run out of groups in a fourth."""
    address, run, folder, rank, world_size = sys.argv[1:]
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting-point",
        rank=int(rank),
        world_size=int(world_size),
        timeout=timedelta(seconds=60),
    )
    options: dict[str, Any] = {"run": run, "table": "train", "pad_token_id": 0}
    with GroupDataset(address, batch_size=5, steps=2, prefetch=1, **options) as dataset:
        for _ in range(2):
            for item in dataset:
                feedback = [GroupFeedback(group_id=found.group.group_id, kl=0.25) for found in item.batch.groups]
                say("trained", **describe(item), repeated=dataset.commit(item.step, feedback))
        for item in dataset:
            say("left", **describe(item))
            break
    with GroupDataset(address, batch_size=1, first_step=5, timeout_s=0.2, **options) as dataset:
        try:
            for item in dataset:
                say("small", **describe(item), rows=item.rollouts is not None)
                dataset.commit(item.step)
        except BatchNotReadyError as error:
            say("error", text=str(error))
    copy = pickle.loads(pickle.dumps(dataset))
    dist.destroy_process_group()
    worker._worker_info = worker.WorkerInfo(id=0, num_workers=1, seed=0, dataset=copy)
    try:
        iter(copy)
    except ValueError as error:
        say("refused", text=str(error))


if __name__ == "__main__":
    main()
