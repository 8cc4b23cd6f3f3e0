"""A training run as a page sees it, made by the SDK: groups come in, batches are taken and committed."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from groupreplay import Batch, Client, GroupFeedback, Policy, Rollout, RolloutGroup, TableConfig

RUN, TABLE = "math", "train"
NAMES: dict[str, Any] = {"run": RUN, "table": TABLE}
AT = f"#/{RUN}/{TABLE}"


def sum_group(number: int, *, version: int = 0, solved: int = 2, rollouts: int = 4, **other: Any) -> RolloutGroup:
    """Return a group that adds two numbers; `solved` of its responses are right."""
    left, right = 100 + number % 800, 7
    responses = []
    for index in range(rollouts):
        right_one = index < solved
        words = str(left + right + (0 if right_one else 1 + index))
        responses.append(
            Rollout(
                token_ids=[ord(letter) for letter in words] + [1],
                behaviour_logprobs=[-0.1 * (place + 1) for place in range(len(words) + 1)],
                reward=float(right_one),
                text=words,
            )
        )
    fields: dict[str, Any] = {
        "group_id": f"g{number:05d}",
        "prompt_id": f"sum-{number}",
        "prompt_token_ids": np.arange(4, dtype=np.int32),
        "prompt_text": f"{left}+{right}=",
        "policy_version": version,
        "task": "sums",
        "producer_id": "gen-1",
    }
    return RolloutGroup.from_rollouts(responses, **fields | other)


@dataclass(slots=True)
class Training:
    """Trains on one table."""

    client: Client
    config: TableConfig = field(default_factory=TableConfig)
    groups: int = 0
    steps: int = 0

    def __post_init__(self) -> None:
        """Make the table."""
        self.client.create_table(config=self.config, **NAMES)

    def insert(self, groups: Iterable[RolloutGroup]) -> None:
        """Insert groups."""
        for result in self.client.insert_many(groups, **NAMES):
            assert result.error is None, result

    def generate(self, count: int, *, ineffective_every: int = 3) -> None:
        """Insert that many groups more, every so many without reward variance."""
        version = self.client.get_policy(run=RUN).version
        numbers = range(self.groups, self.groups + count)
        self.insert(
            sum_group(number, version=version, solved=0 if number % ineffective_every == 0 else 2) for number in numbers
        )
        self.groups += count

    def take(self, batch_size: int) -> Batch:
        """Take the next batch."""
        lease_id = f"step-{self.steps + 1}"
        return self.client.next_batch(
            batch_size=batch_size, lease_id=lease_id, timeout_s=10, holder="trainer-0", **NAMES
        )

    def step(self, batch_size: int = 8) -> None:
        """Generate, take, commit, publish."""
        self.generate(batch_size)
        batch = self.take(batch_size)
        self.steps += 1
        feedback = [GroupFeedback(group_id=it.group.group_id, kl=0.01, ess=0.9) for it in batch.groups]
        self.client.commit(lease_id=batch.lease_id, step=self.steps, feedback=feedback, **NAMES)
        version = self.client.get_policy(run=RUN).version + 1
        self.client.advance_policy(Policy(run=RUN, version=version, weights_uri=f"w{version}"))
