"""Our answers beside those of atroposlib's own server, for the same requests."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from atropos_client import ENVIRONMENT, REGISTRATION, scored_data

pytestmark = pytest.mark.atropos

Request = tuple[str, str, Any]


@pytest.fixture
def servers(own_url: str, reference_url: str) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    """Clients of our server and of theirs."""
    with httpx.Client(base_url=own_url, timeout=20) as ours, httpx.Client(base_url=reference_url, timeout=20) as theirs:
        yield ours, theirs


def answer(client: httpx.Client, request: Request) -> httpx.Response:
    """Send a request."""
    method, path, body = request
    return client.request(method, path, json=body)


def comparable(path: str, answered: httpx.Response) -> tuple[int, str]:
    """Return the status and the body as it was written, without what is ours alone or random."""
    body = answered.text
    if path == "/register" and answered.status_code == 200:
        return answered.status_code, ",".join(f"{name}:{type(it).__name__}" for name, it in answered.json().items())
    if path == "/batch" and answered.json().get("batch"):
        items = [{name: it for name, it in item.items() if name != "groupreplay"} for item in answered.json()["batch"]]
        body = json.dumps({"batch": items}, separators=(",", ":"), ensure_ascii=False)
    return answered.status_code, body


FULL = scored_data(
    7,
    scores=(0.25, -1.0),
    advantages=[[0.5, -0.5, 1.0, 0.0, 2.0]] * 2,
    ref_logprobs=[[1.0, 1.0, -0.5, -2.0, -4.0]] * 2,
    messages=[[{"role": "user", "content": "2+2 = ü", "reward": None}, {"role": "assistant", "content": [1]}]] * 2,
    generation_params={"temperature": 0.7, "n": 2},
    overrides=[{"set_advantage_to_zero": True}, {}],
    group_overrides={"group_size": 2},
    images=["data:image/png;base64,AAAA", None],
    env_id=0,
    distill_token_ids=[[[1, 2], [3, 4]], [[5, 6]]],
    distill_logprobs=[[[-0.5, -1.0], [-0.25, -8.0]], [[-2.0, -4.0]]],
)
AS_BASE_ENV_SENDS_IT = scored_data(
    8, advantages=[], ref_logprobs=[], messages=[], overrides=[], images=[], group_overrides={}, env_id=1,
    distill_token_ids=None, distill_logprobs=None, inference_logprobs=None,
)  # fmt: skip
LIFE: list[Request] = [
    ("GET", "/", None),
    ("GET", "/info", None),
    ("GET", "/wandb_info", None),
    ("GET", "/status", None),
    ("GET", "/batch", None),
    ("GET", "/latest_example", None),
    ("POST", "/register-env", ENVIRONMENT),
    ("POST", "/register", REGISTRATION | {"starting_step": 3}),
    ("GET", "/info", None),
    ("GET", "/wandb_info", None),
    ("GET", "/status", None),
    ("POST", "/register-env", ENVIRONMENT),
    ("GET", "/batch", None),
    ("POST", "/register-env", ENVIRONMENT),
    ("POST", "/register-env", ENVIRONMENT | {"min_batch_allocation": 0.25, "weight": 2.5, "max_token_length": 128}),
    ("POST", "/register-env", ENVIRONMENT | {"desired_name": "other", "group_size": 4}),
    ("GET", "/status-env", {"env_id": 0}),
    ("POST", "/scored_data", scored_data(0, env_id=0)),
    ("GET", "/latest_example", None),
    ("GET", "/status-env", {"env_id": 0}),
    ("GET", "/batch", None),
    ("POST", "/scored_data", AS_BASE_ENV_SENDS_IT),
    ("GET", "/latest_example", None),
    ("POST", "/scored_data_list", [FULL, scored_data(2, env_id=1)]),
    ("POST", "/scored_data_list", []),
    ("POST", "/scored_data", scored_data(3, env_id=2, scores=(1.0, 2.0, 3.0, 4.0))),
    ("GET", "/latest_example", None),
    ("GET", "/status", None),
    *[("GET", "/status-env", {"env_id": env_id}) for env_id in range(3)],
    ("POST", "/disconnect-env", {"env_id": 2}),
    *[("GET", "/status-env", {"env_id": env_id}) for env_id in range(2)],
]


def test_a_whole_life_gets_the_same_answers(servers: tuple[httpx.Client, httpx.Client]) -> None:
    """Byte for byte, but for the random id of /register."""
    ours, theirs = servers
    for number, request in enumerate(LIFE):
        own, reference = answer(ours, request), answer(theirs, request)
        expected = comparable(request[1], reference)
        assert comparable(request[1], own) == expected, f"request {number}: {request[:2]}"
        assert own.headers["content-type"] == reference.headers["content-type"]


def test_a_batch_is_the_same(servers: tuple[httpx.Client, httpx.Client]) -> None:
    """Byte for byte, but for the key that says where we have the group from; then nothing is left in either."""
    requests: list[Request] = [
        ("POST", "/register", REGISTRATION | {"batch_size": 8}),
        ("GET", "/batch", None),
        *[("POST", "/scored_data", it) for it in (scored_data(0), FULL, AS_BASE_ENV_SENDS_IT, scored_data(3))],
        ("GET", "/batch", None),
        ("GET", "/status", None),
        ("GET", "/batch", None),
    ]
    for number, request in enumerate(requests):
        own, reference = (comparable(request[1], answer(server, request)) for server in servers)
        assert own == reference, f"request {number}: {request[:2]}"


BAD: list[Request] = [
    ("POST", "/register", {"wandb_group": "x"}),
    ("POST", "/register-env", {"desired_name": None}),
    ("POST", "/scored_data", {"tokens": [["a"]], "masks": [[1]]}),
    ("POST", "/scored_data", scored_data(messages=[[{"role": "user"}]] * 2)),
    ("POST", "/scored_data_list", {"tokens": []}),
    ("POST", "/disconnect-env", {}),
    ("GET", "/status-env", {"env_id": "x"}),
    ("GET", "/no-such-route", None),
    ("POST", "/batch", None),
]


def test_bad_requests_get_the_same_status(servers: tuple[httpx.Client, httpx.Client]) -> None:
    """Clients look at nothing else of a refusal; the places of the errors are the same, too."""
    for number, request in enumerate(BAD):
        own, reference = (answer(server, request) for server in servers)
        assert own.status_code == reference.status_code, f"request {number}: {request[:2]}"
        if reference.status_code == 422:
            places = [[problem["loc"] for problem in it.json()["detail"]] for it in (own, reference)]
            assert places[0] == places[1], f"request {number}: {request[:2]}"


def test_reset_gets_the_same_answers(servers: tuple[httpx.Client, httpx.Client]) -> None:
    """As far as theirs answers at all afterwards."""
    requests: list[Request] = [
        ("POST", "/register", REGISTRATION),
        ("POST", "/scored_data", scored_data()),
        ("GET", "/reset_data", None),
        ("GET", "/wandb_info", None),
        ("GET", "/status", None),
        ("POST", "/register-env", ENVIRONMENT),
        ("POST", "/register", REGISTRATION),
        ("GET", "/info", None),
        ("POST", "/scored_data", scored_data()),
        ("GET", "/status", None),
    ]
    for number, request in enumerate(requests):
        own, reference = (comparable(request[1], answer(server, request)) for server in servers)
        assert own == reference, f"request {number}: {request[:2]}"
