"""TLS, client certificates and ACL users, on each way of deploying Redis."""

import asyncio
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority, Certificate
from redis_groups import TcpRedis, redis_cluster, running, sentinel_group, server_knows_tls, tls_options
from store_user import incoming

from groupreplay.errors import StoreUnavailableError
from groupreplay.groups import now_ms
from groupreplay.table_config import TableConfig
from groupreplay_server.store.address import RedisAccess
from groupreplay_server.store.connection import open_redis
from groupreplay_server.store.records import LeasedBatch
from groupreplay_server.store.redis_store import RedisStore

PAGE = Path(__file__).resolve().parents[2] / "docs/howto/run-on-your-redis.md"
PASSWORD = "s3cret/with@signs"

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None or not server_knows_tls(),
    reason="needs openssl and a Redis with TLS, which the one from pip has not: apt install openssl redis-server",
)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who signs the certificates of this module."""
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def server_certificate(authority: Authority) -> Certificate:
    """What the servers show."""
    return authority.sign("redis")


@pytest.fixture(scope="module")
def access(authority: Authority) -> RedisAccess:
    """A user of the servers with a certificate."""
    own = authority.sign("groupreplay")
    return RedisAccess(
        username="groupreplay",
        password=PASSWORD,
        sentinel_username="groupreplay",
        sentinel_password=PASSWORD,
        ca_file=authority.ca_file,
        cert_file=own.cert_file,
        key_file=own.key_file,
    )


@pytest.fixture(params=["standalone", "sentinel", "cluster"])
def secured_url(
    request: pytest.FixtureRequest, tmp_path: Path, authority: Authority, server_certificate: Certificate
) -> Iterator[str]:
    """URL of servers that ask for a certificate and a user."""
    tls = tls_options(authority.ca_file, server_certificate)
    if request.param == "standalone":
        server = TcpRedis(tmp_path, *tls)
        with running([server]):
            allow(server)
            yield f"rediss://127.0.0.1:{server.tls_port}/0"
    elif request.param == "cluster":
        with redis_cluster(tmp_path, tls=tls) as nodes:
            for node in nodes:
                allow(node)
            yield f"rediss+cluster://127.0.0.1:{nodes[0].tls_port}"
    else:
        with sentinel_group(tmp_path, replicas=0, sentinels=1, tls=tls) as group:
            allow(group.servers[0])
            group.sentinels[0].ask("ACL", "SETUSER", "groupreplay", "on", f">{PASSWORD}", "+@all")
            yield f"rediss+sentinel://127.0.0.1:{group.sentinels[0].tls_port}/replay"


def allow(server: TcpRedis) -> None:
    """Make the user that the documentation shows."""
    found = re.search(r"^user groupreplay (.*)$", PAGE.read_text(), re.MULTILINE)
    assert found
    server.ask("ACL", "SETUSER", "groupreplay", *found[1].replace("PASSWORD", PASSWORD).split())


async def connections_are_closed() -> None:
    """Wait until the loop watches only itself: TLS takes a round trip to end, and redis-py does not wait for it."""
    loop: Any = asyncio.get_running_loop()
    async with asyncio.timeout(60):
        while len(loop._selector.get_map()) > 1:  # noqa: ASYNC110  nothing tells
            await asyncio.sleep(0.01)


async def test_the_service_works_over_tls_with_the_user_that_the_documentation_shows(
    secured_url: str, access: RedisAccess
) -> None:
    """Every operation of the store, with a certificate and no more rights than the page lists."""
    async with open_redis(secured_url, access=access) as redis:
        store = RedisStore(redis)
        await store.ping()
        await store.create_table("run", "train", TableConfig())
        await store.insert_groups("run", "train", [incoming(f"g{number}") for number in range(8)])
        batch = await take(store)
        assert len(await store.read_payloads("run", "train", batch.groups)) == 8
        await store.commit_lease("run", "train", lease_id="lease", step=1)
        await store.collect_garbage("run", "train")
        assert await store.list_tables() == [("run", "train")]
        for server in await store.redis_servers():
            assert server.says_all
            assert server.clock_ahead_ms is not None
            assert server.appendfsync
            assert server.certificate_ends_ms > now_ms()
    await connections_are_closed()


async def take(store: RedisStore) -> LeasedBatch:
    """Take all eight groups."""
    options: dict[str, Any] = {"lease_ms": 60_000, "holder": "test", "wait_ms": 0, "call_id": "call"}
    batch = await store.take_batch("run", "train", lease_id="lease", batch_size=8, **options)
    assert isinstance(batch, LeasedBatch)
    return batch


@pytest.mark.parametrize("secured_url", ["standalone"], indirect=True)
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"password": "guessed"}, "invalid username-password pair"),
        ({"username": "somebody"}, "invalid username-password pair"),
        ({"cert_file": None, "key_file": None}, "Redis did not take the call"),
        ({"ca_file": None}, "certificate verify failed"),
    ],
)
async def test_a_wrong_login_is_an_error_without_the_password(
    secured_url: str, access: RedisAccess, wrong: dict[str, Any], said: str
) -> None:
    """Neither a wrong password nor a missing certificate gets in, and no message tells the right one."""
    async with open_redis(secured_url, access=replace(access, **wrong)) as redis:
        with pytest.raises(StoreUnavailableError, match=said) as raised:
            await RedisStore(redis).ping()
    assert PASSWORD not in str(raised.value)
    await connections_are_closed()
