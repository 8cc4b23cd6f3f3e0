"""The service goes, comes back, forgets, or disagrees: the trainer waits, makes good, or says what is wrong."""

import asyncio
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import redis
from processes import ServerProcess
from service_user import settings
from trainer.bench import RUN, TABLE, Bench, until

from groupreplay import (
    AsyncClient,
    Client,
    Durability,
    Fill,
    Policy,
    TableConfig,
    TableExistsError,
)
from groupreplay_server.app import running_server
from groupreplay_trainer.sections import ReplaySettings
from groupreplay_trainer.trainer import TrainingConflictError


async def test_a_trainer_outlives_the_service(
    bench: Bench, server_process: ServerProcess, caplog: pytest.LogCaptureFixture
) -> None:
    """The service is killed while the trainer waits, and comes back: the trainer says so, and takes its batch."""

    async def has_noticed() -> bool:
        return "trying on until the service answers" in caplog.text

    async with AsyncClient(server_process.grpc_address, timeout_s=20.0) as client:
        bench.client = client
        address = server_process.grpc_address
        training = asyncio.create_task(bench.train(server=address, steps=1, call_timeout_s=0.5, report_s=0.5))
        await bench.insert(bench.make_groups(1))
        await asyncio.to_thread(server_process.kill)
        await until(has_noticed)
        await asyncio.to_thread(server_process.start)
        await bench.insert(bench.make_groups(2))
        trainer = await training
        assert trainer.progress.step == await bench.version() == 1
    assert "the service answers again" in caplog.text


