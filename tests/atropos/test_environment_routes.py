"""What an environment written for Atropos is told, and what becomes of what it pushes."""

import asyncio
import base64
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from atropos_client import AtroposUser, scored_data
from lossy_proxy import lossy_proxy
from processes import RedisProcess
from samples import effective
from service_user import settings
from table_user import TableUser

from groupreplay import AsyncClient, InvalidRequestError, Policy, TableConfig
from groupreplay_server.api.atropos import environment_routes
from groupreplay_server.app import RunningServer, running_server

NAMES: dict[str, Any] = {"run": "run", "table": "train"}


async def start(atropos: AtroposUser, **registration: object) -> None:
    """Register a trainer, and have it ask."""
    await atropos.register(**registration)
    await atropos.batch()


async def test_an_environment_waits_until_a_trainer_has_asked_for_a_batch(atropos: AtroposUser) -> None:
    """As in Atropos; from then on each has an id and a name of its own."""
    waits = {"status": "wait for trainer to start"}
    assert await atropos.register_env() == waits
    await atropos.register(starting_step=3)
    assert await atropos.register_env() == waits
    await atropos.batch()
    assert await atropos.register_env() == {
        "status": "success", "env_id": 0, "wandb_name": "adding_0", "checkpoint_dir": "/checkpoints",
        "starting_step": 3, "checkpoint_interval": 10, "num_steps": 100,
    }  # fmt: skip
    again, other = await atropos.register_env(), await atropos.register_env(desired_name="other")
    assert [(it["env_id"], it["wandb_name"]) for it in (again, other)] == [(1, "adding_1"), (2, "other_0")]


async def test_the_queue_is_told_in_groups_of_the_asking_environment(atropos: AtroposUser) -> None:
    """Its own, and what the others have waiting: the only brake an environment has."""
    await start(atropos, batch_size=64)
    await atropos.register_env()
    await atropos.register_env(desired_name="other", group_size=4, weight=3.0)
    own = [scored_data(seed, env_id=0) for seed in range(3)]
    others = scored_data(9, scores=(0.0, 1.0, 2.0, 3.0), env_id=1)
    await atropos.push(*own, others)
    assert await atropos.get("/status-env", {"env_id": 0}) == {
        "current_step": 0, "queue_size": 5, "unallocated_fraction": 1.0, "self_queue_size": 3, "max_group_size": 4,
        "env_weight": 0.25,
    }  # fmt: skip
    assert await atropos.get("/status") == {"current_step": 0, "queue_size": 4}


async def test_groups_of_the_sdk_count_in_the_queue(atropos: AtroposUser, table: TableUser) -> None:
    """An environment holds back for them, too."""
    await start(atropos)
    await atropos.register_env()
    await table.insert(*effective("a", "b", "c"))
    assert (await atropos.get("/status-env", {"env_id": 0}))["queue_size"] == 3


async def test_an_environment_that_left_takes_no_share(atropos: AtroposUser) -> None:
    """The others' weights and allocations are theirs again."""
    await start(atropos)
    for _ in range(2):
        await atropos.register_env(min_batch_allocation=0.25)
    assert (await atropos.get("/status-env", {"env_id": 0}))["unallocated_fraction"] == 0.5
    assert (await atropos.post("/disconnect-env", {"env_id": 1})).json() == {"status": "success"}
    status = await atropos.get("/status-env", {"env_id": 0})
    assert (status["unallocated_fraction"], status["env_weight"]) == (0.75, 1.0)
    assert (await atropos.post("/disconnect-env", {"env_id": 7})).json()["status"] == "failure"


async def test_the_status_of_a_stranger_is_refused(atropos: AtroposUser) -> None:
    """With what to do about it."""
    await start(atropos)
    answer = await atropos.http.request("GET", "/status-env", json={"env_id": 5})
    assert answer.status_code == 422
    assert "call /register-env" in answer.json()["detail"]


async def test_asking_for_its_status_is_an_environments_pulse(atropos: AtroposUser, table: TableUser) -> None:
    """So that Diagnose knows which of them are alive."""
    await start(atropos)
    await atropos.register_env(desired_name="my env")
    await atropos.get("/status-env", {"env_id": 0})
    await atropos.push(scored_data(env_id=0))
    found = await table.client.diagnose(batch_size=1, **table.names)
    assert [(producer.producer_id, producer.inserted) for producer in found.producers] == [("my-env_0", 1)]


