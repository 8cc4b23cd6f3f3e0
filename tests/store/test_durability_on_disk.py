"""Durability aof is acknowledged only where Redis has the change on disk, on every Redis and Valkey of this machine."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from insert_load import NAMES, make_table
from processes import redis_binaries, start_redis
from store_user import incoming

from groupreplay.errors import InvalidRequestError
from groupreplay.server_info import waits_truly
from groupreplay.table_config import Durability
from groupreplay.types import GroupState, InsertOutcome
from groupreplay_server.store.connection import open_redis
from groupreplay_server.store.redis_store import RedisStore

BINARIES = redis_binaries()


@contextmanager
def running(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """Kill it in the end."""
    try:
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("binary", BINARIES, ids=lambda path: Path(path).name)
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--appendonly", "no"), "set appendonly yes"),
        (("--appendonly", "yes", "--appendfsync", "everysec"), "set appendonly yes and appendfsync always"),
        (("--appendonly", "yes", "--appendfsync", "no"), "set appendonly yes and appendfsync always"),
    ],
    ids=["no file", "everysec", "no sync"],
)
async def test_an_ack_that_redis_cannot_keep_is_refused_with_what_to_set(
    binary: str, options: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    """Nothing is written then. Valkey has WAITAOF, but answers it before the sync."""
    with running(start_redis(tmp_path, *options, binary=binary)):
        async with open_redis(f"unix://{tmp_path / 'redis.sock'}") as redis:
            store = RedisStore(redis)
            await make_table(store)
            for _ in range(2):
                with pytest.raises(InvalidRequestError, match=said):
                    await store.insert_groups(*NAMES, [incoming("a")], Durability.AOF)
            assert await store.locate_groups(*NAMES, ["a"]) == [GroupState.UNKNOWN]


@pytest.mark.parametrize("binary", BINARIES, ids=lambda path: Path(path).name)
async def test_an_ack_of_redis_that_syncs_each_write_is_given(binary: str, tmp_path: Path) -> None:
    """And it is looked up each time: a Redis that is told to sync less acknowledges no more."""
    options = ("--appendonly", "yes", "--appendfsync", "always")
    with running(start_redis(tmp_path, *options, binary=binary)):
        async with open_redis(f"unix://{tmp_path / 'redis.sock'}") as redis:
            store = RedisStore(redis)
            await make_table(store)
            [result] = await store.insert_groups(*NAMES, [incoming("a")], Durability.AOF)
            assert result.outcome is InsertOutcome.INSERTED
            await redis.execute_command("CONFIG", "SET", "appendfsync", "everysec")
            with pytest.raises(InvalidRequestError, match="appendfsync everysec"):
                await store.insert_groups(*NAMES, [incoming("b")], Durability.AOF)


@pytest.mark.parametrize(
    ("server", "version", "waits"),
    [
        ("redis", "7.2.0", True),
        ("redis", "7.2.11", True),
        ("redis", "7.4.0", False),
        ("redis", "7.4.6", False),
        ("redis", "8.0.0", True),
        ("redis", "10.1.2", True),
        ("valkey", "7.2.5", False),
        ("valkey", "9.1.2", False),
    ],
)
def test_only_servers_that_wait_for_the_sync_are_believed(server: str, version: str, waits: bool) -> None:
    """Where it is not known that a version waits, appendfsync always is asked for."""
    assert waits_truly(server, version) is waits
