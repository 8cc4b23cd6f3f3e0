"""What of HTTP is open without a token, and what is not."""

from dataclasses import replace
from typing import Any

import httpx
import pytest
import redis
from security.conftest import ADMIN_TOKEN, make_token
from starlette.routing import Route

from groupreplay import AsyncClient, Scope
from groupreplay_server.api.atropos.access import ROOT_PATHS, RPC_OF
from groupreplay_server.api.http_access import PROBES
from groupreplay_server.api.http_api import make_app
from groupreplay_server.api.http_calls import DOCUMENT, METRICS
from groupreplay_server.api.operations import Operations
from groupreplay_server.api.running import RunningCalls
from groupreplay_server.app import RunningServer, running_server
from groupreplay_server.settings import ServerSettings
from groupreplay_server.ui.page import page_paths


async def test_only_the_probes_and_the_files_of_the_page_are_open(secured: RunningServer) -> None:
    """A path that is not there says no more than one that is."""
    closed = ("/metrics", "/v1/tables", "/v1/info", "/nothing", "//healthz", "/healthz/", "/HEALTHZ")
    async with httpx.AsyncClient() as http:
        for path in ("/healthz", "/readyz", *page_paths()):
            assert (await http.get(f"http://{secured.http_address}{path}")).status_code in {200, 307}, path
        for path in (*closed, "/ui/nothing.js", "/ui/../v1/tables", "//ui/", "/UI/", "/ui//main.js"):
            refused = await http.get(f"http://{secured.http_address}{path}")
            assert refused.status_code == 401, path
            assert refused.headers["www-authenticate"] == "Bearer"
            assert refused.json()["reason"] == "UNAUTHENTICATED"


@pytest.mark.parametrize("authorization", ["", "Bearer", f"Basic {ADMIN_TOKEN}", ADMIN_TOKEN, "Bearer \xff"])
async def test_other_ways_to_log_in_are_none(secured: RunningServer, authorization: str) -> None:
    """Only `Bearer TOKEN` is; in no case a fault of the service."""
    headers = [(b"authorization", authorization.encode("latin-1"))]
    async with httpx.AsyncClient(base_url=f"http://{secured.http_address}") as http:
        assert (await http.get("/v1/tables", headers=headers)).status_code == 401


async def test_a_body_is_not_read_before_its_sender_is_known(secured: RunningServer) -> None:
    """Whoever has no token cannot make the service read, or keep, megabytes."""
    sent = 0

    async def endless() -> object:
        nonlocal sent
        while sent < 2**30:
            sent += 2**16
            yield b" " * 2**16

    async with httpx.AsyncClient(base_url=f"http://{secured.http_address}", timeout=20) as http:
        try:
            answer = await http.post("/v1/runs/r/tables/t/groups", content=endless())  # type: ignore[arg-type]
        except httpx.HTTPError:  # the service closed the connection in the middle of it
            pass
        else:
            assert answer.status_code == 401
    assert sent < 2**28


async def test_metrics_take_a_token_for_all_runs(secured: RunningServer, admin: AsyncClient) -> None:
    """They name every run and table."""
    everywhere, here = await make_token(admin, Scope.PRODUCER), await make_token(admin, Scope.ADMIN, run="math")
    async with httpx.AsyncClient(base_url=f"http://{secured.http_address}") as http:
        for token, status in ((everywhere, 200), (here, 403)):
            assert (await http.get("/metrics", headers={"authorization": f"Bearer {token}"})).status_code == status


async def test_metrics_can_be_opened(clean_redis: redis.Redis, settings: ServerSettings) -> None:
    """For a Prometheus that cannot send a token, where the network is trusted."""
    async with (
        running_server(replace(settings, open_metrics=True)) as server,
        httpx.AsyncClient(base_url=f"http://{server.http_address}") as http,
    ):
        assert (await http.get("/metrics")).status_code == 200
        assert (await http.get("/v1/tables")).status_code == 401


def test_every_route_is_one_that_the_table_of_scopes_knows() -> None:
    """Any good token opens what does not look at its scope, as the routes of REST do: think of a new one here."""
    nothing: Any = None
    app = make_app(
        service=nothing,
        operations=Operations(nothing, nothing),
        measurer=nothing,
        readiness=nothing,
        metrics=nothing,
        access=nothing,
        running=RunningCalls(),
    )
    paths = {route.path for route in app.routes if isinstance(route, Route)}
    assert paths == PROBES | {METRICS, DOCUMENT}
    assert len(app.routes) == len(paths) + 3  # the routers of REST, of Atropos, and of the page (page_paths)
    assert {path.rpartition("/")[2].replace("-", "_") or "root" for path in ROOT_PATHS} == set(RPC_OF)
