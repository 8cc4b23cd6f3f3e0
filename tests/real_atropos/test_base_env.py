"""Atropos' own clients against our server: the base class of its environments, and its example trainer."""

import asyncio
import base64
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
import tenacity
from example_trainer.api import check_atropos_api, get_batch, register_trainer
from example_trainer.config import TrainingConfig
from example_trainer.data import get_data
from lossy_proxy import Exchange, lossy_proxy
from processes import ServerProcess
from real_atropos.adding_env import AddingEnv, config, group_of
from samples import effective
from table_user import TableUser

from groupreplay import AsyncClient, Policy

pytestmark = pytest.mark.atropos

NAMES = {"run": "run", "table": "train"}


async def in_thread(call: Callable[..., Any], *arguments: Any) -> Any:
    """Call what blocks, perhaps for ever, in a thread that holds up nobody's end."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Any] = loop.create_future()

    def run() -> None:
        try:
            result = call(*arguments)
        except Exception as error:  # noqa: BLE001  it is raised where it was called
            loop.call_soon_threadsafe(answer.set_exception, error)
        else:
            loop.call_soon_threadsafe(answer.set_result, result)

    threading.Thread(target=run, daemon=True).start()
    return await asyncio.wait_for(answer, 60)


def trainer(url: str, **other: int) -> TrainingConfig:
    """Return the configuration of the example trainer."""
    settings = {"batch_size": 8, "gradient_accumulation_steps": 1, "seq_len": 512, "training_steps": 6} | other
    return TrainingConfig(model_name="none", atropos_url=url, **settings)


@pytest.fixture
def env(own_url: str, tmp_path: Path) -> AddingEnv:
    """An environment whose server URL is ours; it has registered with nobody yet."""
    return AddingEnv(config(own_url, tmp_path / "tokenizer"))


async def test_an_environment_and_a_trainer_work_together(
    env: AddingEnv, own_url: str, own_server: ServerProcess, clean_redis: redis.Redis
) -> None:
    """Unchanged, through a whole run: register, push, hold back, pull, to the last step."""
    assert await in_thread(check_atropos_api, own_url)
    await in_thread(register_trainer, trainer(own_url))
    assert (await in_thread(get_batch, own_url)) == {"batch": None}
    batches: list[Any] = []

    async def train() -> None:
        while len(batches) < 6:
            found, _ = await in_thread(get_data, 8, 512, own_url)
            batches.extend(found)

    await asyncio.gather(env.env_manager(), train())  # the environment ends by itself, after the last step
    assert env.wandb_prepend == "adding_0"
    assert env.config.batch_size == 8
    assert env.largest_queue <= 2 * 8 // 4 + env.config.max_num_workers
    for tokens, labels, advantages, _, logprobs in batches:
        assert len(tokens) == 1
        assert tokens[0].shape[0] == 8  # sequences
        assert (labels[0] != -100).sum() == 8 * 3
        assert advantages[0].abs().min() > 0
        assert logprobs is not None
        assert {round(float(it), 3) for it in logprobs[0][labels[0] != -100]} == {-0.5, -0.25, -0.125}
    prompts = [int(row[0]) for tokens, *_ in batches for row in tokens[0][::4]]
    assert len(set(prompts)) == len(prompts)  # nothing twice
    async with AsyncClient(own_server.grpc_address, timeout_s=20.0) as client:
        table = await client.describe_table(**NAMES)
        assert table.replay >= 2 * (len(batches) - 1)
        assert table.policy_version == len(batches) - 1
        assert [it.producer_id for it in (await client.diagnose(batch_size=1, **NAMES)).producers] == ["adding_0"]


async def test_what_was_pushed_survives_a_killed_service(
    env: AddingEnv, own_url: str, own_server: ServerProcess
) -> None:
    """And its trainer goes on with the batch it had, or the next."""
    await in_thread(register_trainer, trainer(own_url))
    for number in range(4):
        await env._send_scored_data_to_api(group_of(number))
    first = await in_thread(get_batch, own_url)
    own_server.kill()
    own_server.start()
    second = await in_thread(get_batch, own_url)
    numbers = [[item["tokens"][0][0] - 1000 for item in answer["batch"]] for answer in (first, second)]
    assert numbers == [[0, 1], [2, 3]]


async def test_a_trainer_that_is_started_again_gets_its_batch_again(env: AddingEnv, own_url: str) -> None:
    """It registers, as it does at every start."""
    await in_thread(register_trainer, trainer(own_url))
    for number in range(4):
        await env._send_scored_data_to_api(group_of(number))
    first = await in_thread(get_batch, own_url)
    await in_thread(register_trainer, trainer(own_url))
    again = await in_thread(get_batch, own_url)
    assert [item["tokens"] for item in again["batch"]] == [item["tokens"] for item in first["batch"]]


async def test_a_push_whose_answer_was_lost_is_repeated_and_kept_once(
    env: AddingEnv, own_server: ServerProcess
) -> None:
    """By the retry of BaseEnv itself."""
    async with (
        lossy_proxy(own_server.http_address, lambda _, chunk: chunk.startswith(b"HTTP/1.1 200")) as proxy,
        AsyncClient(own_server.grpc_address, timeout_s=20.0) as client,
    ):
        env.config.rollout_server_url = f"http://{proxy.address}/atropos/run/train"
        proxy.lose_answers()
        await env._send_scored_data_to_api([group_of(0), group_of(1)])
        assert proxy.lost == 1
        table = await client.describe_table(**NAMES)
        assert (table.fresh, table.counters["duplicate"]) == (2, 2)


async def test_a_group_that_the_sdk_pushed_trains_the_example_trainer(
    env: AddingEnv, own_url: str, own_server: ServerProcess, clean_redis: redis.Redis
) -> None:
    """And one of the environment's comes out of next_batch."""
    await in_thread(register_trainer, trainer(own_url, batch_size=4))
    async with AsyncClient(own_server.grpc_address, timeout_s=20.0) as client:
        table = TableUser(client, clean_redis, **NAMES)
        await table.insert(*effective("sdk", rewards=(0.0, 1.0, 0.0, 1.0)))
        batches, _ = await in_thread(get_data, 4, 512, own_url)
        assert batches[0][0][0].shape[0] == 4
        await client.advance_policy(Policy(run="run", version=3, weights_uri="w3"))
        await env._send_scored_data_to_api(group_of(5))
        batch = await table.take(1)
        assert batch.groups[0].group.policy_version_min == 3
        assert batch.groups[0].group.rewards.tolist() == [1.0, 0.0, 1.0, 0.0]