@pytest.mark.parametrize("packed", [False, True])
async def test_a_push_may_be_gzipped(atropos: AtroposUser, table: TableUser, packed: bool) -> None:
    """BaseEnv does so above 1 KiB."""
    for path, body in (("/scored_data", scored_data(0)), ("/scored_data_list", [scored_data(1), scored_data(2)])):
        answer = await atropos.post(path, body, packed=packed)
        assert answer.status_code == 200, answer.text
    assert answer.json() == {"status": "received", "groups_processed": 2}
    assert (await table.describe()).fresh == 3


async def test_a_push_before_any_trainer_is_kept(atropos: AtroposUser, table: TableUser) -> None:
    """The table is made for it."""
    await atropos.push(scored_data(0))
    config = (await table.describe()).config
    assert config == TableConfig(allow_repeated_prompts=True)
    await atropos.register(batch_size=2)
    assert await atropos.prompts() == [0]


async def test_the_same_push_again_is_the_same_group(atropos: AtroposUser, table: TableUser) -> None:
    """Clients repeat a push whose answer they did not get."""
    await atropos.push(scored_data(0), scored_data(0))
    state = await table.describe()
    assert (state.fresh, state.counters["duplicate"]) == (1, 1)


async def test_a_push_whose_answer_was_lost_is_kept_once(
    atropos: AtroposUser, table: TableUser, server: RunningServer
) -> None:
    """Exactly what Atropos could not do."""
    async with (
        lossy_proxy(server.http_address, lambda _, chunk: chunk.startswith(b"HTTP/1.1 200")) as proxy,
        httpx.AsyncClient(base_url=f"http://{proxy.address}/atropos/run/train", timeout=20.0) as http,
    ):
        user = AtroposUser(http)
        proxy.lose_answers()
        with pytest.raises(httpx.TransportError):
            await user.post("/scored_data", scored_data(0))
        await user.push(scored_data(0))
    assert (await table.describe()).fresh == 1


async def test_the_policy_version_is_the_clocks_unless_the_group_has_one(
    atropos: AtroposUser, table: TableUser
) -> None:
    """What was inferred says so, and a version that was never published is no reason to lose a group."""
    await atropos.register()
    await table.client.advance_policy(Policy(run="run", version=4, weights_uri="w"))
    for seed, overrides in enumerate((None, {"policy_version": 2}, {"policy_version": 9}, {"policy_version": "x"})):
        await atropos.push(scored_data(seed, group_overrides=overrides))
    groups = [delivered.group for delivered in (await table.take(4)).groups]
    assert [group.policy_version_min for group in groups] == [4, 2, 4, 4]
    assert [group.tags["atropos.policy_version"] for group in groups] == [
        "inferred", "stated", "above the clock", "inferred",
    ]  # fmt: skip


async def test_a_stale_group_is_refused_for_good(atropos: AtroposUser, table: TableUser) -> None:
    """A 4xx: the client need not send it again."""
    await table.client.create_table(**NAMES, config=TableConfig(max_staleness=1))
    await table.advance(3)
    answer = await atropos.post("/scored_data", scored_data(0, group_overrides={"policy_version": 1}))
    assert (answer.status_code, answer.json()["reason"]) == (409, "STALE_POLICY_VERSION")


async def test_a_push_into_a_full_table_waits_for_room(atropos: AtroposUser, table: TableUser) -> None:
    """Its client would drop it on a 429."""
    await table.client.create_table(**NAMES, config=TableConfig(fresh_capacity=1))
    await atropos.push(scored_data(0))
    waiting = asyncio.create_task(atropos.post("/scored_data", scored_data(1)))
    async with asyncio.timeout(20):
        while not (await table.describe()).counters.get("refused_table_full"):
            continue
    assert not waiting.done()
    await table.train(1, step=1)
    assert (await waiting).status_code == 200
    assert (await table.describe()).fresh == 1


