"""Snapshots of tables, and new tables made of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from samples import effective, ids, ineffective, make_group, same
from table_user import MakeTable, TableUser

from groupreplay import (
    Fill,
    FuturePolicyVersionError,
    GroupFeedback,
    GroupState,
    InvalidRequestError,
    PrioritySource,
    QuotaExceededError,
    RateLimit,
    Remover,
    RolloutGroup,
    Sampler,
    SnapshotFile,
    SnapshotFileError,
    StalenessRule,
    Table,
    TableExistsError,
    UnknownRunError,
    UnknownTableError,
)

EVERYTHING: dict[str, Any] = {
    "max_staleness": 7, "max_times_sampled": 9, "min_reward_std": 1e-5, "max_group_bytes": 2**25, "ahead_groups": 3,
    "priority": PrioritySource.REWARD_VARIANCE, "alpha": 0.5, "recency_decay": 0.9, "use_decay": 0.8, "kl_decay": 0.1,
    "ess_alpha": 0.2, "importance_beta": 0.7, "max_kl": 5.0, "staleness_rule": StalenessRule.WITHHOLD,
    "capacity_bytes": 2**30, "ttl_s": 1e6, "groups_per_version": 100, "keep_ineffective_payload": True,
}  # fmt: skip


async def keep(table: TableUser, path: Path) -> Table:
    """Take a snapshot of a table."""
    return await table.client.snapshot(path=path / "table.snapshot", **table.names)


async def bring_back(table: TableUser, path: Path, name: str = "copy", run: str | None = None) -> TableUser:
    """Restore it under another name."""
    restored = await table.client.restore(path / "table.snapshot", run=run, table=name)
    assert (restored.run, restored.table) == (run or table.run, name)
    return TableUser(table.client, table.redis, restored.run, name)


async def used_table(make_table: MakeTable, **config: Any) -> TableUser:
    """Return a table with fresh, leased and replay groups, feedback, evictions and several policy versions."""
    table = await make_table(**{"replay_capacity": 6} | config)
    for version in range(3):
        await table.insert(*effective(*(f"v{version}-{number}" for number in range(3)), version=version, task="sums"))
        await table.insert(*ineffective(f"v{version}-x", version=version))
        batch = await table.take(4)
        feedback = [
            GroupFeedback(group_id=name, kl=0.25 * place, ess=1 / (place + 1), priority=None if place else 2.5)
            for place, name in enumerate(ids(batch))
        ]
        await table.client.commit(lease_id=batch.lease_id, step=version, feedback=feedback, **table.names)
        await table.advance(version + 1)
    await table.insert(*effective("f1", "f2", "f3", "f4", version=2))
    await table.take(2)  # f1 and f2, under a lease from now on
    return table


def _comparable(table: Table) -> Table:
    """Return a table's state as far as a restore keeps it: leased groups are fresh."""
    return replace(table, run="", table="", fresh=table.fresh + table.leased, leased=0, leases=0, fresh_effective=0)


def index(table: TableUser) -> dict[str, Any]:
    """Return the keys of a table that its groups and their order are in."""
    found: dict[str, Any] = {}
    for name in ("fresh", "recency", "arrival", "priority", "divergence"):
        found[name] = table.redis.zrange(table.key(name), 0, -1, withscores=True)
    for name in ("headers", "marks", "uses", "returns", "weights"):
        found[name] = {key: value for key, value in table.redis.hgetall(table.key(name)).items() if value != b"0"}
    sums = {name: float(value) for name, value in table.redis.hgetall(table.key("sums")).items()}
    return found | {"sums": {name: round(value, 9) for name, value in sums.items()}}


@pytest.mark.parametrize("sampler", Sampler)
async def test_a_restored_table_is_the_one_that_was_kept(
    make_table: MakeTable, tmp_path: Path, sampler: Sampler
) -> None:
    """Configuration, places, orders, priorities, uses and counts; what was leased is fresh again, at its place."""
    remover = {Sampler.MAX_PRIORITY: Remover.LOWEST_PRIORITY, Sampler.LIFO: Remover.FIFO}
    table = await used_table(
        make_table, sampler=sampler, remover=remover.get(sampler, Remover.MOST_STALE), **EVERYTHING
    )
    kept = await keep(table, tmp_path)
    assert kept == await table.describe()
    copy = await bring_back(table, tmp_path)
    assert _comparable(await copy.describe()) == replace(_comparable(kept), fresh_effective=0)
    assert (await copy.describe()).fresh_effective == 4
    await table.client.release(lease_id=await only_lease(table), **table.names)
    assert index(copy) == index(table)
    assert await copy.locate("f1", "f2", "f3", "f4") == [GroupState.FRESH] * 4
    assert ids(await copy.take(4)) == ids(await table.take(4)) == ["f1", "f2", "f3", "f4"]


