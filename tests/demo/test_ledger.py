"""The account of every group at the end of a run: what is lost, or trained twice, shows."""

import json
from pathlib import Path
from typing import Any

from processes import ServerProcess
from redis import Redis
from samples import effective

from groupreplay import Client
from groupreplay_demo.ledger import count_lost, count_trained_twice
from groupreplay_server.store.keys import TableKeys

NAMES: dict[str, Any] = {"run": "popo", "table": "rollouts"}


def log_of(folder: Path, *group_ids: str) -> Path:
    """Return a generator's log of acknowledged groups."""
    path = folder / "inserted.log"
    path.write_text("".join(f"{group_id}\n" for group_id in group_ids))
    return path


def fill_table(client: Client) -> None:
    """Insert three groups; one waits, one is leased, one was trained on."""
    client.create_table(**NAMES)
    for group in effective("a", "b", "c"):
        client.insert(group, **NAMES)
    client.next_batch(batch_size=1, lease_id="first", **NAMES)
    client.commit(lease_id="first", step=1, **NAMES)
    client.next_batch(batch_size=1, lease_id="second", **NAMES)


def test_groups_wherever_they_are_in_the_table_are_not_lost(sync_client: Client, tmp_path: Path) -> None:
    """Waiting, leased or in replay: the service can account for each."""
    fill_table(sync_client)
    assert count_lost(sync_client, **NAMES, inserted_log=log_of(tmp_path, "a", "b", "c")) == 0


def test_an_acknowledged_group_that_the_service_does_not_know_is_lost(sync_client: Client, tmp_path: Path) -> None:
    """Both because nobody knows it and because more were acknowledged than were inserted."""
    fill_table(sync_client)
    assert count_lost(sync_client, **NAMES, inserted_log=log_of(tmp_path, "a", "b", "c", "d")) > 0


def test_a_group_that_redis_forgot_is_lost(sync_client: Client, server_process: ServerProcess, tmp_path: Path) -> None:
    """Even where no log says that it was acknowledged: the counts of the table do not add up."""
    fill_table(sync_client)
    with Redis.from_url(server_process.redis_url) as connection:
        assert connection.zrem(TableKeys(**NAMES).key("fresh"), "c") == 1
    assert count_lost(sync_client, **NAMES, inserted_log=tmp_path / "no-log") > 0


def test_a_group_in_two_steps_as_fresh_is_trained_twice(tmp_path: Path) -> None:
    """A last line that is not complete is a step that did not happen."""
    log = tmp_path / "groups.jsonl"
    steps = [["a", "b"], ["c", "a"], ["d", "a"]]
    log.write_text(
        "".join(json.dumps({"fresh_group_ids": names}) + "\n" for names in steps) + '{"fresh_group_ids": ["d"'
    )
    assert count_trained_twice(log) == 1
