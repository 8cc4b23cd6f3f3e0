"""What a trainer written for Atropos gets, and what it never got there."""

import httpx
import pytest
import redis
from atropos_client import REGISTRATION, AtroposUser, scored_data
from samples import effective, ids, ineffective
from service_user import settings
from table_user import TableUser

from groupreplay import AsyncClient, Fill, GroupSource, Policy, TableConfig
from groupreplay_server.app import RunningServer, running_server
from groupreplay_server.store.keys import TableKeys

NAMES = {"run": "run", "table": "train"}


async def test_a_batch_has_as_many_sequences_as_the_trainer_registered(atropos: AtroposUser) -> None:
    """batch_size counts sequences: four of them are two groups of two."""
    await atropos.register(batch_size=4)
    await atropos.push(*(scored_data(seed) for seed in range(3)))
    batch = await atropos.batch()
    assert batch is not None
    assert [len(item["tokens"]) for item in batch] == [2, 2]
    assert await atropos.batch() is None


async def test_groups_of_different_sizes_fill_a_batch_as_far_as_whole_groups_do(atropos: AtroposUser) -> None:
    """Never more sequences than asked for."""
    await atropos.register(batch_size=8)
    for seed, size in enumerate((4, 2, 4, 2)):
        await atropos.push(scored_data(seed, scores=[float(index) for index in range(size)]))
    assert await atropos.prompts() == [0, 1]


async def test_a_group_above_the_batch_size_is_a_batch_of_its_own(atropos: AtroposUser) -> None:
    """It would block all others."""
    await atropos.register(batch_size=2)
    await atropos.push(scored_data(0, scores=(0.0, 1.0, 2.0)), scored_data(1))
    assert await atropos.prompts() == [0]
    assert await atropos.prompts() == [1]


async def test_an_item_comes_out_as_it_went_in(atropos: AtroposUser) -> None:
    """Also what groupreplay has no field for, and masks and log probabilities that say something of their own."""
    pushed = scored_data(
        scores=(0.1, 0.7),
        masks=[[-100, 7, -100, 20, 1], [-100, 7, 10, -100, -100]],
        inference_logprobs=[[0.0, -0.5, 1.0, -0.25, -0.125], [1.0, -0.5, -1.5, 1.0, 1.0]],
        advantages=[[0.5] * 5, [-0.5] * 5],
        ref_logprobs=[[-1.0] * 5, [-2.0] * 5],
        messages=[[{"role": "user", "content": "ü?", "reward": None}]] * 2,
        generation_params={"temperature": 0.9},
        overrides=[{"set_advantage_to_zero": True}, {}],
        group_overrides={"group_size": 2},
        images=["data:image/png;base64,AAAA", None],
        env_id=3,
        distill_token_ids=[[[1, 2], [3]], [[4, 5]]],
        distill_logprobs=[[[-0.5, -1.0], [-0.25]], [[-2.0, -4.0]]],
    )
    await atropos.register(batch_size=2)
    await atropos.push(pushed)
    latest = await atropos.get("/latest_example")
    batch = await atropos.batch()
    assert batch is not None
    assert {name: value for name, value in batch[0].items() if name != "groupreplay"} == pushed
    assert latest == pushed
    assert list(latest) == [
        "tokens", "masks", "scores", "advantages", "ref_logprobs", "messages", "generation_params",
        "inference_logprobs", "overrides", "group_overrides", "images", "env_id", "distill_token_ids",
        "distill_logprobs",
    ]  # fmt: skip


async def test_a_batch_is_committed_once_the_next_one_is_handed_out(atropos: AtroposUser, table: TableUser) -> None:
    """Not when it is asked for in vain: some trainers ask until there is nothing, and train then."""
    await atropos.register(batch_size=2)
    await atropos.push(scored_data(0))
    assert await atropos.prompts() == [0]
    assert await atropos.prompts() is None
    assert (await table.describe()).leases == 1
    await atropos.push(scored_data(1))
    assert await atropos.prompts() == [1]
    state = await table.describe()
    assert (state.leases, state.leased, state.replay) == (1, 1, 1)
    assert (await table.client.get_lineage(step=1, **table.names)).holder == "atropos"