async def only_lease(table: TableUser) -> str:
    """Return the id of a table's live lease."""
    [lease_id] = cast(list[bytes], table.redis.zrange(table.key("leases"), 0, -1))
    return lease_id.decode()


async def test_a_new_run_takes_the_policy_clock_of_the_snapshot(make_table: MakeTable, tmp_path: Path) -> None:
    """Version, weights and label; and the table goes on as the old one would have."""
    table = await used_table(make_table)
    await keep(table, tmp_path)
    copy = await bring_back(table, tmp_path, "train", f"{table.run}-again")
    policy = await copy.client.get_policy(run=copy.run)
    assert replace(policy, run=table.run) == await table.client.get_policy(run=table.run)
    assert await copy.client.resolve_policy(run=copy.run, label="3") == 3
    await copy.insert(*effective("later", version=3))
    assert await copy.train(5, step=10) == ["f1", "f2", "f3", "f4", "later"]
    await copy.advance(4)
    listed = await copy.client.list_tables(run=copy.run)
    assert listed == [await copy.describe()]


async def test_uses_and_redeliveries_of_live_leases_are_taken_back(make_table: MakeTable, tmp_path: Path) -> None:
    """As if every lease had ended unused at the snapshot's moment."""
    table = await make_table()
    await table.insert(*effective("r"))
    await table.train(1, step=1)
    await table.insert(*effective("a"), *ineffective("x"))
    assert ids(await table.take(2)) == ["a", "r"]
    await keep(table, tmp_path)
    copy = await bring_back(table, tmp_path)
    batch = await copy.take(2)
    found = [(each.group.group_id, each.times_sampled, each.redeliveries) for each in batch.groups]
    assert found == [("a", 1, 1), ("r", 2, 0)]


async def test_a_table_that_only_samples_keeps_its_rate_limit(make_table: MakeTable, tmp_path: Path) -> None:
    """Samples that were committed count on; those of a live lease do not."""
    table = await make_table(
        fill=Fill.SAMPLE, sampler=Sampler.FIFO, rate_limit=RateLimit(samples_per_insert=1, min_diff=0, max_diff=10)
    )
    await table.insert(*effective("a", "b", "c"))
    first = await table.client.sample(batch_size=1, timeout_s=0.0, **table.names)
    await table.client.commit(lease_id=first.lease_id, step=1, **table.names)
    await table.client.sample(batch_size=2, timeout_s=0.0, **table.names)
    await keep(table, tmp_path)
    copy = await bring_back(table, tmp_path)
    assert len((await copy.client.sample(batch_size=9, timeout_s=0.0, **copy.names)).groups) == 2


def names_in(folder: Path) -> list[str]:
    """Return the names of the files in a folder."""
    return sorted(path.name for path in folder.iterdir())


def rich_groups() -> list[RolloutGroup]:
    """Return groups with all there is in a payload, and one of 9 MB between small ones."""
    pixels = np.arange(9_000_000, dtype=np.uint8).reshape(1000, 100, 90)
    return [
        make_group("before", prompt_text="?", response_texts=("a", "ß"), tags={"b": "1", "a": "2"}, priority=3.0),
        make_group("images", columns={"pixel_values": pixels}),
        make_group("after", loss_mask=np.arange(6) % 2 > 0, producer_id="node-1"),
    ]


async def test_payloads_and_headers_come_back_byte_for_byte(make_table: MakeTable, tmp_path: Path) -> None:
    """Also those of many messages."""
    table = await make_table()
    groups = rich_groups()
    await table.insert_many([*groups, *ineffective("x")])
    kept = await keep(table, tmp_path)
    assert kept.payload_bytes > 9_000_000
    copy = await bring_back(table, tmp_path)
    assert table.redis.hgetall(copy.key("headers")) == table.redis.hgetall(table.key("headers"))
    batch = await copy.take(4)
    assert ids(batch) == ["before", "images", "after"]
    for group, delivered in zip(groups, batch.groups, strict=True):
        same(group, delivered.group)
    in_file = {each.header.group_id: each for each in SnapshotFile(tmp_path / "table.snapshot").groups()}
    assert in_file["x"].payload == b""
    for group in groups:
        same(in_file[group.group_id].group, group)


