"""The backup of Redis that the runbook describes brings everything back."""

import shutil
from pathlib import Path

import redis
from processes import RedisProcess
from samples import effective
from service_user import settings

from groupreplay import AsyncClient, Policy
from groupreplay_server.app import running_server


async def test_a_copy_of_the_append_only_files_is_all_of_it(tmp_path: Path) -> None:
    """Taken while the service writes: groups, their payloads, tables and policy clocks are there again."""
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    with RedisProcess(here) as running, redis.Redis.from_url(running.url) as connection:
        async with running_server(settings(running.url)) as server, AsyncClient(server.grpc_address) as client:
            await client.create_table(run="run", table="train")
            await client.advance_policy(Policy(run="run", version=3, weights_uri="file:///w"))
            for group in effective("a", "b", version=3):
                await client.insert(group, run="run", table="train")
            connection.config_set("auto-aof-rewrite-percentage", 0)
            assert connection.info("persistence")["aof_rewrite_in_progress"] == 0
            shutil.copytree(here / "appendonlydir", elsewhere / "appendonlydir")
            await client.insert(effective("after", version=3)[0], run="run", table="train")
    with RedisProcess(elsewhere) as restored:
        async with running_server(settings(restored.url)) as server, AsyncClient(server.grpc_address) as client:
            assert (await client.get_policy(run="run")).version == 3
            batch = await client.next_batch(run="run", table="train", batch_size=2, timeout_s=10.0)
            assert [delivered.group.group_id for delivered in batch.groups] == ["a", "b"]
            assert batch.groups[0].group.response_token_ids.size == 6