async def test_a_trainer_that_died_gets_its_batch_again(atropos: AtroposUser) -> None:
    """It registers anew when it starts."""
    await atropos.register(batch_size=2)
    await atropos.push(scored_data(0), scored_data(1), scored_data(2))
    assert await atropos.prompts() == [0]
    assert await atropos.prompts() == [1]
    await atropos.register(batch_size=2)
    assert await atropos.prompts() == [1]
    assert (await atropos.get("/status"))["current_step"] == 2
    assert await atropos.prompts() == [2]


async def test_a_batch_that_did_not_arrive_is_handed_out_again(atropos: AtroposUser, server: RunningServer) -> None:
    """A trainer that hung up in the middle, or whose connection broke, asks for it as for any other."""
    await atropos.register(batch_size=2)
    length = 500_000  # its JSON is more than the buffers of a connection hold
    tokens = [[*range(length)]] * 2
    large = {"tokens": tokens, "masks": tokens, "scores": [0.0, 1.0]}
    assert (await atropos.post("/scored_data", large, packed=True)).status_code == 200
    await atropos.push(scored_data(1))
    async with atropos.http.stream("GET", "/batch") as answer:
        assert answer.status_code == 200
        await anext(answer.aiter_raw())
    batch = await atropos.batch()
    assert batch is not None
    assert len(batch[0]["tokens"][0]) == length
    assert await atropos.prompts() == [1]


async def test_the_lease_of_a_dead_trainer_ends(atropos: AtroposUser, table: TableUser) -> None:
    """Its groups are there for others then, such as a trainer over gRPC."""
    await atropos.register(batch_size=2)
    await atropos.push(scored_data(0))
    assert await atropos.prompts() == [0]
    table.expire_leases()
    batch = await table.take(1)
    assert batch.groups[0].redeliveries == 1
    await table.commit(batch, step=1)
    await atropos.push(scored_data(1))
    assert await atropos.prompts() == [1]


async def test_a_batch_whose_lease_ended_is_committed_unless_it_was_taken(
    atropos: AtroposUser, table: TableUser
) -> None:
    """A step may take longer than any lease."""
    await atropos.register(batch_size=2)
    await atropos.push(scored_data(0))
    assert await atropos.prompts() == [0]
    table.expire_leases()
    await atropos.push(scored_data(1))
    assert await atropos.prompts() == [1]
    assert (await table.describe()).replay == 1


async def test_everything_is_there_after_a_restart(atropos: AtroposUser, redis_url: str) -> None:
    """Groups, registrations, the step, and the batch that is out."""
    await atropos.register(batch_size=2)
    await atropos.batch()
    assert (await atropos.register_env())["env_id"] == 0
    await atropos.push(scored_data(0), scored_data(1))
    assert await atropos.prompts() == [0]
    before = [await atropos.get(path) for path in ("/status", "/info", "/wandb_info", "/latest_example")]
    async with (
        running_server(settings(redis_url)) as successor,
        httpx.AsyncClient(base_url=f"http://{successor.http_address}/atropos/run/train", timeout=20.0) as http,
    ):
        again = AtroposUser(http)
        after = [await again.get(path) for path in ("/status", "/info", "/wandb_info", "/latest_example")]
        assert after == before
        assert (await again.get("/status-env", {"env_id": 0}))["queue_size"] == 1
        assert (await again.register_env())["wandb_name"] == "adding_1"
        assert await again.prompts() == [1]


async def test_ineffective_slots_are_refilled_with_earlier_groups(atropos: AtroposUser) -> None:
    """POPO's refill, for a trainer that knows nothing of it."""
    await atropos.register(batch_size=4)
    await atropos.push(scored_data(0), scored_data(1))
    assert await atropos.prompts() == [0, 1]
    await atropos.push(scored_data(2), scored_data(3, scores=(1.0, 1.0)))
    batch = await atropos.batch()
    assert batch is not None
    assert [item["tokens"][0][0] - 1000 for item in batch] == [2, 1]
    assert [item["groupreplay"]["source"] for item in batch] == ["fresh", "replay"]
    assert [item["groupreplay"]["staleness"] for item in batch] == [1, 1]


async def test_a_batch_without_any_group_is_never_handed_out(atropos: AtroposUser) -> None:
    """Atropos' own trainer fails on an empty list."""
    await atropos.register(batch_size=2)
    await atropos.push(scored_data(0, scores=(1.0, 1.0)), scored_data(1, scores=(0.0, 0.0)))
    assert await atropos.batch() is None
    await atropos.push(scored_data(2))
    assert await atropos.prompts() == [2]


