"""A vLLM server that dies or hangs in the middle of responses costs no group, and no generator."""

import asyncio
from pathlib import Path

import httpx
import pytest
from real_vllm.conftest import Folders
from real_vllm.generating import RUN, TABLE, generating, publish, until_status
from real_vllm.vllm_process import VllmProcess

from groupreplay import AsyncClient, Batch, Fill, GroupState, ProducerHealth, TableConfig
from groupreplay_server.app import RunningServer

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

BATCH_SIZE = 24


async def begin(client: AsyncClient, folder: Path, vllm: VllmProcess) -> asyncio.Task[Batch]:
    """Ask for a batch of policy version 1, and return while vLLM samples for it."""
    await client.create_table(run=RUN, table=TABLE, config=TableConfig(fill=Fill.KEEP, ahead_groups=0))
    await publish(client, 1, folder)
    batch = asyncio.create_task(client.next_batch(run=RUN, table=TABLE, batch_size=BATCH_SIZE, timeout_s=400))
    await until_it_samples(vllm)
    return batch


async def until_it_samples(vllm: VllmProcess) -> None:
    """Return while vLLM is in the middle of responses."""
    async with httpx.AsyncClient() as http, asyncio.timeout(120):
        running = 0.0
        while not running:
            lines = (await http.get(f"{vllm.url}/metrics", timeout=60)).text.splitlines()
            counts = [line.split()[-1] for line in lines if line.startswith("vllm:num_requests_running")]
            running = sum(float(count) for count in counts)


async def check(client: AsyncClient, batch: Batch, ids: list[str]) -> None:
    """Every acknowledged group is there, once, and of the policy's weights."""
    assert len(batch.groups) == BATCH_SIZE
    assert sorted(ids) == sorted(delivered.group.group_id for delivered in batch.groups)
    assert await client.locate_groups(ids, run=RUN, table=TABLE) == [GroupState.LEASED] * BATCH_SIZE
    versions = {(item.group.policy_version_min, item.group.policy_version_max) for item in batch.groups}
    assert versions == {(1, 1)}


async def test_a_vllm_that_is_killed_and_started_again_gets_its_weights_back(
    vllm_process: VllmProcess, folders: Folders, server: RunningServer, client: AsyncClient, tmp_path: Path
) -> None:
    """The generator says what it waits for, beats on, brings the policy's weights into the new server, and goes on."""
    log = tmp_path / "inserted.log"
    async with generating(server, vllm_process, log) as generator:
        waiting = await begin(client, folders[1], vllm_process)
        vllm_process.kill()
        await until_status(client, f"vLLM server at {vllm_process.url} does not answer")
        starting = asyncio.create_task(asyncio.to_thread(vllm_process.start))
        batch = await waiting
        await starting
        assert not generator.done()
        (producer,) = (await client.diagnose(run=RUN, table=TABLE, batch_size=1)).producers
        assert producer.health is ProducerHealth.ALIVE
    await check(client, batch, log.read_text().split())
    assert vllm_process.label().startswith("1@")


async def test_a_vllm_that_hangs_is_given_up_until_it_goes_on(
    vllm_process: VllmProcess, folders: Folders, server: RunningServer, client: AsyncClient, tmp_path: Path
) -> None:
    """Its connections stay open, so only its silence tells."""
    log = tmp_path / "inserted.log"
    async with generating(server, vllm_process, log) as generator:
        waiting = await begin(client, folders[1], vllm_process)
        vllm_process.hang()
        try:
            await until_status(client, f"vLLM server at {vllm_process.url} does not answer")
        finally:
            vllm_process.go_on()
        batch = await waiting
        assert not generator.done()
    await check(client, batch, log.read_text().split())
