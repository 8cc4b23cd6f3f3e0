"""What the Atropos API remembers, while several servers write it."""

import asyncio
from typing import Any

import pytest
import redis

from groupreplay_server.store.atropos_store import AtroposStore, Environment
from groupreplay_server.store.connection import open_redis

SAID: dict[str, Any] = {
    "max_token_length": 64, "weight": 1.5, "group_size": 2, "min_batch_allocation": None,
}  # fmt: skip
NAMES = ("run", "train")


async def test_environments_that_register_at_once_get_ids_and_names_of_their_own(
    clean_redis: redis.Redis, redis_url: str
) -> None:
    """Over two servers, and whatever their names are made of."""
    async with open_redis(redis_url) as one, open_redis(redis_url) as other:
        stores = [AtroposStore(one), AtroposStore(other)]
        names = ['a "quoted" \\ name/é', "plain"]
        added = await asyncio.gather(
            *(stores[turn % 2].add_environment(*NAMES, desired_name=names[turn % 3 % 2], **SAID) for turn in range(30))
        )
        assert sorted(it.env_id for it in added) == list(range(30))
        assert len({it.name for it in added}) == 30
        state = await stores[0].read(*NAMES)
        assert state.environments == {it.env_id: it for it in added}
        assert added[0] == Environment(env_id=added[0].env_id, name=added[0].name, desired_name=names[0], **SAID)


@pytest.mark.parametrize("turns", [1, 3])
async def test_a_reset_leaves_the_count_of_resets_alone(clean_redis: redis.Redis, redis_url: str, turns: int) -> None:
    """Who resets at the same time is counted too, and an environment that comes in between is there whole, or not."""
    async with open_redis(redis_url) as opened:
        store = AtroposStore(opened)
        await store.start(*NAMES)
        await store.note_latest(*NAMES, "g")
        await asyncio.gather(
            *(store.reset(*NAMES) for _ in range(turns)),
            *(store.add_environment(*NAMES, desired_name="env", **SAID) for _ in range(turns)),
        )
        state = await store.read(*NAMES)
        assert (state.resets, state.started, state.latest_group_id) == (turns, False, "")
        assert all(it.desired_name == "env" for it in state.environments.values())
