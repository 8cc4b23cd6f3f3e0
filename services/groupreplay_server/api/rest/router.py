"""The REST door: every RPC of ReplayService over HTTP, in plain JSON. docs/reference/rest.md lists the routes."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from http import HTTPStatus

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from google.protobuf.message import Message
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from groupreplay.errors import CallDeadlineExceededError
from groupreplay.v1 import replay_service_pb2 as pb
from groupreplay_server.access import Access
from groupreplay_server.api.checked_call import CheckedCall
from groupreplay_server.api.metrics import Metrics
from groupreplay_server.api.observed_call import observed, refusal_observed
from groupreplay_server.api.operations import Operations, typed_error
from groupreplay_server.api.rest.bodies import JSON_TYPE, LINES_TYPE, closing, while_caller_listens
from groupreplay_server.api.rest.calls import Call, Options, json_line
from groupreplay_server.api.rest.paths import NAME
from groupreplay_server.api.rest.problems import problem, problem_response
from groupreplay_server.api.rest.routes import ROUTES, Answer, Route
from groupreplay_server.api.rest.transcode import to_json
from groupreplay_server.readiness import Readiness


def make_router(operations: Operations, readiness: Readiness, metrics: Metrics, access: Access) -> APIRouter:
    """Return the routes."""
    router = APIRouter(include_in_schema=False)
    door = RestDoor(operations, readiness, metrics, access)
    by_path: dict[str, dict[str, Route]] = defaultdict(dict)
    for route in ROUTES:
        by_path[route.path][route.verb] = route
    for path, routes in by_path.items():  # one for all verbs, so that a 405 names them all
        router.add_api_route(path.replace("}", f":{NAME}}}"), door.endpoint(routes), methods=sorted(routes))
    return router


class RestDoor:
    """Answers calls: errors become problems, and a caller who goes away is no longer worked for."""

    def __init__(self, operations: Operations, readiness: Readiness, metrics: Metrics, access: Access) -> None:
        self._operations = operations
        self._access = access
        self._readiness = readiness
        self._metrics = metrics

    def endpoint(self, routes: dict[str, Route]) -> Callable[[Request], Awaitable[Response]]:
        """Return the endpoint of a path, for its verbs."""

        async def answer(request: Request) -> Response:
            return await self._answer(routes[request.method], request)

        return answer

    async def _answer(self, route: Route, request: Request) -> Response:
        try:
            checked = CheckedCall(self._access, route.rpc)
            with refusal_observed(self._metrics, self._access, route.rpc, checked.target):
                self._readiness.check_taking_calls()
                checked.check_path(request.path_params)
                options = Options.read(route, request)
            call = Call(operations=self._operations, route=route, request=request, options=options, checked=checked)
            return await (self._object(call) if route.answer is Answer.JSON else self._stream(call))
        except ClientDisconnect:
            return Response(status_code=HTTPStatus.NO_CONTENT)  # nobody reads it
        except Exception as error:  # noqa: BLE001  the boundary: every fault becomes an answer
            return problem_response(typed_error(route.rpc, error), headers=closing(request))

    async def _object(self, call: Call) -> Response:
        rpc = call.route.rpc
        with observed(self._metrics, self._access, rpc, call.checked.target):
            async with _in_time(call, _deadline(call)):
                message = await call.unary()
        created = isinstance(message, pb.CreateTableResponse) and message.created
        return Response(
            orjson.dumps(to_json(message)), HTTPStatus.CREATED if created else HTTPStatus.OK, None, JSON_TYPE
        )

    async def _stream(self, call: Call) -> Response:
        deadline = _deadline(call)
        if call.route.answer is Answer.RESULT_LINES:
            lines = self._lines(call, None, deadline)
            return LinesResponse(await anext(lines), lines, closing(call.request))
        with refusal_observed(self._metrics, self._access, call.route.rpc, call.checked.target):
            async with _in_time(call, deadline):
                message = await call.read_message()
        lines = self._lines(call, message, deadline)
        return LinesResponse(await while_caller_listens(call.request, anext(lines)), lines, {})

    async def _lines(self, call: Call, message: Message | None, deadline: float) -> AsyncGenerator[bytes]:
        """Yield the lines of an answer, the first before a deadline (time of the loop).

        What goes wrong before the first is raised, later it is the last line.
        """
        rpc, started = call.route.rpc, False
        try:
            with observed(self._metrics, self._access, rpc, call.checked.target):
                async with aclosing(call.lines(message)) as lines:
                    async with _in_time(call, deadline):  # within: a call that was late is noted as that
                        line = await anext(lines)
                        await call.checked.confirm()
                    started = True
                    yield line
                    async for line in lines:
                        await call.checked.confirm()
                        yield line
        except Exception as error:
            if not started:
                raise
            yield json_line({"error": problem(typed_error(rpc, error))})


def _deadline(call: Call) -> float:
    return asyncio.get_running_loop().time() + call.deadline_s


@asynccontextmanager
async def _in_time(call: Call, deadline: float) -> AsyncIterator[None]:
    """End a call when its time is over; where its body had not come by then, say that."""
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError as error:
        if not closing(call.request):
            raise
        raise CallDeadlineExceededError(
            f"the body of {call.route.rpc} did not come within timeout_s; send less at once, or pass a longer one"
        ) from error


class LinesResponse(StreamingResponse):
    """NDJSON whose source is closed whatever happens to its reader."""

    def __init__(self, first: bytes, lines: AsyncGenerator[bytes], headers: dict[str, str]) -> None:
        self._lines = lines
        self._all = self._from(first)
        super().__init__(self._all, headers=headers, media_type=LINES_TYPE)

    async def _from(self, first: bytes) -> AsyncGenerator[bytes]:
        yield first
        async for line in self._lines:
            yield line

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._all.aclose()
            await self._lines.aclose()
