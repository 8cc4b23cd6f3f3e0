"""What an environment is told about the queue: it holds back by these numbers, so they are atroposlib's."""

import math
from collections import Counter
from collections.abc import Sequence

from groupreplay_server.api.atropos.arrivals import QueuedGroup
from groupreplay_server.store.atropos_store import AtroposState, Environment

MIN_WEIGHT = 0.01
"""No environment is told to do nothing."""


def environment_status(
    state: AtroposState, asking: Environment, queue: Sequence[QueuedGroup]
) -> dict[str, int | float]:
    """Return the answer of /status-env, its queue in groups of the asking environment's size."""
    connected = [environment for environment in state.environments.values() if environment.connected]
    own = [group.sequences for group in queue if group.env_id == asking.env_id]
    group_size = max(asking.group_size, *own, 1)
    largest = max((group.sequences for group in queue), default=1)
    ahead = sum(own) + _available_from_others(state, asking, queue, connected, largest)
    return {
        "current_step": state.step,
        "queue_size": ahead // group_size,
        "unallocated_fraction": 1.0 - min(sum(one.min_batch_allocation or 0.0 for one in connected), 1.0),
        "self_queue_size": sum(own) // group_size,
        "max_group_size": largest,
        "env_weight": _weight(asking, connected),
    }


def _weight(asking: Environment, connected: Sequence[Environment]) -> float:
    total = sum(one.max_token_length * max(0.0, one.weight) for one in connected)
    return max(MIN_WEIGHT, asking.max_token_length * asking.weight / total) if total > 0 else MIN_WEIGHT


def _available_from_others(
    state: AtroposState,
    asking: Environment,
    queue: Sequence[QueuedGroup],
    connected: Sequence[Environment],
    largest: int,
) -> int:
    """Return the sequences of others in packs of the largest group, beyond what is set aside for each of them."""
    if largest <= 1:
        return 0
    batch_size = state.registration.batch_size if state.registration else 0
    set_aside = {one.env_id: int(batch_size * (one.min_batch_allocation or 0.0)) for one in connected}
    sequences: Counter[int | None] = Counter()
    for group in queue:
        if group.env_id != asking.env_id:
            sequences[group.env_id] += group.sequences
    return sum(
        max(0, math.ceil(count / largest) * largest - (set_aside.get(env_id, 0) if env_id is not None else 0))
        for env_id, count in sequences.items()
    )