async def test_progress_is_told_in_payload_bytes(make_table: MakeTable, tmp_path: Path) -> None:
    """From the first part to the last, on both ways."""
    table = await make_table()
    await table.insert_many(rich_groups())
    total = (await table.describe()).payload_bytes
    seen: list[tuple[int, int]] = []
    path = tmp_path / "t"
    await table.client.snapshot(path=path, progress=lambda *counts: seen.append(counts), **table.names)
    assert (seen[0], seen[-1]) == ((0, total), (total, total))
    assert seen == sorted(seen)
    seen.clear()
    await table.client.restore(path, table="copy", progress=lambda *counts: seen.append(counts))
    assert (seen[0], seen[-1]) == ((0, total), (total, total))


async def test_a_snapshot_replaces_the_file_when_it_is_whole(make_table: MakeTable, tmp_path: Path) -> None:
    """A call that fails leaves what was there, and nothing beside it."""
    table = await make_table()
    await table.insert(*effective("a"))
    await keep(table, tmp_path)
    before = (tmp_path / "table.snapshot").read_bytes()
    with pytest.raises(UnknownTableError, match=r"there is no table .*/other; create it first"):
        await table.client.snapshot(run=table.run, table="other", path=tmp_path / "table.snapshot")
    with pytest.raises(UnknownRunError):
        await table.client.snapshot(run="other", table="other", path=tmp_path / "new.snapshot")
    assert names_in(tmp_path) == ["table.snapshot"]
    assert (tmp_path / "table.snapshot").read_bytes() == before
    await table.insert(*effective("b"))
    await keep(table, tmp_path)
    assert SnapshotFile(tmp_path / "table.snapshot").table.fresh == 2


async def test_a_folder_that_is_not_there_is_an_error_of_the_file_system(make_table: MakeTable, tmp_path: Path) -> None:
    """Not one of the service."""
    table = await make_table()
    with pytest.raises(FileNotFoundError):
        await table.client.snapshot(path=tmp_path / "no" / "where", **table.names)
    with pytest.raises(FileNotFoundError):
        await table.client.restore(tmp_path / "nowhere")


async def test_a_table_that_is_there_is_not_touched(make_table: MakeTable, tmp_path: Path) -> None:
    """Restore makes new tables only."""
    table = await used_table(make_table)
    kept = await keep(table, tmp_path)
    before = {key: table.redis.dump(key) for key in table.redis.scan_iter()}
    with pytest.raises(TableExistsError, match=rf"table {table.run}/train exists.*under another name"):
        await table.client.restore(tmp_path / "table.snapshot")
    assert {key: table.redis.dump(key) for key in table.redis.scan_iter()} == before
    assert await table.describe() == kept


async def test_a_clock_below_a_group_refuses_the_table(make_table: MakeTable, tmp_path: Path) -> None:
    """A group of the future would never be stale; nothing of the table is left."""
    table = await used_table(make_table)
    await keep(table, tmp_path)
    await table.client.create_table(run=f"{table.run}-b", table="other")
    keys = set(table.redis.scan_iter())
    with pytest.raises(
        FuturePolicyVersionError, match=r"stands at policy version 0, and the snapshot .* version 2; res"
    ):
        await bring_back(table, tmp_path, run=f"{table.run}-b")
    assert set(table.redis.scan_iter()) == keys


async def test_a_clock_beyond_the_snapshot_makes_groups_older(make_table: MakeTable, tmp_path: Path) -> None:
    """Staleness counts from the run's own clock."""
    table = await make_table()
    await table.insert(*effective("a"))
    await keep(table, tmp_path)
    await table.advance(4)
    copy = await bring_back(table, tmp_path)
    assert [each.staleness for each in (await copy.take(1)).groups] == [4]


async def test_a_restore_counts_against_the_quota(make_table: MakeTable, tmp_path: Path) -> None:
    """Of groups and bytes; and what it holds is what the quota shows."""
    table = await make_table()
    await table.insert(*effective("a", "b"))
    kept = await keep(table, tmp_path)
    await table.client.set_quota(run=table.run, max_groups=3)
    with pytest.raises(QuotaExceededError, match=r"the 2 groups .* would exceed the quota .*max_groups 3"):
        await table.client.restore(tmp_path / "table.snapshot", table="copy")
    await table.client.set_quota(run=table.run, max_groups=4)
    await bring_back(table, tmp_path)
    quota = await table.client.get_quota(run=table.run)
    assert (quota.groups, quota.bytes) == (4, 2 * kept.payload_bytes)


