"""The loop with tasks that need more than text and a quick verifier: images, prompts too long, verifiers that fail."""

import asyncio
import hashlib
import json
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from groupreplay import AsyncClient, Fill, Policy, RolloutGroup, TableConfig
from groupreplay_generator import generator as generator_module
from groupreplay_generator.evaluator import run_evaluator
from groupreplay_generator.generator import run_generator
from groupreplay_generator.settings import EvaluatorSettings, GeneratorSettings
from groupreplay_generator.tasks import create_task
from groupreplay_server.app import RunningServer
from groupreplay_tinylm import (
    CharTokenizer,
    TinyLM,
    TinyLMConfig,
    VisionConfig,
    builtin_checkpoint,
    load_checkpoint,
    save_checkpoint,
)

HERE = Path(__file__).resolve().parent
CONFIG = TableConfig(fill=Fill.KEEP, ahead_groups=0)


@pytest.fixture(autouse=True)
def own_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tasks be found beside the tests, and beat as often as the service allows."""
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.setattr(generator_module, "BEAT_S", 1.0)


async def publish(client: AsyncClient, weights: Path, folder: Path) -> None:
    """Create the table and publish weights as policy version 0."""
    await client.create_table(run="r", table="t", config=CONFIG)
    path = folder / "policy-0.safetensors"
    shutil.copy(weights, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    await client.advance_policy(Policy(run="r", version=0, weights_uri=path.as_uri(), weights_sha256=digest))


@asynccontextmanager
async def generating(server: RunningServer, **changes: Any) -> AsyncIterator[asyncio.Task[None]]:
    """Run a generator beside the test."""
    values: dict[str, Any] = {
        "producer_id": "gen",
        "run": "r",
        "table": "t",
        "prompts_at_once": 4,
        "rollouts_per_prompt": 2,
    }
    task = asyncio.create_task(run_generator(GeneratorSettings(server=server.grpc_address, **(values | changes))))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def groups_of(client: AsyncClient, count: int) -> list[RolloutGroup]:
    """Return the groups of a batch."""
    batch = await client.next_batch(run="r", table="t", batch_size=count, timeout_s=60)
    return [delivered.group for delivered in batch.groups]


async def status_with(client: AsyncClient, text: str) -> str:
    """Wait until the generator's beat says `text`, and return all it says."""
    status, deadline = "", time.monotonic() + 20
    while text not in status:
        assert time.monotonic() < deadline, f"the last status was {status!r}"
        diagnosis = await client.diagnose(run="r", table="t", batch_size=1)
        status = next((producer.status for producer in diagnosis.producers), "")
    return status


async def test_a_generator_survives_verifiers_that_hang_die_and_raise(
    server: RunningServer, client: AsyncClient, tmp_path: Path
) -> None:
    """Their responses score as configured, the others as they deserve, and the beats say how many failed and why."""
    await publish(client, builtin_checkpoint("addition"), tmp_path)
    settings = {"task": "verifiers:FailsByProblem", "reward_timeout_s": 0.5, "reward_on_error": -1.0}
    async with generating(server, **settings, reward_workers=2):
        for _ in range(2):
            groups = await groups_of(client, 4)
            rewards = {group.prompt_id: group.rewards.tolist() for group in groups}
            failed = {f"train-{index}": [-1.0, -1.0] for index in range(3)}
            assert rewards == failed | {"train-3": [1.0, 1.0]}
        status = await status_with(client, "rewards failed: 4 died, 4 raised, 4 timeout")
    assert status.startswith("waits until groups are wanted; ")


LONG_PROMPTS = """
from groupreplay_generator.tasks import Problem
class Sums:
    name = "sums"
    max_response_tokens = 8
    scores_in_process = True
    shortest = 1
    def problem_count(self, split):
        return 8
    def problem(self, index, split):
        ones = "+".join(["1"] * (self.shortest + 6 * index))
        return Problem(prompt_id=f"{split}-{index}", prompt_text=f"{ones}=", answer="")
    def score(self, problem, response_text):
        return 0.0
class LongSums(Sums):
    shortest = 100
"""


@pytest.fixture
def long_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offer tasks whose prompts are mostly longer than the 16 tokens that the tiny model takes."""
    (tmp_path / "long_prompts.py").write_text(LONG_PROMPTS)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("long_prompts")
async def test_a_prompt_too_long_for_the_policy_is_left_out(
    server: RunningServer, client: AsyncClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The others of its batch are generated, it is named in the log, and the beats count it."""
    await publish(client, builtin_checkpoint("addition"), tmp_path)
    async with generating(server, task="long_prompts:Sums", prompts_at_once=8):
        met: set[str] = set()
        while len(said := left_out(caplog)) < 3 or met != {"train-0", "train-1"}:
            met |= {group.prompt_id for group in await groups_of(client, 2)}
        await status_with(client, "; prompts left out: ")
    assert "tokens; with max_response_tokens 8 this model takes 1 to 16" in said[0]