async def test_a_push_that_finds_no_room_is_to_come_again(
    atropos: AtroposUser, table: TableUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503, which clients repeat; never 429, which they take for the end."""
    monkeypatch.setattr(environment_routes, "ROOM_WAIT_S", 0.1)
    await table.client.create_table(**NAMES, config=TableConfig(fresh_capacity=1))
    await atropos.push(scored_data(0))
    body = [scored_data(0), scored_data(1), scored_data(2, tokens=[])]
    answer = await atropos.post("/scored_data_list", body)
    assert (answer.status_code, answer.json()["reason"]) == (503, "TABLE_FULL")


async def test_a_push_while_redis_is_away_is_to_come_again(tmp_path: Path) -> None:
    """503, and nothing is lost once it is back."""
    with RedisProcess(tmp_path) as own:
        async with (
            running_server(settings(own.url)) as server,
            httpx.AsyncClient(base_url=f"http://{server.http_address}/atropos/run/train", timeout=30.0) as http,
        ):
            user = AtroposUser(http)
            await user.register(batch_size=2)
            own.kill()
            answer = await user.post("/scored_data", scored_data(0))
            assert (answer.status_code, answer.json()["reason"]) == (503, "STORE_UNAVAILABLE")
            own.start()
            await user.push(scored_data(0))
            assert await user.prompts() == [0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokens": [], "masks": [], "scores": []}, "at least one sequence"),
        ({"scores": [1.0]}, "one of each for every sequence"),
        ({"masks": [[-100] * 4] * 2}, "sequence 0 has 5 tokens and 4 masks"),
        ({"scores": [1.0, 1e39]}, "not finite"),
        ({"advantages": [[1e39] * 5] * 2}, "not finite"),
        ({"tokens": [[2**31] * 5] * 2}, "kept as int32"),
    ],
)
async def test_a_group_that_cannot_be_kept_is_refused(
    atropos: AtroposUser, table: TableUser, change: dict[str, object], words: str
) -> None:
    """422 with the reason; the good ones beside it are kept."""
    answer = await atropos.post("/scored_data_list", [scored_data(1), scored_data(0) | change])
    assert (answer.status_code, answer.json()["reason"]) == (422, "INVALID_GROUP")
    assert words in answer.json()["detail"]
    assert (await table.describe()).fresh == 1


async def test_a_body_of_another_shape_is_refused_in_fastapis_words(atropos: AtroposUser) -> None:
    """As Atropos' server does it."""
    answer = await atropos.post("/scored_data", {"tokens": [["a"]], "masks": [[1]]})
    assert answer.status_code == 422
    assert {"type": "missing", "loc": ["body", "scores"], "msg": "Field required"} in answer.json()["detail"]
    messages = await atropos.post("/scored_data", scored_data(messages=[[{"role": "user"}]] * 2))
    assert "must have 'role' and 'content'" in messages.text
    assert (await atropos.http.post("/scored_data", content=b"{")).status_code == 422


async def test_a_group_without_log_probabilities_is_kept_and_says_so(atropos: AtroposUser, table: TableUser) -> None:
    """They are zeros for whoever reads it over gRPC, and null in /batch as they were pushed."""
    await atropos.register(batch_size=6)
    unusable = [[1.0, 1.0, -0.5, 0.5, -0.1]] * 2
    for seed, logprobs in enumerate((None, [[-1.0]] * 2, unusable)):
        await atropos.push(scored_data(seed, inference_logprobs=logprobs))
    batch = await atropos.batch()
    assert batch is not None
    assert batch[0]["inference_logprobs"] is None
    assert batch[1]["inference_logprobs"] == [[-1.0]] * 2
    ids = [item["groupreplay"]["group_id"] for item in batch]
    for stored in await table.client.get_groups(ids, **NAMES):
        assert stored.group.tags["atropos.behaviour_logprobs"] == "absent"
        assert not stored.group.behaviour_logprobs.any()


@pytest.mark.parametrize(
    ("body", "status"), [(b"no gzip", 400), (b"\x1f\x8b\x08", 400), (b"", 422)], ids=["foreign", "cut", "empty"]
)
async def test_gzip_that_is_none_is_refused(atropos: AtroposUser, body: bytes, status: int) -> None:
    """As Atropos' server does it."""
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    answer = await atropos.http.post("/scored_data", content=body, headers=headers)
    assert answer.status_code == status
    assert status == 422 or "Invalid gzip payload" in answer.json()["detail"]


async def test_a_token_in_the_server_url_reaches_the_service(server: RunningServer) -> None:
    """As the password of Basic, which is all that unchanged clients can be made to send."""
    async with httpx.AsyncClient() as http:
        answer = await http.get(f"http://any:t0ken@{server.http_address}/atropos/run/train/info")
    assert answer.request.headers["authorization"] == f"Basic {base64.b64encode(b'any:t0ken').decode()}"
    assert answer.status_code == 200


async def test_a_name_that_cannot_be_is_refused(atropos: AtroposUser, server: RunningServer) -> None:
    """Before anything is made."""
    answer = await atropos.http.get(f"http://{server.http_address}/atropos/ru n/train/info")
    assert (answer.status_code, answer.json()["reason"]) == (422, InvalidRequestError.reason)


async def test_what_a_table_was_made_with_is_left_alone(atropos: AtroposUser, client: AsyncClient) -> None:
    """Also when a trainer registers."""
    config = TableConfig(max_staleness=3)
    await client.create_table(**NAMES, config=config)
    await atropos.register()
    assert (await client.describe_table(**NAMES)).config == replace(config)