async def test_the_fill_rule_of_a_table_that_is_there_decides(atropos: AtroposUser, client: AsyncClient) -> None:
    """DAPO's: batches of effective groups only, more fresh ones taken in their place."""
    await client.create_table(**NAMES, config=TableConfig(fill=Fill.RESAMPLE, allow_repeated_prompts=True))
    await atropos.register(batch_size=4)
    await atropos.push(scored_data(0), scored_data(1, scores=(1.0, 1.0)))
    assert await atropos.batch() is None
    await atropos.push(scored_data(2))
    assert await atropos.prompts() == [0, 2]


async def test_each_batch_is_a_policy_version_where_no_trainer_publishes(
    atropos: AtroposUser, client: AsyncClient
) -> None:
    """Staleness is counted in batches, then."""
    await atropos.register(batch_size=2)
    await atropos.push(scored_data(0), scored_data(1))
    await atropos.batch()
    assert (await client.get_policy(run="run")).version == 0
    await atropos.batch()
    policy = await client.get_policy(run="run")
    assert (policy.version, policy.label) == (1, "atropos-1")


async def test_a_trainer_that_publishes_versions_keeps_the_clock(atropos: AtroposUser, client: AsyncClient) -> None:
    """Batches do not count as versions beside it."""
    await atropos.register(batch_size=2)
    await client.advance_policy(Policy(run="run", version=5, weights_uri="w5"))
    await atropos.push(scored_data(0), scored_data(1))
    for _ in range(2):
        await atropos.batch()
    assert (await client.get_policy(run="run")).version == 5


async def test_groups_of_the_sdk_come_out_of_batch(atropos: AtroposUser, table: TableUser) -> None:
    """Producers of both kinds feed one trainer."""
    await atropos.register(batch_size=4)
    await table.insert(*effective("from-the-sdk"))
    await atropos.push(scored_data(0))
    batch = await atropos.batch()
    assert batch is not None
    ours, theirs = batch
    assert ours["groupreplay"]["group_id"] == "from-the-sdk"
    assert ours["tokens"] == [[1, 2, 0, 1, 2], [1, 2, 3, 4, 5]]
    assert ours["masks"] == [[-100, -100, 0, 1, 2], [-100, -100, 3, 4, 5]]
    assert ours["inference_logprobs"] == [[1.0, 1.0, -0.5, -0.5, -0.5]] * 2
    assert ours["scores"] == [0.0, 1.0]
    assert set(ours) == set(theirs)


async def test_groups_of_atropos_come_out_of_next_batch(atropos: AtroposUser, table: TableUser) -> None:
    """And a trainer over gRPC is fed by environments of Atropos."""
    await atropos.register()
    await table.insert(*effective("from-the-sdk"))
    await atropos.push(scored_data(0, group_overrides={"policy_version": 0}))
    batch = await table.take(2)
    assert ids(batch)[0] == "from-the-sdk"
    delivered = batch.groups[1]
    assert delivered.source is GroupSource.FRESH
    assert delivered.group.prompt_token_ids.tolist() == [1000, 7]
    assert delivered.group.response_token_ids.tolist() == [10, 20, 30, 11, 20, 30]
    assert delivered.group.behaviour_logprobs.tolist() == [-0.5, -0.25, -0.125] * 2
    assert delivered.group.rewards.tolist() == [0.0, 1.0]


async def test_reset_removes_groups_and_registrations(atropos: AtroposUser, table: TableUser) -> None:
    """What was pushed before may be pushed again."""
    await table.client.create_table(**NAMES, config=TableConfig(allow_repeated_prompts=True))
    await table.insert(*ineffective("x"))
    await atropos.register(batch_size=2)
    await atropos.push(scored_data(0))
    await atropos.batch()
    assert (await atropos.http.get("/reset_data")).text == "Reset successful"
    assert (await table.describe()).fresh == 0
    assert await atropos.get("/info") == {"batch_size": -1, "max_token_len": -1}
    assert await atropos.get("/wandb_info") == {"group": None, "project": None}
    assert (await atropos.get("/batch"))["status"] == "error"
    assert await atropos.register_env() == {"status": "wait for trainer to start"}
    await atropos.register(batch_size=2)
    await atropos.push(scored_data(0))
    assert await atropos.prompts() == [0]