async def test_the_age_of_groups_stands_still_in_the_file(make_table: MakeTable, tmp_path: Path) -> None:
    """A table with a ttl is as full after a restore as it was at the snapshot."""
    table = await make_table(ttl_s=3600.0)
    await table.insert(*effective("a"))
    await keep(table, tmp_path)
    path = tmp_path / "table.snapshot"
    make_older(path, 7_200_000)
    copy = await bring_back(table, tmp_path)
    assert (await copy.describe()).fresh == 1


def make_older(path: Path, by_ms: int) -> None:
    """Rewrite a snapshot as if it had been taken earlier."""
    from groupreplay.snapshot_file import SnapshotWriter  # noqa: PLC0415  beside its use

    parts = list(SnapshotFile(path).parts())
    with SnapshotWriter(path) as writer:
        for part in parts:
            if part.HasField("header"):
                part.header.taken_at_ms -= by_ms
            for group in part.groups:
                group.entry.inserted_ms -= by_ms
            writer.add(part)


async def test_an_empty_table_can_be_kept(make_table: MakeTable, tmp_path: Path) -> None:
    """Its configuration and its name are all there is."""
    table = await make_table(replay_capacity=5)
    kept = await keep(table, tmp_path)
    copy = await bring_back(table, tmp_path)
    assert _comparable(await copy.describe()) == _comparable(kept)


@pytest.mark.parametrize("client_kind", ["async"])
async def test_a_table_of_ten_thousand_groups_passes(make_table: MakeTable, tmp_path: Path) -> None:
    """Pages of the scripts and of the messages meet without gap or overlap."""
    table = await make_table(fresh_capacity=20_000, sampler="prioritized", replay_capacity=20_000)
    names = [f"g{number:05}" for number in range(10_000)]
    await table.insert_many(effective(*names), timeout_s=60.0)
    await table.train(5000, step=1)
    await keep(table, tmp_path)
    copy = await bring_back(table, tmp_path)
    state = await copy.describe()
    assert (state.fresh, state.replay) == (5000, 5000)
    assert index(copy) == index(table)


async def test_snapshot_files_that_are_not_whole_are_refused(make_table: MakeTable, tmp_path: Path) -> None:
    """Cut at any place, changed in any place, or something else altogether: nothing is restored."""
    table = await make_table()
    await table.insert(*effective("a", "b"))
    await keep(table, tmp_path)
    good, bad = (tmp_path / "table.snapshot").read_bytes(), tmp_path / "bad.snapshot"
    keys = set(table.redis.scan_iter())
    for cut in (*range(0, len(good), 37), len(good) - 1):
        bad.write_bytes(good[:cut])
        with pytest.raises(SnapshotFileError, match=r"not a snapshot|truncated"):
            SnapshotFile(bad)
    for place in range(0, len(good), 11):
        changed = bytearray(good)
        changed[place] ^= 0x41
        bad.write_bytes(changed)
        with pytest.raises(SnapshotFileError):
            SnapshotFile(bad)
    foreign = {
        b"PAR1 and so on": "bad.snapshot is not a snapshot: it begins with b'PAR1 and', not b'GRSNAP",
        good[:7] + b"\x02" + good[8:]: "has version 2 of the snapshot format, this groupreplay reads 1; upgrade it",
        good + b"\x00": "bad.snapshot cannot be used as a snapshot: .*; take the snapshot, or copy it, again",
    }
    for content, message in foreign.items():
        bad.write_bytes(content)
        with pytest.raises(SnapshotFileError, match=message):
            await table.client.restore(bad, table="copy")
    assert set(table.redis.scan_iter()) == keys


@pytest.mark.parametrize("names", [{"run": "a/b"}, {"table": "a b"}])
async def test_names_that_no_table_can_have_are_refused(
    make_table: MakeTable, tmp_path: Path, names: dict[str, Any]
) -> None:
    """As when a table is created."""
    table = await make_table()
    await keep(table, tmp_path)
    with pytest.raises(InvalidRequestError, match="is not 1 to 128 characters"):
        await table.client.restore(tmp_path / "table.snapshot", **names)
