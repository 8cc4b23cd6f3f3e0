"""REST offers what gRPC offers, and fails as it fails."""

import json

import pytest
from rest_client import CALLS

from groupreplay.errors import ERRORS
from groupreplay.v1 import replay_service_pb2 as pb
from groupreplay_server.api.rest.problems import problem_response
from groupreplay_server.api.rest.routes import ROUTES


def test_every_rpc_has_one_route_and_every_route_an_rpc() -> None:
    """The doors offer the same; paths are a promise, so they are written down here again."""
    rpcs = [method.name for method in pb.DESCRIPTOR.services_by_name["ReplayService"].methods]
    assert sorted(route.rpc for route in ROUTES) == sorted(rpcs) == sorted(CALLS)
    for route in ROUTES:
        parts = [f"{{{route.field_of(it[1:-1])}}}" if it.startswith("{") else it for it in route.path.split("/")]
        assert f"{route.verb} {'/'.join(parts)}" == CALLS[route.rpc]


@pytest.mark.parametrize("reason", sorted(ERRORS))
def test_every_reason_comes_out_with_its_status(reason: str) -> None:
    """By the table that gRPC and the SDK go by; who may retry is told when."""
    cls = ERRORS[reason]
    response = problem_response(cls("what was tried"))
    body = json.loads(bytes(response.body))
    assert response.status_code == body["status"] == cls.http_status
    assert (body["reason"], body["detail"], body["retryable"]) == (reason, "what was tried", cls.retryable)
    assert ("retry-after" in response.headers) == cls.retryable