async def test_what_a_new_trainer_registers_holds(atropos: AtroposUser) -> None:
    """The service outlives trainers; its step does not go back with them."""
    await atropos.register(batch_size=2, starting_step=7)
    await atropos.push(scored_data(0))
    await atropos.batch()
    await atropos.register(batch_size=6, wandb_project="other", starting_step=0)
    assert (await atropos.get("/info"))["batch_size"] == 6
    assert (await atropos.get("/wandb_info"))["project"] == "other"
    assert (await atropos.get("/status"))["current_step"] == 8


@pytest.mark.parametrize("batch_size", [0, -1, 65537])
async def test_a_batch_size_that_cannot_be_is_refused(atropos: AtroposUser, batch_size: int) -> None:
    """And the message has the limits."""
    answer = await atropos.post("/register", REGISTRATION | {"batch_size": batch_size})
    assert answer.status_code == 422
    assert "is not in 1 to 65536" in answer.json()["detail"]


async def test_one_table_answers_at_the_root_where_it_is_named(redis_url: str, clean_redis: object) -> None:
    """For clients whose server URL has no path; /healthz stays what it is."""
    config = settings(redis_url)
    named = type(config)(
        grpc_listen="127.0.0.1:0", http_listen="127.0.0.1:0", redis_url=redis_url, atropos_table="run/train"
    )
    async with (
        running_server(named) as server,
        httpx.AsyncClient(base_url=f"http://{server.http_address}", timeout=20.0) as http,
    ):
        at_root = AtroposUser(http)
        assert await at_root.get("/") == {"message": "AtroposLib API"}
        await at_root.register()
        assert await at_root.get("/info") == await at_root.get("/atropos/run/train/info")
        assert (await http.get("/healthz")).text == "ok\n"


@pytest.mark.parametrize("name", ["train", "run/", "/train", "run/train/more", "run/tr ain"])
async def test_a_root_table_that_cannot_be_stops_the_start(redis_url: str, name: str) -> None:
    """A typing error is found at once."""
    config = type(settings(redis_url))(
        grpc_listen="127.0.0.1:0", http_listen="127.0.0.1:0", redis_url=redis_url, atropos_table=name
    )
    with pytest.raises(OSError, match="is not RUN/TABLE"):
        async with running_server(config):
            pass


async def test_calls_are_counted(atropos: AtroposUser, server: RunningServer) -> None:
    """By route and outcome, as those of gRPC."""
    await atropos.register(batch_size=2)
    await atropos.push(scored_data(0))
    await atropos.batch()
    await atropos.post("/scored_data", {"tokens": []})
    page = (await atropos.http.get(f"http://{server.http_address}/metrics")).text.splitlines()
    for line in (
        'groupreplay_call_seconds_count{method="Atropos.scored_data",reason="OK"} 1.0',
        'groupreplay_call_seconds_count{method="Atropos.scored_data",reason="INVALID_REQUEST"} 1.0',
        'groupreplay_call_seconds_count{method="Atropos.batch",reason="OK"} 1.0',
    ):
        assert line in page
    assert any(line.startswith('groupreplay_payload_bytes_total{direction="in"}') for line in page)


async def test_a_refused_call_is_logged_under_its_request_id(
    atropos: AtroposUser, caplog: pytest.LogCaptureFixture
) -> None:
    """As those of gRPC and REST are, with what it was about."""
    with caplog.at_level("INFO"):
        answer = await atropos.http.post("/scored_data", json={"tokens": []}, headers={"X-Request-ID": "push-7"})
    assert (answer.status_code, answer.headers["X-Request-ID"]) == (422, "push-7")
    [line] = [vars(record) for record in caplog.records if "method" in vars(record)]
    assert (line["method"], line["reason"]) == ("Atropos.scored_data", "INVALID_REQUEST")
    assert (line["run"], line["table"]) == ("run", "train")


async def test_a_fault_tells_the_request_id_and_no_more(
    atropos: AtroposUser, clean_redis: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has its traceback."""
    clean_redis.hset(TableKeys("run", "train").atropos, "registration", "{")
    answer = await atropos.http.get("/info", headers={"X-Request-ID": "look-8"})
    assert (answer.status_code, answer.headers["X-Request-ID"]) == (500, "look-8")
    assert answer.json()["reason"] == "INTERNAL"
    assert answer.json()["detail"].endswith("under request id look-8")
    [fault] = [record for record in caplog.records if record.exc_info]
    assert fault.getMessage() == "Atropos.info failed"
