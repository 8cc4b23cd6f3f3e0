"""Whatever the OpenAPI document allows, and what it forbids, is answered, and never as a fault of the service."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import requests
import schemathesis
from hypothesis import given
from hypothesis import strategies as st
from processes import ServerProcess
from samples import make_group
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from security.fuzzing import fuzz

from groupreplay import Client
from groupreplay.errors import ERRORS
from groupreplay_server.api.rest.routes import ROUTES

DOCUMENT = json.loads((Path(__file__).parents[2] / "docs/reference/openapi.json").read_text())
SCHEMA: Any = schemathesis.openapi.from_dict(DOCUMENT)
OPERATIONS = {found.ok().definition.raw["operationId"]: found.ok() for found in SCHEMA.get_all_operations()}
WAITING = {route.rpc for route in ROUTES if route.waits}
EXAMPLES = 3
NAMES = {
    "run": "fuzz", "table": "train", "lease_id": "fuzz", "producer_id": "fuzz", "name": "fuzz", "step": 1,
}  # fmt: skip
CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
load_all_checks()


@schemathesis.serializer("application/x-ndjson")
def lines(_: schemathesis.SerializationContext, value: Any) -> bytes:
    """Send whatever was made as it is, where the document can say no more than that it is text."""
    return (value if isinstance(value, str) else json.dumps(value)).encode("utf-8", "replace")


@pytest.fixture(scope="session")
def rest(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A service that the tests of this file ask for everything."""
    folder = tmp_path_factory.mktemp("fuzzed-rest")
    process = ServerProcess(folder, redis_url, log=folder / "service.log")
    process.start()
    yield process
    assert process.terminate() == 0
    assert "Traceback" not in (folder / "service.log").read_text()


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["as-told", "otherwise"])
@pytest.mark.parametrize("rpc", sorted(OPERATIONS))
def test_any_request_has_an_answer_that_the_document_knows(
    rest: ServerProcess, clean_redis: redis.Redis, rpc: str, mode: GenerationMode, request: pytest.FixtureRequest
) -> None:
    """No status of a fault, no answer of another shape; 504 is a batch that was not there in time."""
    with Client(rest.grpc_address, timeout_s=10) as client:
        client.create_table(run="fuzz", table="train")
        client.insert(make_group("fuzz"), run="fuzz", table="train")

    @fuzz(request, EXAMPLES)
    @given(OPERATIONS[rpc].as_strategy(generation_mode=mode), st.sets(st.sampled_from(sorted(NAMES))))
    def ask(case: Any, strange: set[str]) -> None:
        known = {name: value for name, value in NAMES.items() if name in case.path_parameters and name not in strange}
        case.path_parameters.update(known)
        case.query = {**(case.query or {}), "timeout_s": 0.02 if rpc in WAITING else 20}
        with requests.Session() as session:
            answer = case.call(base_url=f"http://{rest.http_address}", session=session, timeout=30)
        check_answer(answer)
        case.validate_response(answer, checks=CHECKS)

    ask()


def check_answer(answer: Any) -> None:
    """Assert that an answer is a result, or a problem of the caller's making."""
    assert answer.status_code < 500 or answer.status_code == 504, answer.text
    if answer.status_code >= 400:
        problem = answer.json()
    elif answer.headers.get("content-type") == ["application/x-ndjson"] and answer.text.splitlines():
        problem = json.loads(answer.text.splitlines()[-1]).get("error")
    else:
        problem = None
    if problem is not None:
        assert problem["reason"] in ERRORS, problem
        assert problem["reason"] not in {"INTERNAL", "STORE_UNAVAILABLE"}, problem
