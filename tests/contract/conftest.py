"""Each test of the contract runs over gRPC, by the asynchronous and by the plain client, and over REST."""

import uuid
from collections.abc import AsyncIterator, Iterator

import grpc
import grpc.aio
import pytest
import redis
from processes import ServerProcess
from table_user import MakeTable, connect

from groupreplay import AsyncClient
from groupreplay.v1.replay_service_pb2_grpc import ReplayServiceStub


@pytest.fixture(scope="session")
def usual_service(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A service on the session's Redis for all tests of the contract; each test has a run of its own in it."""
    yield from _running(ServerProcess(tmp_path_factory.mktemp("service"), redis_url))


@pytest.fixture(scope="session")
def uncached_service(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One that has no payload but what is in Redis."""
    yield from _running(ServerProcess(tmp_path_factory.mktemp("service"), redis_url, "--payload-cache-bytes", "0"))


def _running(process: ServerProcess) -> Iterator[ServerProcess]:
    process.start()
    yield process
    assert process.terminate() == 0


@pytest.fixture
def service(request: pytest.FixtureRequest) -> ServerProcess:
    """The service that the test runs over."""
    uncached = request.node.get_closest_marker("uncached")
    process: ServerProcess = request.getfixturevalue("uncached_service" if uncached else "usual_service")
    return process


@pytest.fixture
def run() -> str:
    """Name of the test's run."""
    return f"run-{uuid.uuid4().hex[:8]}"


@pytest.fixture(params=["async", "sync", "rest"])
def client_kind(request: pytest.FixtureRequest) -> str:
    """Which client the test runs over."""
    return str(request.param)


@pytest.fixture
async def client(client_kind: str, clean_redis: redis.Redis, service: ServerProcess) -> AsyncIterator[AsyncClient]:
    """A client of the running service."""
    address = service.http_address if client_kind == "rest" else service.grpc_address
    async with connect(client_kind, address) as connected:
        yield connected


@pytest.fixture
def make_table(client: AsyncClient, clean_redis: redis.Redis, run: str) -> MakeTable:
    """A factory of tables in the test's run."""
    return MakeTable(client, clean_redis, run)


@pytest.fixture
async def stub(service: ServerProcess) -> AsyncIterator[ReplayServiceStub]:
    """The generated stub, for what the SDK would not send."""
    async with grpc.aio.insecure_channel(service.grpc_address) as channel:
        yield ReplayServiceStub(channel)
