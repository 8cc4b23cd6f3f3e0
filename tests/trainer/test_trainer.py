"""A training step is a transaction: done and published, or as if it had never begun."""

import asyncio
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from trainer.bench import RUN, TABLE, Bench, Killed, Live, on_loop, same, until

from groupreplay import (
    Batch,
    Client,
    GroupState,
)
from groupreplay_trainer.failures import TrainingMemoryError, explaining_memory
from groupreplay_trainer.policy_model import TinyLMPolicy, TokenScores
from groupreplay_trainer.sections import MemorySettings
from groupreplay_trainer.service_calls import ServiceCalls, StarvedError


async def test_each_step_is_committed_logged_and_published(bench: Bench) -> None:
    """After n steps the policy clock stands at n, the announced weights load, and every group is accounted for."""
    await bench.insert(bench.make_groups(6))
    trainer = await bench.train(steps=3)
    assert (trainer.progress.step, await bench.version()) == (3, 3)
    assert not same(bench.weights(3), bench.weights(0))
    train, groups = bench.log(), bench.log("groups.jsonl")
    assert [line["step"] for line in train] == [line["step"] for line in groups] == [1, 2, 3]
    assert [line["lease_id"] for line in train] == [f"trainer-00000{step}" for step in (1, 2, 3)]
    assert [line["policy_version"] for line in train] == [0, 1, 2]
    assert [line["fresh_group_ids"] for line in groups] == [["group-000"], ["group-002"], ["group-004"]]
    assert [line["replay_group_ids"] for line in groups] == [[], ["group-000"], ["group-002"]]
    assert (train[0]["shortfall"], train[1]["refilled"], train[2]["total_groups"]) == (1, 1, 5)
    assert (train[0]["ess"], train[1]["effective_ratio"], train[1]["staleness_max"]) == (None, 0.5, 1)
    assert train[1]["ess"] > 0
    table = await bench.table()
    assert (table.fresh, table.leases, table.replay) == (0, 0, 3)
    names = [path.name for path in (bench.settings.run_dir / "checkpoints").iterdir()]
    assert sorted(names) == ["step-000002.safetensors", "step-000003.safetensors"]


async def test_a_batch_without_an_effective_group_is_a_step_that_changes_no_weight(bench: Bench) -> None:
    """The step is committed and the version advances all the same, so that version and step stay equal."""
    await bench.insert(bench.make_groups(4)[1::2])
    await bench.train(steps=1)
    assert await bench.version() == 1
    assert same(bench.weights(1), bench.weights(0))
    (line,) = bench.log()
    assert (line["groups"], line["fresh"], line["total_empty_steps"], line["loss"]) == (0, 2, 1, None)


async def test_a_restarted_trainer_continues_with_the_next_step(bench: Bench) -> None:
    """`steps` counts the whole run; one that is done does nothing more."""
    await bench.insert(bench.make_groups(8))
    await bench.train(steps=2)
    await bench.train(steps=4)
    trainer = await bench.train(steps=4)
    assert trainer.progress.counters.fresh == 8
    assert [line["step"] for line in bench.log()] == [1, 2, 3, 4]
    assert await bench.version() == 4


