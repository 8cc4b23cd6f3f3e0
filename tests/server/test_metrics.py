"""What Prometheus scrapes: complete, bounded, and cheap however many look."""

import asyncio
import re
from collections.abc import AsyncIterator
from importlib.resources import files
from typing import Any

import httpx
import pytest
import redis
from samples import effective, ineffective, make_group
from store_user import StoreUser, incoming

from groupreplay import AsyncClient, BatchNotReadyError, Policy, TableConfig
from groupreplay_server.api.metric_families import (
    CERTIFICATE,
    DEAD_FOR_S,
    FAMILIES,
    GONE,
    REFUSED,
    TABLE_FAMILIES,
    Kind,
)
from groupreplay_server.api.metrics import MAX_TASKS, OTHER
from groupreplay_server.app import RunningServer
from groupreplay_server.measuring import FRESH_FOR_S, Measurer
from groupreplay_server.store.connection import open_redis
from groupreplay_server.store.redis_store import RedisStore

NAMES: dict[str, Any] = {"run": "run", "table": "train"}
NOT_SHOWN = {"inserted"}  # the sum of effective and ineffective


async def scrape(server: RunningServer) -> dict[str, float]:
    """Return every sample of the page by its name and labels."""
    async with httpx.AsyncClient(base_url=f"http://{server.http_address}") as http:
        page = await http.get("/metrics")
    lines = [line for line in page.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_every_counter_of_the_scripts_is_in_a_family() -> None:
    """What a table counts can be watched, and shows zero before the first, so that its increase is seen."""
    shown = {f"gone_{reason}" for reason in GONE} | {f"refused_{reason}" for reason in REFUSED}
    for family in TABLE_FAMILIES:
        for cell in getattr(family.read, "__closure__", None) or ():
            if isinstance(cell.cell_contents, dict):
                shown |= set(cell.cell_contents.values())
    written: set[str] = set()
    for script in files("groupreplay_server.store").joinpath("lua").iterdir():
        text = script.read_text()
        written |= set(re.findall(r"count\('(\w+[a-z])'", text))
        written |= {f"gone_{reason}" for reason in re.findall(r"discard\([^)]*'(\w+)'\)", text)}
    assert len(written) > 15
    assert written - NOT_SHOWN <= shown


def test_names_carry_their_units() -> None:
    """Seconds, bytes, groups, versions ...: nobody has to guess."""
    units = (
        "seconds", "bytes", "groups", "versions", "version", "leases", "calls", "slots", "batches", "producers", "keys",
        "replicas", "running", "info", "up", "ok", "only", "out", "rewinds",
    )  # fmt: skip
    for family in FAMILIES:
        assert family.name.rpartition("_")[2] in units, family.name
        assert family.shown.endswith("_total") == (family.kind is Kind.COUNTER)
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


async def test_the_page_has_every_family_that_the_reference_lists(server: RunningServer, client: AsyncClient) -> None:
    """Once there is a table with a history, nothing is missing from the page."""
    await client.create_table(**NAMES, config=TableConfig(max_staleness=0))
    for group in [*effective("a", task="maths"), *ineffective("b", task="maths")]:
        await client.insert(group, **NAMES)
    batch = await client.next_batch(**NAMES, batch_size=2, timeout_s=0.0)
    await client.commit(**NAMES, lease_id=batch.lease_id, step=1)
    await client.insert(make_group("c", task="maths", rewards=(0, 1)), **NAMES)
    await client.advance_policy(Policy(run="run", version=1, weights_uri="file:///w"))
    with pytest.raises(BatchNotReadyError):
        await client.next_batch(**NAMES, batch_size=1, timeout_s=0.0)  # drops c, which is stale now
    found = await scrape(server)
    names = {re.sub(r"_(bucket|count|sum|total|created)$", "", name.partition("{")[0]) for name in found}
    for family in set(FAMILIES) - {CERTIFICATE}:  # tests/security/test_tls.py has one
        assert re.sub("_total$", "", family.shown) in names, family.name
    assert found['groupreplay_task_inserted_groups_total{effective="true",run="run",table="train",task="maths"}'] == 2
    assert (
        found['groupreplay_delivered_staleness_versions_bucket{le="0.0",run="run",source="fresh",table="train"}'] == 1
    )
    assert found['groupreplay_table_gone_groups_total{reason="ineffective",run="run",table="train"}'] == 1
    assert found['groupreplay_policy_version{run="run"}'] == 1
    assert found["groupreplay_redis_up"] == 1
    assert found['groupreplay_payload_reads_groups_total{source="cache"}'] == 1
    assert found['groupreplay_payload_reads_groups_total{source="redis"}'] == 0


async def test_tasks_beyond_the_limit_are_one(server: RunningServer, client: AsyncClient) -> None:
    """A producer that names a task for every problem cannot fill Prometheus; no group is lost from the sum."""
    await client.create_table(**NAMES)
    for number in range(MAX_TASKS + 5):
        await client.insert(make_group(f"g{number}", task=f"task-{number}"), **NAMES)
    found = {name: value for name, value in (await scrape(server)).items() if "task_inserted_groups_total" in name}
    assert sum(found.values()) == MAX_TASKS + 5
    assert len(found) == MAX_TASKS + 1
    assert [value for name, value in found.items() if f'task="{OTHER}"' in name] == [5]


async def test_producers_are_counted_by_health(server: RunningServer, client: AsyncClient) -> None:
    """One that beat just now is alive."""
    await client.create_table(**NAMES)
    await client.beat(**NAMES, producer_id="p", interval_s=10.0, status="works")
    found = await scrape(server)
    counts = {
        health: found[f'groupreplay_table_producers{{health="{health}",run="run",table="train"}}']
        for health in ("alive", "slow", "dead")
    }
    assert counts == {"alive": 1, "slow": 0, "dead": 0}


@pytest.fixture
async def store(clean_redis: redis.Redis, redis_url: str) -> AsyncIterator[StoreUser]:
    """A store with one table."""
    async with open_redis(redis_url) as connection:
        user = StoreUser(RedisStore(connection), connection, clean_redis)
        await user.make_table(TableConfig())
        yield user


async def test_many_scrapes_within_a_second_read_once(store: StoreUser) -> None:
    """Several Prometheus servers cost Redis what one costs."""
    now = 100.0
    measurer = Measurer(store.store, clock=lambda: now)
    first = await measurer.read()
    await store.insert_ids("a")
    assert await measurer.read() is first
    now += FRESH_FOR_S
    assert [reading.table.fresh for reading in (await measurer.read()).tables] == [1]


async def test_beyond_the_limit_the_tables_that_were_used_last_are_shown(store: StoreUser) -> None:
    """Old runs that nobody removed do not hide the new one, and their number is said."""
    for name in ("a-old", "b-new", "c-unused"):
        await store.store.create_table("run", name, TableConfig())
    await store.store.insert_groups("run", "a-old", [incoming("x")])
    store.redis.hset("gr1:{run}:a-old:state", "last_insert_ms", 1)
    await store.store.insert_groups("run", "b-new", [incoming("y")])
    reading = await Measurer(store.store, max_tables=2).read()
    assert [it.table.table for it in reading.tables] == ["a-old", "b-new"]
    assert reading.left_out == 2


async def test_the_producers_of_a_table_are_dead_for_an_hour_and_then_forgotten(store: StoreUser) -> None:
    """A fleet that was scaled down alarms nobody for ever."""
    await store.store.note_beat("run", "train", producer_id="p", interval_s=1.0, status="")
    [reading] = (await Measurer(store.store).read()).tables
    family = next(family for family in TABLE_FAMILIES if family.name == "table_producers")
    seen_ms = reading.producers[0].last_seen_ms

    def counts(after_s: float) -> dict[str, float]:
        return {labels[0]: value for labels, value in family.read(reading, seen_ms + round(after_s * 1000))}

    assert counts(1) == {"alive": 1, "slow": 0, "dead": 0}
    assert counts(10) == {"alive": 0, "slow": 0, "dead": 1}
    assert counts(DEAD_FOR_S + 1) == {"alive": 0, "slow": 0, "dead": 0}


@pytest.mark.parametrize(
    ("path", "media_type", "method"),
    [
        ("groups/stream", "application/x-ndjson", "InsertStream"),
        ("groups/read", "application/json", "GetGroups"),
        ("groups/locate", "application/json", "LocateGroups"),
    ],
)
async def test_a_body_that_does_not_come_in_time_is_counted_as_late(
    server: RunningServer, client: AsyncClient, path: str, media_type: str, method: str
) -> None:
    """By the reason that its sender is told, not as a caller who went away."""
    await client.create_table(**NAMES)
    host, _, port = server.http_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /v1/runs/run/tables/train/{path}?timeout_s=0.1 HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n"
    writer.write(f"{head}Content-Type: {media_type}\r\n\r\n".encode())
    async with asyncio.timeout(20):
        answer = await reader.read()
    writer.close()
    assert b" 504 " in answer.splitlines()[0]
    assert b'"DEADLINE_EXCEEDED"' in answer
    found = await scrape(server)
    ends = {name: value for name, value in found.items() if name.startswith("groupreplay_call_seconds_count")}
    assert [value for name, value in ends.items() if f'method="{method}"' in name] == [1]
    assert ends[f'groupreplay_call_seconds_count{{method="{method}",reason="DEADLINE_EXCEEDED"}}'] == 1
