"""A name for every call, which joins what caller, service and scripts log of it."""

import json
import logging
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import pytest
from processes import ServerProcess, wait_until

from groupreplay import AsyncClient, Client, UnknownTableError, request_id
from groupreplay.logs import configure_logging
from groupreplay.v1 import replay_service_pb2 as pb
from groupreplay.v1.replay_service_pb2_grpc import ReplayServiceStub
from groupreplay_server.app import RunningServer


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """What the service says."""
    return tmp_path / "service.log"


@pytest.fixture
def service(tmp_path: Path, log: Path) -> Iterator[ServerProcess]:
    """A service that logs all it does as JSON."""
    process = ServerProcess(tmp_path, "", "--log-format", "json", "--log-level", "debug", log=log)
    process.start()
    yield process
    process.terminate()


def lines_of(log: Path, name: str) -> list[dict[str, Any]]:
    """Return the lines of a call."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line for line in lines if line.get("request_id") == name]


def test_the_callers_name_is_in_the_lines_of_service_and_script(service: ServerProcess, log: Path) -> None:
    """Each line of the log is one JSON object, and says what the call was about."""
    with Client(service.grpc_address, timeout_s=10.0) as client:
        with request_id("step-12"):
            client.create_table(run="run", table="train")
        with request_id("step-13"), pytest.raises(UnknownTableError) as raised:
            client.describe_table(run="run", table="no")
    assert raised.value.request_id == "step-13"
    wait_until(lambda: bool(lines_of(log, "step-13")), "the call is logged")
    created = lines_of(log, "step-12")
    assert {line.get("script") for line in created} >= {"create_table"}
    [ended] = [line for line in created if line.get("method") == "CreateTable"]
    assert (ended["reason"], ended["run"], ended["table"]) == ("OK", "run", "train")
    [failed] = [line for line in lines_of(log, "step-13") if "method" in line]
    assert (failed["level"], failed["reason"]) == ("debug", "UNKNOWN_TABLE")
    assert "no" in failed["message"]


async def test_every_call_has_a_name_of_its_own(client: AsyncClient, server: RunningServer) -> None:
    """Two failed calls can be told apart, and the caller learns how they are called."""
    await client.create_table(run="run", table="train")
    names = set()
    for _ in range(2):
        with pytest.raises(UnknownTableError) as raised:
            await client.describe_table(run="run", table="no")
        names.add(raised.value.request_id)
    assert len(names) == 2
    assert all(len(name) == 32 for name in names)


async def test_a_name_that_could_forge_a_line_is_replaced(server: RunningServer) -> None:
    """What comes from a caller without the SDK is not trusted either."""
    async with grpc.aio.insecure_channel(server.grpc_address) as channel:
        call: Any = ReplayServiceStub(channel).DescribeTable(
            pb.DescribeTableRequest(run="run", table="no"), metadata=(("groupreplay-request-id", "a b"),)
        )
        with pytest.raises(grpc.RpcError):
            await call
        [answered] = [value for key, value in await call.trailing_metadata() if key == "groupreplay-request-id"]
    assert len(answered) == 32
    with pytest.raises(ValueError, match="not 1 to 128 visible ASCII"), request_id("a\nb"):
        pass


@pytest.mark.parametrize(("sent", "kept"), [("step-12", True), ("", False), ("a b", False), ("x" * 129, False)])
async def test_over_http_the_name_comes_back(server: RunningServer, sent: str, kept: bool) -> None:
    """X-Request-ID as everywhere: of good answers, errors and probes."""
    async with httpx.AsyncClient(base_url=f"http://{server.http_address}") as http:
        for path in ("/readyz", "/v1/runs/run/tables/no", "/nothing"):
            answer = await http.get(path, headers={"X-Request-ID": sent})
            assert (answer.headers["X-Request-ID"] == sent) is kept
            assert len(answer.headers.get_list("X-Request-ID")) == 1


def test_lines_for_people_and_for_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same message in both formats, with the name of the call, and a fault with its traceback."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    for chosen in ("text", "json"):
        said = StringIO()
        monkeypatch.setattr("sys.stderr", said)
        root.handlers.clear()
        configure_logging(chosen)
        with request_id("step-1"):
            try:
                raise KeyError("x")
            except KeyError:
                logging.getLogger("a.b").exception("it failed\nbadly", extra={"run": "r"})
        if chosen == "text":
            assert " ERROR a.b: it failed" in said.getvalue()
            assert "[step-1]" in said.getvalue()
        else:
            [line] = [json.loads(line) for line in said.getvalue().splitlines()]
            assert (line["level"], line["logger"], line["message"]) == ("error", "a.b", "it failed\nbadly")
            assert (line["request_id"], line["run"]) == ("step-1", "r")
            assert "KeyError" in line["exception"]
