"""A generator with the engine of vLLM servers, beside a test."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from real_vllm.vllm_process import VllmProcess

from groupreplay import AsyncClient, Policy
from groupreplay.weights import weights_sha256
from groupreplay_generator.generator import run_generator
from groupreplay_generator.sections import VllmSettings
from groupreplay_generator.settings import GeneratorSettings
from groupreplay_server.app import RunningServer

RUN, TABLE, PRODUCER = "r", "t", "gen"


async def publish(client: AsyncClient, version: int, folder: Path) -> Policy:
    """Publish a model folder as a policy version."""
    digest = await asyncio.to_thread(weights_sha256, folder)
    policy = Policy(run=RUN, version=version, weights_uri=folder.as_uri(), weights_sha256=digest)
    return await client.advance_policy(policy)


@asynccontextmanager
async def generating(server: RunningServer, vllm: VllmProcess, log: Path) -> AsyncIterator[asyncio.Task[None]]:
    """Run a generator that notices a hanging server within seconds; log gets the ids of acknowledged groups."""
    settings = GeneratorSettings(
        server=server.grpc_address,
        run=RUN,
        table=TABLE,
        producer_id=PRODUCER,
        task="countdown4",
        engine="vllm-http",
        prompts_at_once=8,
        rollouts_per_prompt=4,
        inserted_log=log,
        vllm=VllmSettings(url=vllm.url, timeout_s=8.0),
    )
    task = asyncio.create_task(run_generator(settings))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until_status(client: AsyncClient, words: str, *, timeout_s: float = 90.0) -> None:
    """Return when the generator's beat says these words."""
    async with asyncio.timeout(timeout_s):
        while True:
            diagnosis = await client.diagnose(run=RUN, table=TABLE, batch_size=1)
            if any(words in producer.status for producer in diagnosis.producers):
                return
            await asyncio.sleep(0.1)
