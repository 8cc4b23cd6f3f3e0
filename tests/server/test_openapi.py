"""The OpenAPI document says what the service does; the contract over REST holds every problem to it as well."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from groupreplay_server.api.rest.problems import MEDIA_TYPE
from groupreplay_server.api.rest.routes import ROUTES
from groupreplay_server.app import RunningServer

DOCUMENT: dict[str, Any] = json.loads((Path(__file__).parents[2] / "docs/reference/openapi.json").read_text())
OPERATIONS: dict[str, tuple[str, str, dict[str, Any]]] = {
    operation["operationId"]: (verb, path, operation)
    for path, verbs in DOCUMENT["paths"].items()
    for verb, operation in verbs.items()
}
FIRST = ["CreateTable", "Insert", "NextBatch", "ReadLease", "ExtendLease"]
"""What the examples of others need."""


def references(value: Any) -> Iterator[str]:
    """Yield every $ref below a value."""
    if isinstance(value, dict):
        yield from ([value["$ref"]] if "$ref" in value else [])
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def test_every_route_is_an_operation_with_examples_and_problems() -> None:
    """Somebody who reads only the document can make every call, and handle what comes back."""
    assert sorted(OPERATIONS) == sorted(route.rpc for route in ROUTES)
    for name, (_, _, operation) in OPERATIONS.items():
        assert operation["summary"], name
        [success] = operation["responses"]["200"]["content"].values()
        assert success["example"], name
        problems = [it for status, it in operation["responses"].items() if status >= "4"]
        assert {"422", "500", "503"} <= operation["responses"].keys(), name
        assert all(it["$ref"].startswith("#/components/responses/") for it in problems), name


def test_every_reference_leads_somewhere() -> None:
    """A generator of clients finds every type."""
    for reference in references(DOCUMENT):
        place = DOCUMENT
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]
        assert place, reference


def test_every_problem_of_the_document_is_of_one_shape() -> None:
    """One media type, one schema, and Retry-After where it helps."""
    for name, response in DOCUMENT["components"]["responses"].items():
        content = response["content"][MEDIA_TYPE]
        assert content["schema"]["allOf"][0] == {"$ref": "#/components/schemas/Problem"}
        assert str(content["example"]["status"]) == name.partition("-")[0]
        assert ("headers" in response) == content["example"]["retryable"]


async def test_the_service_serves_the_document(server: RunningServer) -> None:
    """As it is committed."""
    async with httpx.AsyncClient(base_url=f"http://{server.http_address}") as http:
        assert (await http.get("/openapi.json")).json() == DOCUMENT


@pytest.mark.usefixtures("clean_redis")
async def test_every_example_is_taken(server: RunningServer) -> None:
    """Each is sent as it stands, and answered with success or with a documented problem that is not about its form."""
    async with httpx.AsyncClient(base_url=f"http://{server.http_address}", timeout=30) as http:
        for name in sorted(OPERATIONS, key=lambda it: (FIRST.index(it) if it in FIRST else len(FIRST), it)):
            verb, path, operation = OPERATIONS[name]
            response = await http.send(example_request(http, verb, path, operation))
            assert str(response.status_code) in operation["responses"], f"{name}: {response.text}"
            assert response.status_code not in {415, 422, 500} or name == "Restore", f"{name}: {response.text}"


def example_request(http: httpx.AsyncClient, verb: str, path: str, operation: dict[str, Any]) -> httpx.Request:
    """Return the request that an operation's examples make."""
    query: dict[str, Any] = {}
    for parameter in operation["parameters"]:
        if parameter["in"] == "path":
            path = path.replace(f"{{{parameter['name']}}}", str(parameter["example"]))
        elif "example" in parameter:
            example = parameter["example"]
            query[parameter["name"]] = str(example).lower() if isinstance(example, bool) else example
    if "timeout_s" in {parameter["name"] for parameter in operation["parameters"]}:
        query["timeout_s"] = 1
    [(media_type, content)] = operation.get("requestBody", {"content": {"": {"example": ""}}})["content"].items()
    example = content["example"]
    body = example if isinstance(example, str) else json.dumps(example)
    headers = {"Content-Type": media_type} if media_type else {}
    return http.build_request(verb.upper(), path, params=query, content=body, headers=headers)