async def test_a_token_in_the_server_url_is_sent_by_both_clients(env: AddingEnv, own_server: ServerProcess) -> None:
    """Neither can be told of a header; both make Basic of what stands before the host."""
    seen: list[bytes] = []

    def look(exchange: Exchange, _: bytes) -> bool:
        seen.append(exchange.last_request)
        return False

    async with lossy_proxy(own_server.http_address, look) as proxy:
        url = f"http://any:t0ken@{proxy.address}/atropos/run/train"
        await in_thread(register_trainer, trainer(url))
        await in_thread(get_batch, url)
        env.config.rollout_server_url = url
        await env.register_env()
        await env.get_server_info()
        await env.get_status()
        await env._send_scored_data_to_api(group_of(0))
    requests = [request for request in seen if b"HTTP/1.1\r\n" in request]  # an answer may come in pieces
    assert len(requests) == 6
    expected = b"authorization: basic " + base64.b64encode(b"any:t0ken").lower()
    assert all(expected in request.lower() for request in requests)


async def test_a_refused_push_is_not_repeated(
    env: AddingEnv, own_server: ServerProcess, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be kept is dropped with a message; what may be kept later is an error that is repeated."""
    with caplog.at_level(logging.ERROR):
        await env._send_scored_data_to_api(group_of(0) | {"scores": [1.0]})
    assert "Client error: 422, not retrying" in caplog.text
    own_server.terminate()
    with pytest.raises(tenacity.RetryError):
        await env._send_scored_data_to_api(group_of(1))
    own_server.start()
    await env._send_scored_data_to_api(group_of(1))
