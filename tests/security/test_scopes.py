"""Who may call what: one table, held over every RPC and every route."""

import grpc
import grpc.aio
import httpx
import pytest
from security.conftest import ADMIN_TOKEN, make_token
from security.every_call import RPCS, over_grpc, over_rest, request_about

from groupreplay import AsyncClient, Scope
from groupreplay_server.access import RULES, Reach
from groupreplay_server.api.checked_call import subject_of
from groupreplay_server.api.operations import SERVICE
from groupreplay_server.api.rest.routes import ROUTES
from groupreplay_server.app import RunningServer

REFUSED = "PERMISSION_DENIED"


def test_every_rpc_has_a_rule_and_a_route_and_no_rule_is_for_nothing() -> None:
    """A new RPC without a rule would be open to all, or to nobody."""
    assert sorted(RULES) == RPCS
    assert sorted(route.rpc for route in ROUTES) == RPCS


@pytest.mark.parametrize("rpc", RPCS)
def test_a_call_about_a_run_names_it_where_the_check_looks(rpc: str) -> None:
    """Or a token of one run would reach all."""
    request = request_about(rpc, "math")
    has_run = "run" in subject_of(rpc, request).DESCRIPTOR.fields_by_name
    assert has_run == (RULES[rpc].reach is not Reach.SERVICE or rpc == "CreateToken")


@pytest.mark.parametrize("door", ["grpc", "rest"])
async def test_each_scope_may_make_its_calls_and_no_others(
    secured: RunningServer, admin: AsyncClient, door: str
) -> None:
    """Every RPC with every scope: those that the table does not allow are refused before anything happens."""
    await admin.create_table(run="math", table="train")
    tokens = {scope: await make_token(admin, scope) for scope in (Scope.PRODUCER, Scope.CONSUMER)}
    tokens[Scope.ADMIN] = ADMIN_TOKEN
    wrong = {}
    async with (
        grpc.aio.insecure_channel(secured.grpc_address) as channel,
        httpx.AsyncClient(base_url=f"http://{secured.http_address}") as http,
    ):
        for scope, token in tokens.items():
            for rpc in RPCS:
                if door == "grpc":
                    code, reason = await over_grpc(channel, rpc, request_about(rpc, "math").SerializeToString(), token)
                    refused = code is grpc.StatusCode.PERMISSION_DENIED
                else:
                    status, reason = await over_rest(http, rpc, "math", token)
                    refused = status == 403
                assert refused == (reason == REFUSED), (rpc, scope, reason)
                if refused == (scope is Scope.ADMIN or scope in RULES[rpc].scopes):
                    wrong[rpc, scope] = reason
    assert not wrong


@pytest.mark.parametrize("door", ["grpc", "rest"])
async def test_a_token_of_one_run_reaches_no_other(secured: RunningServer, admin: AsyncClient, door: str) -> None:
    """Not even one of scope admin; what is about the service as a whole is refused as well."""
    await admin.create_table(run="mine", table="train")
    await admin.create_table(run="theirs", table="train")
    token = await make_token(admin, Scope.ADMIN, run="mine")
    async with (
        grpc.aio.insecure_channel(secured.grpc_address) as channel,
        httpx.AsyncClient(base_url=f"http://{secured.http_address}") as http,
    ):
        for rpc in RPCS:
            if rpc == "ListTables" and door == "rest":
                continue  # its run is in the query; test_a_token_of_one_run_sees_the_tables_of_that_run_only
            if door == "grpc":
                request = request_about(rpc, "theirs").SerializeToString()
                code, reason = await over_grpc(channel, rpc, request, token)
                refused = code is grpc.StatusCode.PERMISSION_DENIED
            else:
                status, reason = await over_rest(http, rpc, "theirs", token)
                refused = status == 403
            assert (refused, reason) == (True, REFUSED), rpc
    assert [table.run for table in await admin.list_tables()] == ["mine", "theirs"]


async def test_a_token_of_one_run_sees_the_tables_of_that_run_only(secured: RunningServer, admin: AsyncClient) -> None:
    """Asked for all tables, the service shows those of the run; the others are not even named."""
    await admin.create_table(run="mine", table="train")
    await admin.create_table(run="theirs", table="train")
    token = await make_token(admin, Scope.PRODUCER, run="mine")
    async with AsyncClient(secured.grpc_address, token=token) as client:
        assert [table.run for table in await client.list_tables()] == ["mine"]
    headers = {"authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=f"http://{secured.http_address}", headers=headers) as http:
        shown = (await http.get("/v1/tables")).json()
        assert [table["run"] for table in shown["tables"]] == ["mine"]
        refused = await http.get("/v1/tables", params={"run": "theirs"})
        assert (refused.status_code, refused.json()["reason"]) == (403, REFUSED)


async def test_a_stream_is_about_the_run_of_its_first_message(secured: RunningServer, admin: AsyncClient) -> None:
    """What later messages name is not looked at, by the check and by the service alike."""
    await admin.create_table(run="mine", table="train")
    token = await make_token(admin, Scope.PRODUCER, run="mine")
    async with grpc.aio.insecure_channel(secured.grpc_address) as channel:
        call = channel.stream_stream(f"/{SERVICE.full_name}/InsertStream")  # type: ignore[var-annotated]
        requests = [request_about("InsertStream", run).SerializeToString() for run in ("mine", "theirs")]
        running = call(iter(requests), timeout=10, metadata=(("authorization", f"Bearer {token}"),))
        assert [answer async for answer in running] == []
