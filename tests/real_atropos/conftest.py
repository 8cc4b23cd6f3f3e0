"""Atropos' own server beside ours. `make test-atropos` runs these tests."""

import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest
import redis
from processes import ServerProcess, free_port, plain_environment, wait_until

# Other test runs have no atroposlib, and cannot even import these modules.
collect_ignore_glob = [] if find_spec("atroposlib") else ["test_*.py"]


@pytest.fixture
def own_server(clean_redis: redis.Redis, redis_url: str, tmp_path: Path) -> Iterator[ServerProcess]:
    """Our service in a process of its own, to be killed and started again."""
    process = ServerProcess(tmp_path, redis_url)
    process.start()
    yield process
    assert process.terminate() == 0


@pytest.fixture
def own_url(own_server: ServerProcess) -> str:
    """Server URL of a table of ours."""
    return f"http://{own_server.http_address}/atropos/run/train"


@pytest.fixture
def reference_url(tmp_path: Path) -> Iterator[str]:
    """Server URL of atroposlib's own server."""
    port = free_port()
    with (tmp_path / "reference.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "atroposlib.api.server:app", "--port", str(port)],
            stdout=log,
            stderr=log,
            env=plain_environment(),
        )
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, (tmp_path / "reference.log").read_text()
        try:
            return httpx.get(url).status_code == 200
        except httpx.TransportError:
            return False

    wait_until(answers, "atroposlib's server answers", timeout_s=60.0)
    yield url
    process.terminate()
    process.wait()
