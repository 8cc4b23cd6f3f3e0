"""`make faults` in small: the same processes, a few kills, and an account that finds what is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
import redis
from faults.audit import Audit, Trained, Verdict, check_redis, trained_steps
from faults.campaign import Campaign, Plan, draw_faults
from faults.content import make_group
from faults.journal import Journal, Record, read_journal
from faults.report import table, write_summary
from processes import ServerProcess

from groupreplay import Client, RolloutGroup
from groupreplay_server.store.keys import TableKeys

NAMES: dict[str, Any] = {"run": "run", "table": "train"}


async def test_nothing_acknowledged_is_lost_and_nothing_is_committed_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six kills: two producers, a trainer, both services and Redis, while replies are lost."""
    plan = Plan(seed=0, kills=6, pace_s=1.0, learner=False)
    outcome = await Campaign(plan, tmp_path, lambda _: None).run()
    with capsys.disabled():
        print(f"\n{table(outcome)}")
    assert outcome.verdict.is_good, table(outcome)
    assert set(outcome.kills) == {"producer", "trainer", "redis", "server a", "server b"}
    assert sum(outcome.kills.values()) == 6
    assert outcome.acknowledged() > 200
    assert outcome.committed() > 10
    assert outcome.answers_lost > 0
    write_summary(outcome, tmp_path / "runs/summary.json")
    summary = json.loads((tmp_path / "runs/summary.json").read_text())
    assert (summary["kills"], summary["lost"], summary["committed_twice"], summary["seed"]) == (6, 0, 0, 0)


def test_a_seed_means_the_same_kills() -> None:
    """The same moments and victims, everybody about as often."""
    faults = draw_faults(Plan(seed=3, kills=50), 6)
    assert faults == draw_faults(Plan(seed=3, kills=50), 6)
    assert faults != draw_faults(Plan(seed=4, kills=50), 6)
    assert {sum(fault.victim == number for fault in faults) for number in range(6)} <= {8, 9}


def test_a_journal_drops_a_line_that_a_kill_cut_short(tmp_path: Path) -> None:
    """What was complete stays, and the next record begins a line of its own."""
    path = tmp_path / "journal"
    with Journal(path) as journal:
        journal.write("tried", group_ids=["a"])
    with path.open("a") as file:
        file.write('{"kind": "acknow')
    assert read_journal(path) == [{"kind": "tried", "group_ids": ["a"]}]
    with Journal(path) as journal:
        journal.write("acknowledged", group_ids=["a"])
    assert [record["kind"] for record in read_journal(path)] == ["tried", "acknowledged"]


@pytest.fixture
def groups(sync_client: Client) -> list[str]:
    """Four effective groups in a table."""
    sync_client.create_table(**NAMES)
    names = [name for name in (f"g{number}" for number in range(20)) if _make(name).rewards.std() > 0][:4]
    for name in names:
        sync_client.insert(_make(name), **NAMES)
    return names


def _make(name: str) -> RolloutGroup:
    return make_group(name, version=0, producer_id="", long=True)


def _acknowledged(*names: str) -> dict[str, list[Record]]:
    return {"producer": [{"kind": "acknowledged", "group_ids": list(names)}]}


def _commit(client: Client, step: int) -> Trained:
    batch = client.next_batch(batch_size=1, lease_id=f"lease-{step}", **NAMES)
    client.commit(lease_id=batch.lease_id, step=step, **NAMES)
    names = [item.group.group_id for item in batch.groups]
    return Trained(lease_id=batch.lease_id, fresh=names, all_ids=names)


def test_the_account_of_an_undisturbed_table_is_good(
    sync_client: Client, server_process: ServerProcess, groups: list[str]
) -> None:
    """Groups wherever they are, steps with their lineage, and Redis."""
    verdict = Verdict()
    audit = Audit(sync_client, verdict, **NAMES)
    audit.check_steps({step: _commit(sync_client, step) for step in (1, 2)})
    audit.check_groups(_acknowledged(*groups))
    audit.check_clock(0)
    with redis.Redis.from_url(server_process.redis_url) as connection:
        check_redis(connection, [TableKeys(**NAMES)], verdict)
    assert verdict.is_good


def test_the_account_finds_groups_that_are_lost_or_damaged(
    sync_client: Client, server_process: ServerProcess, groups: list[str]
) -> None:
    """One that nobody knows, one whose payload is another's, one that only the service knows."""
    with redis.Redis.from_url(server_process.redis_url) as connection:
        [damaged] = connection.keys(f"gr1:payload:run/train/{groups[0]}/*")
        [other] = connection.keys(f"gr1:payload:run/train/{groups[1]}/*")
        connection.copy(other, damaged, replace=True)
    server_process.kill()
    server_process.start()  # which has no payload in memory
    verdict = Verdict()
    Audit(sync_client, verdict, **NAMES).check_groups(_acknowledged(groups[0], groups[1], groups[2], "unheard-of"))
    assert sorted(verdict.lost) == sorted([groups[0], "unheard-of"])
    verdict = Verdict()
    Audit(sync_client, verdict, **NAMES).check_groups(_acknowledged(*groups[1:]))
    assert verdict.disagreements == ["run/train: the table counts 4 inserts, producers 3"]


def test_the_account_finds_what_was_committed_twice(sync_client: Client, groups: list[str]) -> None:
    """A group that was fresh in two steps, a step of two trainers, and a step that no trainer knows of."""
    verdict = Verdict()
    steps = {step: _commit(sync_client, step) for step in (1, 2)}
    again = Trained(lease_id="lease-2", fresh=steps[1].fresh, all_ids=steps[1].fresh)
    Audit(sync_client, verdict, **NAMES).check_steps({1: steps[1], 2: again})
    assert verdict.committed_twice == [groups[0]]
    assert len(verdict.disagreements) == 1

    verdict = Verdict()
    Audit(sync_client, verdict, **NAMES).check_steps({1: steps[1]})
    assert verdict.committed_twice == ["1 of 2 steps"]

    verdict = Verdict()
    trained = {"kind": "trained", "step": 1, "lease_id": "x", "fresh": [], "group_ids": [], "damaged": []}
    trained_steps({name: [trained, {**trained, "kind": "committed"}] for name in ("one", "other")}, verdict)
    assert verdict.committed_twice == ["step 1"]