async def test_a_trainer_outlives_the_replicas(
    bench: Bench, clean_redis: redis.Redis, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A step that no replica confirms is committed again and again, and the trainer says so, until it is."""

    async def has_noticed() -> bool:
        return "cannot commit the step now" in caplog.text and "0 of 1 replicas had it" in caplog.text

    impatient = replace(settings(redis_url), durability_wait_s=0.05)
    async with running_server(impatient) as server, AsyncClient(server.grpc_address) as client:
        bench.client = client
        await bench.insert(bench.make_groups(2))
        config = replace(bench.settings, replay=ReplaySettings(durability="replicas")).table_config()
        await client.update_table(run=RUN, table=TABLE, config=config)
        options: dict[str, Any] = {
            "call_timeout_s": 2.0,
            "report_s": 0.5,
            "replay": ReplaySettings(durability="replicas"),
        }
        training = asyncio.create_task(bench.train(server=server.grpc_address, steps=1, **options))
        await until(has_noticed)
        await client.update_table(run=RUN, table=TABLE, config=replace(config, durability=Durability.MEMORY))
        assert (await training).progress.step == await bench.version() == 1


async def test_another_trainer_on_the_same_table_is_a_conflict_that_is_explained(bench: Bench) -> None:
    """A step that somebody else committed cannot be committed again, and the message says what to do."""
    await bench.insert(bench.make_groups(4))
    await bench.client.next_batch(run=RUN, table=TABLE, batch_size=2, lease_id="somebody", timeout_s=5.0)
    await bench.client.commit(run=RUN, table=TABLE, lease_id="somebody", step=1)
    with pytest.raises(TrainingConflictError, match="step 1 was committed before with another lease"):
        await bench.train()


async def test_a_run_that_went_on_without_this_folder_is_a_conflict(bench: Bench) -> None:
    """An old copy of a run folder, or an empty one, does not restart a run that is further on."""
    await bench.insert([])
    await bench.client.advance_policy(Policy(run=RUN, version=5, weights_uri="file:///elsewhere"))
    with pytest.raises(TrainingConflictError, match="at policy version 5, but the newest readable checkpoint"):
        await bench.train()


async def test_other_weights_at_the_same_version_are_a_conflict(bench: Bench) -> None:
    """Two runs of one name from different models would mix their groups."""
    await bench.insert([])
    elsewhere = Policy(run=RUN, version=0, weights_uri="file:///elsewhere", weights_sha256="ab" * 32)
    await bench.client.advance_policy(elsewhere)
    with pytest.raises(TrainingConflictError, match="announced other weights as policy version 0"):
        await bench.train(steps=0)


async def test_a_run_folder_belongs_to_one_run(bench: Bench, tmp_path: Path) -> None:
    """Its checkpoints are not continued under another name, and a log without checkpoints is not appended to."""
    await bench.train(steps=0)
    with pytest.raises(TrainingConflictError, match="holds run 'run', table 'rollouts', not run 'second'"):
        await bench.train(run="second", steps=0)
    (tmp_path / "third").mkdir()
    (tmp_path / "third/train.jsonl").write_text("{}\n")
    with pytest.raises(TrainingConflictError, match="no readable checkpoint"):
        await bench.train(run="third", run_dir=tmp_path / "third", steps=0)


async def test_a_table_with_another_configuration_is_not_trained_on(bench: Bench) -> None:
    """An algorithm needs its fill rule; the service's message has the difference."""
    await bench.client.create_table(run=RUN, table=TABLE, config=TableConfig(fill=Fill.KEEP))
    with pytest.raises(TableExistsError, match="fill"):
        await bench.train(steps=0)


async def test_a_table_whose_limits_were_changed_is_trained_on(bench: Bench) -> None:
    """A restart after update_table goes on with the limits that somebody chose while it ran."""
    await bench.insert(bench.make_groups(4))
    await bench.train(steps=1)
    config = replace((await bench.table()).config, replay_capacity=3, max_staleness=7)
    await bench.client.update_table(run=RUN, table=TABLE, config=config)
    await bench.train(steps=2)
    assert await bench.version() == 2
    assert (await bench.table()).config == config


async def test_weights_are_not_published_again_when_they_are_there(bench: Bench) -> None:
    """A restart announces nothing that is announced, so that generators reload nothing."""
    await bench.train(steps=0)
    announced = await bench.client.get_policy(run=RUN)
    path = bench.settings.weights_folder / "policy-000000.safetensors"
    modified = path.stat().st_mtime_ns
    await bench.train(steps=0)
    assert await bench.client.get_policy(run=RUN) == announced
    assert path.stat().st_mtime_ns == modified


async def test_training_goes_on_after_the_service_lost_everything(
    bench: Bench, clean_redis: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """With an empty store behind the service, checkpoints are kept, the clock is set, and the loss is reported."""
    await bench.insert(bench.make_groups(6))
    await bench.train(steps=3)
    clean_redis.flushall()
    await bench.insert([])
    await bench.train(steps=3)
    assert "has lost what it knew of the run" in caplog.text
    assert await bench.version() == 3
    await bench.insert(bench.make_groups(8)[6:])
    await bench.train(steps=4)
    assert [line["step"] for line in bench.log()] == [1, 2, 3, 4]


async def test_a_store_that_forgets_its_last_second_is_told_again(bench: Bench, clean_redis: redis.Redis) -> None:
    """Redis comes back as it was before step 2 was committed: step 2 is committed again, and no group is used twice."""
    past: dict[bytes, bytes] = {}
    forgotten = threading.Event()

    class Forgetful(Client):
        def commit(self, **call: Any) -> bool:
            if call["step"] == 2 and not past:
                past.update({key: cast(bytes, clean_redis.dump(key)) for key in clean_redis.scan_iter()})
            elif call["step"] == 3 and not forgotten.is_set():
                clean_redis.flushall()
                for key, value in past.items():
                    clean_redis.restore(key, 0, value)
                forgotten.set()
            return super().commit(**call)

    await bench.insert(bench.make_groups(6))
    await bench.train(client=Forgetful, steps=3)
    fresh = [line["fresh_group_ids"] for line in bench.log("groups.jsonl")]
    assert fresh == [["group-000"], ["group-002"], ["group-004"]]
    assert [line["step"] for line in bench.log()] == [1, 2, 3]
    table = await bench.table()
    assert (table.policy_version, table.fresh, table.replay, table.leases) == (3, 0, 3, 0)