async def test_a_step_whose_groups_went_to_somebody_else_is_undone(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """Killed before a commit, and away until others took the groups: the trainer says so, and takes the step back."""

    class DiesBeforeCommit(Client):
        def commit(self, **call: Any) -> bool:
            if call["step"] == 2:
                raise Killed
            return super().commit(**call)

    await bench.insert(bench.make_groups(4))
    with pytest.raises(Killed):
        await bench.train(client=DiesBeforeCommit, lease_s=1.0)
    await bench.client.next_batch(run=RUN, table=TABLE, batch_size=2, lease_id="other", timeout_s=10.0)
    await bench.insert(bench.make_groups(8)[4:])
    await bench.train()
    assert "went to somebody else" in caplog.text
    assert "step 2 was undone" in caplog.text
    assert [line["fresh_group_ids"] for line in bench.log("groups.jsonl")] == [["group-000"], ["group-004"]]
    assert [line["step"] for line in bench.log()] == [1, 2]
    assert await bench.version() == 2
    assert await bench.client.release(run=RUN, table=TABLE, lease_id="other") == 2


async def test_a_lease_that_expired_unnoticed_is_committed_late(bench: Bench) -> None:
    """While nobody took the groups, the update stands: they were trained on once."""
    loop = asyncio.get_running_loop()

    async def lease_has_ended() -> bool:
        return (await bench.table()).leases == 0

    class Late(Client):
        def commit(self, **call: Any) -> bool:
            on_loop(loop, until(lease_has_ended))
            return super().commit(**call)

    await bench.insert(bench.make_groups(2))
    await bench.train(client=Late, steps=1, lease_s=1.0)
    assert await bench.version() == 1
    assert await bench.client.locate_groups(["group-000"], run=RUN, table=TABLE) == [GroupState.REPLAY]


async def test_a_lease_is_extended_while_its_step_is_trained(bench: Bench) -> None:
    """A step that takes longer than its lease keeps its groups."""
    loop = asyncio.get_running_loop()
    leases_at_commit: list[int] = []

    class Slow(TinyLMPolicy):
        def score(self, *arguments: Any, **named: Any) -> TokenScores:
            on_loop(loop, asyncio.sleep(0.55))
            return super().score(*arguments, **named)

    class Watched(Client):
        def commit(self, **call: Any) -> bool:
            leases_at_commit.append(on_loop(loop, bench.table()).leases)
            return super().commit(**call)

    await bench.insert(bench.make_groups(3)[::2])
    await bench.train(client=Watched, model=Slow, steps=1, lease_s=1.0)
    assert leases_at_commit == [1]


async def test_a_lease_that_is_nearly_over_is_extended_at_once(bench: Bench) -> None:
    """A restarted trainer may get the batch of a lease that its predecessor had held for long."""

    def next_batch_of_step_1(client: Client) -> Batch:
        return client.next_batch(run=RUN, table=TABLE, batch_size=2, lease_id="trainer-000001", lease_s=10.0)

    def take_over() -> tuple[int, int]:
        with Client(bench.settings.server) as client:
            before = next_batch_of_step_1(client).lease_deadline_ms
            calls = ServiceCalls(client, settings=replace(bench.settings, lease_s=100.0), stop=bench.stop)
            calls.next_batch(1)
            calls.keep_lease(1)
            return before, next_batch_of_step_1(client).lease_deadline_ms

    await bench.insert(bench.make_groups(2))
    before, after = await asyncio.to_thread(take_over)
    assert after - before > 80_000
    await bench.client.release(run=RUN, table=TABLE, lease_id="trainer-000001")


async def test_a_stopped_trainer_gives_its_unfinished_step_back(bench: Bench) -> None:
    """Told to stop in the middle of an update, it leaves no trace of the step, and its groups are fresh again."""

    class StoppedInside(TinyLMPolicy):
        def score(self, *arguments: Any, **named: Any) -> TokenScores:
            bench.stop.set()
            return super().score(*arguments, **named)

    await bench.insert(bench.make_groups(2))
    trainer = await bench.train(model=StoppedInside)
    assert trainer.progress.step == 0
    table = await bench.table()
    assert (table.fresh, table.leases) == (2, 0)
    bench.stop.clear()
    await bench.train(steps=1)
    (line,) = bench.log()
    assert line["redelivered_group_ids"] == ["group-000"]


async def test_a_step_that_is_on_disk_is_finished_before_stopping(bench: Bench) -> None:
    """A stop that comes after the checkpoint does not keep the step from being committed and published."""

    class StoppedAtCommit(Client):
        def commit(self, **call: Any) -> bool:
            bench.stop.set()
            return super().commit(**call)

    await bench.insert(bench.make_groups(4))
    trainer = await bench.train(client=StoppedAtCommit)
    assert trainer.progress.step == await bench.version() == 1


@pytest.mark.parametrize(("prompt", "response"), [(3, 20), (30, 2)])
async def test_a_group_longer_than_the_model_takes_is_named_and_given_back(
    bench: Bench, make_group: Any, prompt: int, response: int
) -> None:
    """Prompt or response: the trainer ends with words that help, and leaves no lease; what they say lets it go on."""
    endless = make_group("endless", rewards=(1.0, 0.0), lengths=(2, response), prompt=[5] * prompt).group
    groups = bench.make_groups(2)
    await bench.insert([*groups[:1], replace(endless, policy_version_min=0, policy_version_max=0)])
    said = rf"group endless has a rollout of {prompt + response} tokens \(prompt {prompt}\); the model takes 16\. Limit"
    with pytest.raises(ValueError, match=rf"{said} .*; delete_groups takes this one out of the table"):
        await bench.train()
    table = await bench.table()
    assert (table.fresh, table.leases, await bench.version()) == (2, 0, 0)
    await bench.client.delete_groups(["endless"], run=RUN, table=TABLE)
    await bench.insert(groups[1:])
    await bench.train(steps=1)
    assert await bench.version() == 1


async def test_a_trainer_that_waits_says_what_is_missing_and_stops_when_told(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """It repeats the service's diagnosis every report_s; a stop ends the wait and leaves no lease."""

    async def has_reported_twice() -> bool:
        return caplog.text.count("has waited") >= 2

    await bench.insert(bench.make_groups(1))
    with caplog.at_level(logging.INFO):
        training = asyncio.create_task(bench.train(report_s=0.2))
        await until(has_reported_twice)
        bench.stop.set()
        trainer = await training
    assert "needs 1 more fresh groups for a batch of 2; it has 1 fresh (1 effective)" in caplog.text
    assert "No producer was ever heard of in table run/rollouts: start a generator" in caplog.text
    assert "Nobody waits" not in caplog.text
    assert "stopped after step 0" in caplog.text
    assert trainer.progress.step == (await bench.table()).leases == 0


async def test_a_trainer_gives_up_waiting_after_the_time_that_it_is_given(bench: Bench) -> None:
    """With the service's diagnosis, and without a lease."""
    await bench.insert(bench.make_groups(1))
    with pytest.raises(StarvedError, match=r"waited .* max_wait_s is 0.2: .* needs 1 more fresh groups"):
        await bench.train(max_wait_s=0.2)
    table = await bench.table()
    assert (table.fresh, table.leases) == (1, 0)


async def test_a_trainer_that_starves_ends_with_status_1(bench: Bench, live: Live, tmp_path: Path) -> None:
    """So that whoever runs it can tell."""
    log = tmp_path / "log"
    log.touch()
    assert await live(bench.as_request(steps=1, max_wait_s=0.2, stderr=str(log))) == 1
    assert "the trainer gives up: step 1 has waited" in log.read_text()
    assert "start a generator with this run and table" in log.read_text()


class Greedy(TinyLMPolicy):
    """Asks the allocator for a pebibyte in each forward pass."""

    def score(self, *arguments: Any, **named: Any) -> TokenScores:
        torch.empty(2**50, dtype=torch.uint8)
        return super().score(*arguments, **named)


async def test_a_step_that_does_not_fit_into_memory_says_what_to_lower(bench: Bench) -> None:
    """The sizes of the batch and the settings as they are; the groups go back."""
    await bench.insert(bench.make_groups(3)[::2])
    expected = (
        r"a batch of 2 groups, 6 rollouts of up to 7 and together 34 tokens, does not fit into memory\. "
        r"Lower memory\.tokens_at_once \(8192\), turn on memory\.activation_checkpointing \(false\), lower "
        r"batch_size, .*DefaultCPUAllocator.* in a pass over 6 rollouts of up to 7 tokens"
    )
    with pytest.raises(TrainingMemoryError, match=expected):
        await bench.train(model=Greedy)
    table = await bench.table()
    assert (table.fresh, table.leases, await bench.version()) == (2, 0, 0)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_each_kind_of_too_little_memory_is_recognised(error: Exception, make_batch: Any, make_group: Any) -> None:
    """Of a GPU and of numpy; any other error stays what it is."""
    batch = make_batch([make_group()])
    with pytest.raises(TrainingMemoryError, match="3 rollouts of up to 7"), explaining_memory(batch, MemorySettings()):
        raise error
    with pytest.raises(RuntimeError, match="shapes differ"), explaining_memory(batch, MemorySettings()):
        raise RuntimeError("shapes differ")
