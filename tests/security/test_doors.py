"""Each way a call can be wrong has a status of its own at each door, and one reason for all."""

from collections.abc import AsyncIterator

import grpc.aio
import httpx
import orjson
import pytest
from samples import make_group
from security.conftest import ADMIN_TOKEN, LogIn, make_token
from security.every_fault import CELLS, DOORS, FAULTS, KINDS, TABLE, Doors

from groupreplay import AsyncClient, MessageTooLargeError, Scope, TableConfig
from groupreplay.convert import group_to_wire
from groupreplay.groups import now_ms
from groupreplay.v1 import error_pb2, group_pb2
from groupreplay.v1 import replay_service_pb2 as pb
from groupreplay_server.api.rest.groups import group_to_json
from groupreplay_server.app import RunningServer


@pytest.fixture
async def doors(secured: RunningServer, admin: AsyncClient) -> AsyncIterator[Doors]:
    """Open all of them."""
    await admin.create_table(run="math", table="train", config=TableConfig(max_group_bytes=2048))
    await admin.insert(make_group("a"), run="math", table="train")
    await admin.next_batch(run="math", table="train", batch_size=1, lease_id="given-back", timeout_s=0.0)
    await admin.release(run="math", table="train", lease_id="given-back")
    tokens = {
        "producer": await make_token(admin, Scope.PRODUCER),
        "other run": await make_token(admin, Scope.ADMIN, run="other"),
        "expired": await make_token(admin, Scope.ADMIN, name="brief", ends_ms=now_ms() + 250),
        "revoked": await make_token(admin, Scope.ADMIN, name="revoked"),
    }
    await admin.revoke_token("revoked")
    async with (
        grpc.aio.insecure_channel(secured.grpc_address) as channel,
        httpx.AsyncClient(base_url=f"http://{secured.http_address}", timeout=30) as http,
    ):
        yield Doors(channel, http, tokens)


@pytest.mark.parametrize(("fault", "door"), CELLS)
async def test_each_fault_has_its_status_and_reason_at_each_door(doors: Doors, fault: str, door: str) -> None:
    """A caller can tell what to mend, whichever door it came to."""
    cell = FAULTS[fault][door]
    assert await cell.ask(doors) == cell.outcome


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("door", DOORS)
def test_each_kind_of_fault_is_tried_at_each_door(kind: str, door: str) -> None:
    """None is left out."""
    assert [fault for fault, of in CELLS if fault.startswith(kind) and of == door]


def test_a_fault_has_one_reason_whatever_the_door() -> None:
    """Status codes are the transport's; the reason is ours."""
    for fault, cells in FAULTS.items():
        assert len({cell.outcome[1] for cell in cells.values()}) == 1, fault


async def test_an_oversized_group_is_refused_by_its_result_at_both_doors(doors: Doors) -> None:
    """It does not hold up its neighbours, so the call itself succeeds."""
    header, payload = group_to_wire(make_group("big", prompt_text="x" * 4000))
    group = group_pb2.RolloutGroup(header=header, payload=payload)
    request = pb.InsertRequest(run="math", table="train", groups=[group]).SerializeToString()
    call = doors.channel.unary_unary("/groupreplay.v1.ReplayService/Insert")  # type: ignore[var-annotated]
    answer = await call(request, metadata=(("authorization", f"Bearer {ADMIN_TOKEN}"),))
    [result] = pb.InsertResponse.FromString(answer).results
    assert error_pb2.ErrorReason.Name(result.reason) == "GROUP_TOO_LARGE"
    content = orjson.dumps({"groups": [group_to_json(header, payload, as_base64=True)]})
    headers = {"authorization": f"Bearer {ADMIN_TOKEN}", "content-type": "application/json"}
    [told] = (await doors.http.post(f"{TABLE}/groups", content=content, headers=headers)).json()["results"]
    assert (told["outcome"], told["reason"]) == ("refused", "GROUP_TOO_LARGE")


async def test_headers_that_grpc_itself_refuses_come_out_of_the_client_with_what_to_do(log_in: LogIn) -> None:
    """Beyond what the service may read it cannot name a reason; the SDK does."""
    client = await log_in("x" * 70_000)
    with pytest.raises(MessageTooLargeError, match="send fewer or shorter headers: the token and the request id"):
        await client.list_tables()
