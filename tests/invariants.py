"""What must hold in Redis after anything that was done to it."""

import redis

from groupreplay_server.store.connection import text
from groupreplay_server.store.keys import PREFIX, RUNS, RunKeys, TableKeys, is_declared


def check_invariants(connection: redis.Redis) -> None:
    """Assert that every key is declared, counts add up, and index and payloads name each other."""
    keys = [text(key) for key in connection.scan_iter(count=1000)]
    undeclared = [key for key in keys if not is_declared(key)]
    assert not undeclared, f"keys that keys.py does not declare: {undeclared}"
    for run in (text(name) for name in connection.smembers(RUNS)):
        for table in (text(name) for name in connection.smembers(RunKeys(run).tables)):
            if connection.exists(TableKeys(run, table).key("config")):
                _check_table(connection, TableKeys(run, table), keys)


def _check_table(connection: redis.Redis, keys: TableKeys, all_keys: list[str]) -> None:
    counters = {text(name): int(value) for name, value in connection.hgetall(keys.key("counters")).items()}
    fresh = {text(group_id) for group_id in connection.zrange(keys.key("fresh"), 0, -1)}
    replay = {text(group_id) for group_id in connection.zrange(keys.key("recency"), 0, -1)}
    leased = {text(group_id) for group_id in connection.hkeys(keys.key("leased"))}
    gone = sum(value for name, value in counters.items() if name.startswith("gone_"))
    assert counters.get("inserted", 0) == len(fresh) + len(leased) + len(replay) + gone, (keys.topic, counters)
    assert len(fresh | replay | leased) == len(fresh) + len(replay) + len(leased), f"{keys.topic}: a group is twice"
    headers = {text(group_id) for group_id in connection.hkeys(keys.key("headers"))}
    pinned = {text(group_id) for group_id in connection.hkeys(keys.key("pins"))}
    assert headers == {text(group_id) for group_id in connection.hkeys(keys.key("facts"))}
    assert fresh | replay | leased <= headers <= fresh | replay | leased | pinned
    _check_payloads(connection, keys, all_keys, headers)


def _check_payloads(connection: redis.Redis, keys: TableKeys, all_keys: list[str], headers: set[str]) -> None:
    """Each payload belongs to a group of the index, or is on its way out."""
    prefix = f"{PREFIX}:payload:{keys.topic}/"
    garbage = {text(member) for member in connection.zrange(keys.key("garbage"), 0, -1)}
    for key in all_keys:
        if key.startswith(prefix):
            member = key.removeprefix(prefix)
            needed = member.partition("/")[0] in headers or member in garbage
            assert needed or not connection.exists(key), f"orphan {key}"  # the service removes some meanwhile
