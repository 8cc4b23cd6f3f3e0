"""Whatever bytes come, the service answers, goes on, and does not grow."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import redis
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st
from processes import ServerProcess
from samples import make_group
from security.any_message import RUN, TABLE, messages
from security.every_call import REASON_METADATA, RPCS
from security.fuzzing import fuzz

from groupreplay import Client
from groupreplay.errors import ERRORS
from groupreplay.v1 import replay_service_pb2 as pb
from groupreplay_server.api.operations import SERVICE

EXAMPLES = 60
CALL_S = 5.0
WATCH_S = 0.05
GROWTH_BYTES = 200 * 2**20
"""Of the process, over all examples of one RPC: what hostile lengths and shapes would exceed at once."""


@pytest.fixture(scope="session")
def fuzzed(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A service that the tests of this file throw bytes at."""
    folder = tmp_path_factory.mktemp("fuzzed")
    process = ServerProcess(folder, redis_url, log=folder / "service.log")
    process.start()
    yield process
    assert process.terminate() == 0
    assert "Traceback" not in (folder / "service.log").read_text()


@pytest.fixture(scope="session")
def channel(fuzzed: ServerProcess) -> Iterator[grpc.Channel]:
    """A bare channel to it."""
    with grpc.insecure_channel(fuzzed.grpc_address) as opened:
        yield opened


def answer_to(channel: grpc.Channel, rpc: str, requests: list[bytes]) -> tuple[grpc.StatusCode, str, str]:
    """Send messages to an RPC; return code, reason and words."""
    method = SERVICE.methods_by_name[rpc]
    kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    make: Callable[..., Any] = getattr(channel, kind)
    sent = iter(requests) if method.client_streaming else requests[0]
    try:
        answer = make(f"/{SERVICE.full_name}/{rpc}")(sent, timeout=WATCH_S if rpc == "WatchPolicy" else CALL_S)
        if method.server_streaming:
            for _ in answer:
                pass
    except grpc.RpcError as error:
        failed: Any = error
        reason = str(dict(failed.trailing_metadata() or ()).get(REASON_METADATA, ""))
        return failed.code(), reason, failed.details()
    return grpc.StatusCode.OK, "OK", ""


@pytest.mark.parametrize("rpc", RPCS)
def test_any_bytes_are_answered_with_a_reason(
    fuzzed: ServerProcess, channel: grpc.Channel, clean_redis: redis.Redis, rpc: str, request: pytest.FixtureRequest
) -> None:
    """No fault of the service, no hang, no growth; and Redis afterwards holds what it may (an autouse check)."""
    with Client(fuzzed.grpc_address, timeout_s=10) as client:
        client.create_table(run=RUN, table=TABLE)
        for name in (RUN, "a", "b"):  # some of them are named by what is thrown
            client.insert(make_group(name), run=RUN, table=TABLE)
    method = SERVICE.methods_by_name[rpc]
    request_class: type[Message] = getattr(pb, method.input_type.name)
    one = messages(request_class)
    before = resident_bytes(fuzzed)

    @fuzz(request, EXAMPLES)
    @given(st.lists(one, min_size=1, max_size=4 if method.client_streaming else 1))
    def throw(requests: list[bytes]) -> None:
        code, reason, words = answer_to(channel, rpc, requests)
        late = rpc == "WatchPolicy" and code is grpc.StatusCode.DEADLINE_EXCEEDED  # it watches until it is told
        assert late or reason == "OK" or reason in ERRORS, (code, words)
        assert reason not in {"INTERNAL", "PAYLOAD_LOST", "STORE_UNAVAILABLE"}, words

    throw()
    assert fuzzed.status() is None
    assert resident_bytes(fuzzed) - before < GROWTH_BYTES
    with Client(fuzzed.grpc_address, timeout_s=10) as client:
        client.list_tables()


def resident_bytes(process: ServerProcess) -> int:
    """Return the most memory that the process ever had."""
    status = Path(f"/proc/{process.pid}/status")
    if not status.exists():  # not Linux
        return 0
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
    assert found
    return int(found[1]) * 1024
