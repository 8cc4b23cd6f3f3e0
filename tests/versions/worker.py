"""Pushes or pulls with whatever version of the SDK it is started with; uses only what all versions have.

python worker.py push ADDRESS PREFIX COUNT: inserts COUNT groups; prints the id of each that was acknowledged.
python worker.py pull ADDRESS HOLDER FIRST STEP_BY COUNT FOLDER: takes batches and commits them as steps FIRST,
FIRST + STEP_BY, ..., until the files of FOLDER list COUNT fresh groups; prints those of each step once it is committed.
"""

import sys
from pathlib import Path
from typing import Any

from groupreplay import BatchNotReadyError, Client, Rollout, RolloutGroup

NAMES: dict[str, Any] = {"run": "run", "table": "train"}


def push(address: str, prefix: str, count: int) -> None:
    """Insert."""
    with Client(address, timeout_s=60.0) as client:
        for index in range(count):
            group = RolloutGroup.from_rollouts(
                [Rollout(token_ids=[1, 2], behaviour_logprobs=[-0.5, -0.1], reward=reward) for reward in (0.0, 1.0)],
                group_id=f"{prefix}-{index}", prompt_id=f"{prefix}-p{index}", prompt_token_ids=[3], policy_version=0,
                prompt_text="what?",
            )  # fmt: skip
            client.insert(group, **NAMES)
            print(group.group_id, flush=True)


def pull(address: str, holder: str, numbers: list[int], folder: Path) -> None:
    """Take and commit."""
    (step, step_by, count), own = numbers, folder / holder
    with Client(address, timeout_s=60.0) as client, own.open("a") as file:
        while sum(len(other.read_text().split()) for other in folder.iterdir()) < count:
            try:
                batch = client.next_batch(**NAMES, batch_size=4, lease_id=f"{holder}-{step}", timeout_s=1.0)
            except BatchNotReadyError:
                continue
            for delivered in batch.groups:
                assert delivered.group.response_token_ids.tolist() == [1, 2, 1, 2]
                assert delivered.group.prompt_text == "what?"
            client.commit(**NAMES, lease_id=batch.lease_id, step=step)
            fresh = [delivered.group.group_id for delivered in batch.groups if delivered.source == "fresh"]
            file.write("".join(f"{name}\n" for name in fresh))
            file.flush()
            step += step_by


if __name__ == "__main__":
    if sys.argv[1] == "push":
        push(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        numbers = [int(word) for word in sys.argv[4:7]]
        pull(sys.argv[2], sys.argv[3], numbers, Path(sys.argv[7]))
