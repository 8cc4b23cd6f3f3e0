"""Tokens on the Atropos API, whose clients can only be told a URL."""

import json

import httpx
import pytest
from atropos_client import ENVIRONMENT, REGISTRATION, scored_data
from security.conftest import ADMIN_TOKEN, make_token

from groupreplay import AsyncClient, Scope
from groupreplay_server.app import RunningServer
from groupreplay_server.settings import ServerSettings


def client_of(server: RunningServer, token: str, table: str = "math/train") -> httpx.AsyncClient:
    """Return a client whose server URL has a token in it, as an environment's configuration would."""
    return httpx.AsyncClient(base_url=f"http://any:{token}@{server.http_address}/atropos/{table}", timeout=20.0)


async def test_a_token_in_the_server_url_logs_in(secured: RunningServer, admin: AsyncClient) -> None:
    """A trainer and an environment, each with the scope that its side needs, go through a whole turn."""
    consumer, producer = await make_token(admin, Scope.CONSUMER, run="math"), await make_token(admin, Scope.PRODUCER)
    async with client_of(secured, consumer) as trainer, client_of(secured, producer) as environment:
        assert (await trainer.post("/register", json=REGISTRATION)).status_code == 200
        assert (await trainer.get("/batch")).json() == {"batch": None}
        assert (await environment.post("/register-env", json=ENVIRONMENT)).json()["status"] == "success"
        pushed = await environment.post("/scored_data_list", json=[scored_data(0), scored_data(1)])
        assert pushed.status_code == 200
        assert len((await trainer.get("/batch")).json()["batch"]) == 2


@pytest.mark.parametrize("token", ["", "no-token-of-ours", "grt.nobody." + "0" * 64])
async def test_without_a_good_token_nothing_is_answered(secured: RunningServer, token: str) -> None:
    """Not even that the API is there."""
    async with client_of(secured, token) as client:
        for path in ("/", "/info", "/batch", "/reset_data"):
            refused = await client.get(path)
            assert (refused.status_code, refused.json()["reason"]) == (401, "UNAUTHENTICATED")
            assert not token or token not in refused.text


async def test_each_side_has_its_scope(secured: RunningServer, admin: AsyncClient, settings: ServerSettings) -> None:
    """Whoever generates takes no batches and removes nothing; another run's table is nobody's business."""
    producer = await make_token(admin, Scope.PRODUCER, run="math")
    consumer = await make_token(admin, Scope.CONSUMER, run="math")
    async with client_of(secured, producer) as environment, client_of(secured, consumer) as trainer:
        for refused in (
            await environment.get("/batch"),
            await environment.get("/latest_example"),
            await environment.post("/register", json=REGISTRATION),
            await environment.get("/reset_data"),
            await trainer.post("/scored_data", json=scored_data(0)),
            await trainer.get("/reset_data"),
        ):
            assert (refused.status_code, refused.json()["reason"]) == (403, "PERMISSION_DENIED"), refused.url
    async with client_of(secured, producer, "other/train") as elsewhere:
        assert (await elsewhere.get("/info")).status_code == 403
    async with client_of(secured, ADMIN_TOKEN) as all_powerful:
        assert (await all_powerful.get("/reset_data")).status_code == 200
        page = await all_powerful.get(
            f"http://{secured.http_address}/metrics", headers={"authorization": f"Bearer {ADMIN_TOKEN}"}
        )
        assert 'groupreplay_call_seconds_count{method="Atropos.reset_data",reason="PERMISSION_DENIED"} 2.0' in page.text
    assert settings.audit_log is not None
    audited = [json.loads(line) for line in settings.audit_log.read_text().splitlines()]
    resets = [(line["who"], line["outcome"]) for line in audited if line["call"] == "ResetTable"]
    assert resets == [
        ("producer-math", "PERMISSION_DENIED"),
        ("consumer-math", "PERMISSION_DENIED"),
        ("admin-token-file", "OK"),
    ]


async def test_basic_is_for_this_api_alone(secured: RunningServer) -> None:
    """A browser that once opened such a URL sends it by itself, which must not open REST to other pages."""
    async with httpx.AsyncClient(base_url=f"http://any:{ADMIN_TOKEN}@{secured.http_address}") as http:
        assert (await http.get("/v1/tables")).status_code == 401
        assert (await http.get("/atropos/math/train/info")).status_code == 200
