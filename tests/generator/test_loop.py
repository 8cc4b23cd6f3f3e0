"""The generator's and the evaluator's loops against a real service and the real tiny model."""

import asyncio
import hashlib
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from processes import free_port

from groupreplay import AsyncClient, BatchNotReadyError, Fill, GroupState, Policy, TableConfig
from groupreplay_generator import opening
from groupreplay_generator.evaluator import run_evaluator
from groupreplay_generator.generator import run_generator
from groupreplay_generator.metrics import MEASURES
from groupreplay_generator.policy_follower import weights_label, weights_path
from groupreplay_generator.sections import MetricsSettings
from groupreplay_generator.settings import EvaluatorSettings, GeneratorSettings
from groupreplay_server.app import RunningServer
from groupreplay_tinylm import builtin_checkpoint

CONFIG = TableConfig(fill=Fill.KEEP, ahead_groups=0)


async def publish(client: AsyncClient, version: int, folder: Path) -> Policy:
    """Publish the built-in checkpoint as a policy version."""
    path = folder / f"policy-{version}.safetensors"
    shutil.copy(builtin_checkpoint("addition"), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return await client.advance_policy(
        Policy(run="r", version=version, weights_uri=path.as_uri(), weights_sha256=digest)
    )


@asynccontextmanager
async def generating(server: RunningServer, **changes: object) -> AsyncIterator[None]:
    """Run a generator beside the test."""
    values = {"producer_id": "gen", "run": "r", "table": "t", "prompts_at_once": 4, "rollouts_per_prompt": 2}
    task = asyncio.create_task(run_generator(GeneratorSettings(server=server.grpc_address, **(values | changes))))  # type: ignore[arg-type]
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_generator_makes_what_the_trainer_waits_for_and_no_more(
    server: RunningServer, client: AsyncClient, tmp_path: Path
) -> None:
    """With ahead_groups=0 nothing is generated before a batch is asked for, nor beyond it."""
    await client.create_table(run="r", table="t", config=CONFIG)
    await publish(client, 0, tmp_path)
    log = tmp_path / "inserted.log"
    async with generating(server, inserted_log=log):
        batch = await client.next_batch(run="r", table="t", batch_size=6, timeout_s=60)
        assert len(batch.groups) == 6
        assert len({delivered.group.prompt_id for delivered in batch.groups}) == 6
        assert all(delivered.on_policy and len(delivered.group) == 2 for delivered in batch.groups)
        with pytest.raises(BatchNotReadyError):
            await client.next_batch(run="r", table="t", batch_size=1, timeout_s=0)
    ids = log.read_text().split()
    assert await client.locate_groups(ids, run="r", table="t") == [GroupState.LEASED] * 6


async def test_a_generator_takes_up_new_weights_before_it_generates_again(
    server: RunningServer, client: AsyncClient, tmp_path: Path
) -> None:
    """Groups asked for after a policy version was published are of that version."""
    await client.create_table(run="r", table="t", config=CONFIG)
    await publish(client, 0, tmp_path)
    async with generating(server):
        for version in (1, 2, 3):
            await publish(client, version, tmp_path)
            batch = await client.next_batch(run="r", table="t", batch_size=3, timeout_s=60)
            assert [delivered.group.policy_version_min for delivered in batch.groups] == [version] * 3


async def test_a_generator_starts_with_newer_weights_where_the_first_it_heard_of_are_gone(
    server: RunningServer, client: AsyncClient, tmp_path: Path
) -> None:
    """A trainer with quick steps replaces the newest weights while PyTorch is imported."""
    await client.create_table(run="r", table="t", config=CONFIG)
    gone = await publish(client, 0, tmp_path)
    weights_path(gone).unlink()
    async with generating(server):
        await publish(client, 1, tmp_path)
        batch = await client.next_batch(run="r", table="t", batch_size=4, timeout_s=60)
    assert {item.group.policy_version_min for item in batch.groups} == {1}


async def test_a_generator_whose_weights_are_nowhere_says_so(
    server: RunningServer, client: AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the volume of weights is not mounted where it runs."""
    monkeypatch.setattr(opening, "NEWER_TIMEOUT_S", 0.1)
    await client.create_table(run="r", table="t", config=CONFIG)
    weights_path(await publish(client, 0, tmp_path)).unlink()
    with pytest.raises(FileNotFoundError, match="policy-0"):
        await run_generator(GeneratorSettings(server=server.grpc_address, run="r", table="t"))


async def test_weights_that_are_not_those_published_are_not_used(
    server: RunningServer, client: AsyncClient, tmp_path: Path
) -> None:
    """A file whose SHA-256 is not the published one stays out until the next version."""
    await client.create_table(run="r", table="t", config=CONFIG)
    await publish(client, 0, tmp_path)
    path = tmp_path / "torn.safetensors"
    path.write_bytes(builtin_checkpoint("addition").read_bytes()[:-1])
    async with generating(server):
        await client.next_batch(run="r", table="t", batch_size=1, timeout_s=60)
        await client.advance_policy(Policy(run="r", version=1, weights_uri=path.as_uri(), weights_sha256="0" * 64))
        waiting = asyncio.create_task(client.next_batch(run="r", table="t", batch_size=1, timeout_s=60))
        await publish(client, 2, tmp_path)
        batch = await waiting
        assert batch.groups[0].group.policy_version_min in {0, 2}
        assert batch.groups[0].group.policy_version_min != 1


@pytest.mark.parametrize(
    ("policy", "problem"),
    [
        (Policy(run="r", version=1, weights_uri="s3://bucket/weights"), "not a file:// URI"),
        (Policy(run="r", version=1, weights_uri="file://elsewhere/weights"), "not a file:// URI"),
    ],
)
def test_weights_elsewhere_are_refused_in_words(policy: Policy, problem: str) -> None:
    """A URI that this machine cannot open is named in the error."""
    with pytest.raises(ValueError, match=problem):
        weights_path(policy)


@pytest.mark.parametrize(
    ("policy", "label"),
    [
        (Policy(run="r", version=3, label="2026-11-25-step-3"), "2026-11-25-step-3"),
        (Policy(run="r", version=3, label="3", weights_sha256="ab" * 32), "3@abababababababab"),
        (Policy(run="r", version=3, weights_sha256="cd" * 32), "3@cdcdcdcdcdcdcdcd"),
        (Policy(run="r", version=3), "3@r"),
    ],
)
def test_weights_are_called_by_their_label_or_by_what_they_are(policy: Policy, label: str) -> None:
    """The service fills in the version where a trainer gives no label, and every run has a version 3."""
    assert weights_label(policy) == label


async def test_two_generators_share_the_demand(server: RunningServer, client: AsyncClient, tmp_path: Path) -> None:
    """Together they make what is waited for, once."""
    await client.create_table(run="r", table="t", config=CONFIG)
    await publish(client, 0, tmp_path)
    async with generating(server, producer_id="one"), generating(server, producer_id="two"):
        batch = await client.next_batch(run="r", table="t", batch_size=16, timeout_s=60)
    assert len(batch.groups) == 16
    assert (await client.describe_table(run="r", table="t")).counters["inserted"] == 16


async def test_a_run_repeated_with_the_same_seed_generates_the_same_groups(
    server: RunningServer, client: AsyncClient, tmp_path: Path
) -> None:
    """Ids, problems and tokens depend on the seed, the producer's name and what it has made, not on the process."""
    for table in ("first", "second"):
        await client.create_table(run="r", table=table, config=CONFIG)
    await publish(client, 0, tmp_path)
    made = []
    for table in ("first", "second"):
        async with generating(server, table=table):
            batch = await client.next_batch(run="r", table=table, batch_size=4, timeout_s=60)
        made.append([(d.group.group_id, d.group.response_token_ids.tolist()) for d in batch.groups])
    assert made[0] == made[1]


async def test_an_evaluator_measures_the_first_and_the_last_version(
    server: RunningServer, client: AsyncClient, tmp_path: Path
) -> None:
    """It writes one line per measured version and ends after the last; the same weights give the same accuracy."""
    await client.create_table(run="r", table="t", config=CONFIG)
    await publish(client, 0, tmp_path)
    output = tmp_path / "evaluations.jsonl"
    settings = EvaluatorSettings(
        server=server.grpc_address, run="r", output=output, every=2, last_version=3, problems=8, rollouts_per_prompt=2
    )
    evaluator = asyncio.create_task(run_evaluator(settings))
    async for policy in client.watch_policy(run="r"):
        if policy.version == 3:
            break
        await publish(client, policy.version + 1, tmp_path)
    await evaluator
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert records[-1]["policy_version"] == 3
    assert len({record["accuracy"] for record in records}) == 1


async def test_a_generator_can_be_watched(server: RunningServer, client: AsyncClient, tmp_path: Path) -> None:
    """Its page says what it sampled, with which policy, and how long each stage took."""
    await client.create_table(run="r", table="t", config=CONFIG)
    await publish(client, 0, tmp_path)
    listen = f"127.0.0.1:{free_port()}"
    async with generating(server, metrics=MetricsSettings(listen=listen)):
        await client.next_batch(run="r", table="t", batch_size=4, timeout_s=60)
        async with httpx.AsyncClient(base_url=f"http://{listen}") as http, asyncio.timeout(30):
            page = (await http.get("/metrics")).text
            while 'stage="inserting"' not in page:  # the batch is there before the generator hears of it
                page = (await http.get("/metrics")).text
    lines = page.splitlines()
    assert 'groupreplay_generator_groups_total{outcome="inserted"} 4.0' in lines
    assert "groupreplay_generator_rollouts_total 8.0" in lines
    assert "groupreplay_generator_policy_version 0.0" in lines
    assert all(measure.name in page for measure in MEASURES)