def left_out(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the log says of problems that were left out: of the 1st, the 2nd, the 4th."""
    return [record.getMessage() for record in caplog.records if "left out problem" in record.getMessage()]


@pytest.mark.usefixtures("long_prompts")
async def test_a_task_of_which_nothing_fits_ends_the_generator_in_words(
    server: RunningServer, client: AsyncClient, tmp_path: Path
) -> None:
    """Rather than asking for leave to generate for ever."""
    await publish(client, builtin_checkpoint("addition"), tmp_path)
    async with generating(server, task="long_prompts:LongSums", prompts_at_once=8) as generator:
        waiting = asyncio.create_task(client.next_batch(run="r", table="t", batch_size=1, timeout_s=60))
        with pytest.raises(ValueError, match=r"long_prompts:LongSums has no training problem that the policy can be"):
            await generator
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


@pytest.mark.usefixtures("long_prompts")
async def test_an_evaluator_leaves_out_what_does_not_fit_and_counts_what_fails(
    server: RunningServer, client: AsyncClient, tmp_path: Path
) -> None:
    """Its record says how many, so that an accuracy can be read."""
    await publish(client, builtin_checkpoint("addition"), tmp_path)
    records = []
    for task in ("long_prompts:Sums", "verifiers:FailsByProblem"):
        output = tmp_path / "evaluations.jsonl"
        await run_evaluator(
            EvaluatorSettings(
                server=server.grpc_address,
                run="r",
                task=task,
                output=output,
                last_version=0,
                rollouts_per_prompt=2,
                reward_timeout_s=0.5,
            )
        )
        records.append(json.loads(output.read_text().splitlines()[-1]))
    assert [(record["rollouts"], record["unfit_prompts"], record["failed_rewards"]) for record in records] == [
        (4, 6, 0),
        (8, 0, 6),
    ]
    assert records[1]["accuracy"] == 0.25


def seeing_checkpoint(folder: Path) -> Path:
    """Write a small model with random weights that sees the images of geometry-tiny."""
    torch.manual_seed(0)
    config = TinyLMConfig(
        vocab_size=CharTokenizer().vocab_size,
        layers=2,
        width=32,
        heads=2,
        max_positions=48,
        vision=VisionConfig(image_size=24, patch_size=4),
    )
    save_checkpoint(folder / "seeing.safetensors", TinyLM(config))
    return folder / "seeing.safetensors"


async def test_groups_of_a_visual_task_carry_their_image(
    server: RunningServer, client: AsyncClient, tmp_path: Path
) -> None:
    """What arrives is the problem's image, and with it a trainer finds the log probabilities that were sampled."""
    weights = seeing_checkpoint(tmp_path)
    await publish(client, weights, tmp_path)
    async with generating(server, task="geometry-tiny", seed=3):
        groups = await groups_of(client, 4)
    task, model = create_task("geometry-tiny", seed=3), load_checkpoint(weights)
    problems = {problem.prompt_id: problem for problem in (task.problem(index, "train") for index in range(2000))}
    for group in groups:
        image = group.columns["image"]
        np.testing.assert_array_equal(image, problems[group.prompt_id].image)
        assert image.dtype == np.uint8
        for piece in group.response_slices():
            response = group.response_token_ids[piece]
            token_ids_T = torch.from_numpy(np.concatenate((group.prompt_token_ids, response))).long()
            with torch.no_grad():
                logits_TV = model(token_ids_T[None, :-1], images_BHWC=torch.from_numpy(np.array(image))[None])[0]
            logprobs_T = logits_TV.log_softmax(dim=-1).gather(1, token_ids_T[1:, None])[-len(response) :, 0]
            np.testing.assert_allclose(logprobs_T.numpy(), group.behaviour_logprobs[piece], atol=1e-4)


async def test_a_policy_that_sees_nothing_cannot_be_asked_about_images(
    server: RunningServer, client: AsyncClient, tmp_path: Path
) -> None:
    """The generator ends and says why, instead of training a policy to guess."""
    await publish(client, builtin_checkpoint("addition"), tmp_path)
    async with generating(server, task="geometry-tiny", train_problems=4) as generator:
        waiting = asyncio.create_task(client.next_batch(run="r", table="t", batch_size=1, timeout_s=60))
        with pytest.raises(ValueError, match=r"geometry-tiny has no training problem.*this model sees no images"):
            await generator
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
