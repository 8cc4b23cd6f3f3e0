"""A generator whose engine goes away, against a real service. tests/real_vllm does the same to a real vLLM."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fastapi import Response
from generator.vllm_routes import VllmRoutes, nothing, serving, status_503
from processes import plain_environment

from groupreplay import AsyncClient, Fill, Policy, ProducerHealth, TableConfig
from groupreplay_generator.generator import run_generator
from groupreplay_generator.sections import VllmSettings
from groupreplay_generator.settings import GeneratorSettings
from groupreplay_server.app import RunningServer


@pytest.fixture
async def routes(client: AsyncClient, tmp_path: Path) -> AsyncIterator[VllmRoutes]:
    """A server that speaks vLLM's routes, and a run with a table and policy version 1."""
    folder = tmp_path / "policy-000001"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).touch()
    await client.create_table(run="r", table="t", config=TableConfig(fill=Fill.KEEP, ahead_groups=0))
    await client.advance_policy(Policy(run="r", version=1, weights_uri=folder.as_uri(), label="one"))
    async with serving(VllmRoutes()) as routes:
        yield routes


@asynccontextmanager
async def generating(server: RunningServer, routes: VllmRoutes) -> AsyncIterator[asyncio.Task[None]]:
    """Run a generator beside the test."""
    settings = GeneratorSettings(
        server=server.grpc_address,
        run="r",
        table="t",
        producer_id="gen",
        engine="vllm-http",
        prompts_at_once=3,
        rollouts_per_prompt=2,
        vllm=VllmSettings(url=routes.url, timeout_s=1.0),
    )
    task = asyncio.create_task(run_generator(settings))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until_fresh(client: AsyncClient, groups: int) -> None:
    """Return when a table has so many fresh groups."""
    fresh = 0
    async with asyncio.timeout(60):
        while fresh < groups:
            fresh = (await client.describe_table(run="r", table="t")).fresh
            await asyncio.sleep(0.01)


async def test_a_generator_says_what_it_waits_for_and_goes_on(
    server: RunningServer, client: AsyncClient, routes: VllmRoutes
) -> None:
    """Its beats go on while the engine is away, from the first one on, and no group that was wanted is left out."""
    routes.failing["/weight_info"] = status_503
    async with generating(server, routes) as generator:
        waiting = asyncio.create_task(client.next_batch(run="r", table="t", batch_size=3, timeout_s=60))
        async with asyncio.timeout(60):
            status = ""
            while "HTTP status 503" not in status:
                diagnosis = await client.diagnose(run="r", table="t", batch_size=3)
                status = diagnosis.producers[0].status if diagnosis.producers else ""
                await asyncio.sleep(0.05)
        assert f"vLLM server at {routes.url}" in status
        assert diagnosis.producers[0].health is ProducerHealth.ALIVE
        routes.failing.clear()
        batch = await waiting
        assert not generator.done()
    assert [item.group.policy_version_max for item in batch.groups] == [1] * 3


async def test_groups_that_were_finished_before_are_inserted_while_the_engine_is_away(
    server: RunningServer, client: AsyncClient, routes: VllmRoutes
) -> None:
    """Two of three responses came; they do not wait for the third."""
    asked = iter(range(3))

    async def answer_twice_then_hang() -> Response:
        if next(asked, 2) < 2:
            return routes.responses(rollouts=2)
        routes.failing["/weight_info"] = nothing
        return await nothing()

    routes.failing["/inference/v1/generate"] = answer_twice_then_hang
    async with generating(server, routes):
        waiting = asyncio.create_task(client.next_batch(run="r", table="t", batch_size=3, timeout_s=60))
        await until_fresh(client, 2)
        assert not waiting.done()
        routes.failing.clear()
        batch = await waiting
    assert len({item.group.group_id for item in batch.groups}) == 3


async def test_groups_say_which_token_is_of_which_version(
    server: RunningServer, client: AsyncClient, routes: VllmRoutes
) -> None:
    """Another generator brought version 2 in while this one's responses were under way."""
    asked = asyncio.Event()
    routes.on_sample = asked.set
    routes.spans = [{"version": "one", "start": 0, "end": 1}, {"version": "two", "start": 1, "end": 3}]
    async with generating(server, routes):
        waiting = asyncio.create_task(client.next_batch(run="r", table="t", batch_size=1, timeout_s=60))
        await asked.wait()
        known = (await client.get_policy(run="r")).weights_uri
        await client.advance_policy(Policy(run="r", version=2, weights_uri=known, label="two"))
        (item,) = (await waiting).groups
    assert (item.group.policy_version_min, item.group.policy_version_max) == (1, 2)
    assert item.group.version_spans is not None
    assert item.group.version_spans.tolist() == [[0, 1], [1, 2], [3, 1], [4, 2]]


async def test_requests_to_vllm_are_not_in_the_log(
    server: RunningServer, client: AsyncClient, routes: VllmRoutes, tmp_path: Path
) -> None:
    """There are thousands of them; what the generator itself has to say is there."""
    log = tmp_path / "generator.log"
    words = [
        "--server",
        server.grpc_address,
        "--run",
        "r",
        "--table",
        "t",
        "--engine",
        "vllm-http",
        "--log-format",
        "json",
    ]
    with log.open("wb") as said:
        generator = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "groupreplay_cli", "generate", *words, "--vllm.url", routes.url,
            "--prompts-at-once", "2", "--rollouts-per-prompt", "2", env=plain_environment(), stderr=said,
        )  # fmt: skip
    batch = await client.next_batch(run="r", table="t", batch_size=2, timeout_s=60)
    generator.terminate()
    assert await generator.wait() == 0
    assert batch.groups
    assert routes.calls
    loggers = {json.loads(line)["logger"] for line in log.read_text().splitlines()}
    assert {name.partition(".")[0] for name in loggers} == {"groupreplay_generator"}
