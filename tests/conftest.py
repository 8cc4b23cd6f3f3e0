"""A real Redis and a real service for every test, and checks of what each test leaves behind."""

import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis
from hypothesis import settings
from invariants import check_invariants
from processes import ServerProcess, start_redis

from groupreplay import AsyncClient, Client
from groupreplay_server.app import RunningServer, running_server
from groupreplay_server.settings import ServerSettings

# The same examples on every run, so that a failure is somebody's change; a busy machine is no failure.
settings.register_profile("groupreplay", derandomize=True, deadline=None, database=None)
settings.load_profile("groupreplay")

# The background jobs of a shell ignore SIGINT, and so would what tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let whoever has time hold the store to its model, and throw things at the doors, for longer."""
    parser.addoption("--chart-values", type=Path, help="values with which tests/helm installs, as where images are")
    parser.addoption("--fuzz-examples", type=int, default=0, help="requests that each fuzzer makes up, chosen anew")
    parser.addoption("--helm-version", choices=("3", "4"), default="3", help="Helm that tests/helm uses")
    parser.addoption(
        "--other-images", default="", help="tag of images of another version, which tests/compose and tests/helm go to"
    )
    parser.addoption("--model-examples", type=int, default=0, help="tables that tests/model tries, chosen anew")
    parser.addoption("--pictures", type=Path, help="folder for pictures of the page that tests/ui/test_demo.py takes")


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a private Redis of the test session."""
    folder = tmp_path_factory.mktemp("redis")
    process = start_redis(folder)
    yield f"unix://{folder / 'redis.sock'}"
    process.terminate()
    process.wait()


@pytest.fixture
def clean_redis(redis_url: str) -> Iterator[redis.Redis]:
    """The session's Redis, empty; afterwards it must hold what the layout allows, and nothing else."""
    with redis.Redis.from_url(redis_url) as connection:
        connection.flushall()
        yield connection
        check_invariants(connection)


@pytest.fixture
async def server(clean_redis: redis.Redis, redis_url: str) -> AsyncIterator[RunningServer]:
    """A running service on the session's Redis, in this process."""
    settings = ServerSettings(grpc_listen="127.0.0.1:0", http_listen="127.0.0.1:0", redis_url=redis_url, drain_s=1.0)
    async with running_server(settings) as running:
        yield running


@pytest.fixture
async def client(server: RunningServer) -> AsyncIterator[AsyncClient]:
    """A client of the running service."""
    async with AsyncClient(server.grpc_address, timeout_s=10.0) as connected:
        yield connected


@pytest.fixture
def server_process(tmp_path: Path) -> Iterator[ServerProcess]:
    """A service with an embedded Redis in a process of its own."""
    process = ServerProcess(tmp_path)
    process.start()
    yield process
    process.terminate()


@pytest.fixture
def sync_client(server_process: ServerProcess) -> Iterator[Client]:
    """A plain client of the service process."""
    with Client(server_process.grpc_address, timeout_s=10.0) as connected:
        yield connected
