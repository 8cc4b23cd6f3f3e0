"""A real Chromium that looks at real services. `make test-ui` runs these tests."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import redis
from processes import ServerProcess
from ui.browser import ARGUMENTS, CHROMIUM, Look

from groupreplay import Client

# Other test runs have no Playwright, and cannot even import these modules.
collect_ignore_glob = [] if find_spec("playwright") else ["test_*.py"]

OpenLook = Callable[..., Look]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """The system's Chromium, without a window."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415  other test runs import this file too

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def service(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A service on the session's Redis."""
    process = ServerProcess(tmp_path_factory.mktemp("service"), redis_url)
    process.start()
    yield process
    assert process.terminate() == 0


@pytest.fixture
def client(clean_redis: redis.Redis, service: ServerProcess) -> Iterator[Client]:
    """A client of the service, which is empty."""
    with Client(service.grpc_address, timeout_s=20.0) as connected:
        yield connected


@pytest.fixture
def open_look(browser: Any) -> Iterator[OpenLook]:
    """Open pages; none of them may complain, or ask another host for anything."""
    looks: list[Look] = []

    def opened(address: str, path: str = "", **options: Any) -> Look:
        look = Look(browser, address, **options)
        looks.append(look)
        look.go(path)
        return look

    yield opened
    for look in looks:
        look.close()
    for look in looks:
        look.check()


@pytest.fixture
def look(open_look: OpenLook, service: ServerProcess) -> Callable[..., Look]:
    """Open pages of the service."""
    return lambda path="", **options: open_look(service.http_address, path, **options)
