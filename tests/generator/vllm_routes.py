"""A small HTTP server that speaks the few routes of vLLM that the engine uses, to fail in ways a real one rarely does.

It samples nothing: every response is the same few tokens. That the engine works on vLLM itself is tested in
tests/real_vllm, on a real server.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

Answer = Callable[[], Awaitable[Response]]

TOKENS, LOGPROBS = [7, 8, 2], [-0.5, -0.25, -0.125]


class VllmRoutes:
    """State of the server, and what is wrong with it."""

    def __init__(self) -> None:
        """Start with vLLM's own name for its weights, and nothing wrong."""
        self.url = ""
        self.label = "default"
        self.paused = False
        self.loaded: list[str] = []
        self.calls: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.spans: list[dict[str, Any]] | None = None
        """What it says of each response's weights; None = that of its label."""
        self.serves_spans = True
        self.raw_logprobs = False
        self.failing: dict[str, Answer] = {}
        """By path: what to answer instead."""
        self.on_sample: Callable[[], None] = lambda: None
        """Called in the middle of each response."""

    def app(self) -> FastAPI:
        """Return the routes."""
        app = FastAPI()
        app.add_api_route("/{path:path}", self._answer, methods=["GET", "POST"], response_model=None)
        return app

    async def _answer(self, request: Request) -> Response:
        path = request.url.path
        self.calls.append(path)
        body = await request.json() if await request.body() else {}
        if path in self.failing:
            return await self.failing[path]()
        known: dict[str, Callable[[], dict[str, Any]]] = {
            "/weight_info": lambda: {"weight_version": self.label},
            "/is_paused": lambda: {"is_paused": self.paused},
            "/v1/models": lambda: {"data": [{"id": "model"}]},
            "/tokenize": lambda: {"tokens": [ord(letter) for letter in body["prompt"]], "max_model_len": 64},
            "/pause": lambda: self._pause(True),
            "/resume": lambda: self._pause(False),
            "/update_weight_version": lambda: self._relabel(body["new_version"]),
            "/collective_rpc": lambda: self._load(body["kwargs"]["weights_path"]),
            "/v1/completions": lambda: self._complete(body),
            "/inference/v1/generate": lambda: self._generate(body),
        }
        if path == "/inference/v1/generate" and not self.serves_spans:
            return JSONResponse({"error": {"message": "Scale-out endpoints are disabled"}}, status_code=403)
        return JSONResponse(known[path]()) if path in known else JSONResponse({"detail": "Not Found"}, status_code=404)

    def _pause(self, paused: bool) -> dict[str, Any]:
        self.paused = paused
        return {}

    def _relabel(self, label: str) -> dict[str, Any]:
        self.label = label
        return {}

    def _load(self, path: str) -> dict[str, Any]:
        assert self.paused
        assert self.label.startswith("loading ")
        self.loaded.append(path)
        return {"results": [None]}

    def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        if body["prompt"] == "The":
            temperature = 1.0 if self.raw_logprobs else body["temperature"]
            return {"choices": [{"logprobs": {"top_logprobs": [{" x": -1.0 - temperature}]}}]}
        self.bodies.append(body)
        self.on_sample()
        choice = {"token_ids": TOKENS, "logprobs": {"token_logprobs": LOGPROBS}, "finish_reason": "stop", "text": "ab"}
        return {"choices": [choice] * body["n"]}

    def _generate(self, body: dict[str, Any]) -> dict[str, Any]:
        self.bodies.append(body)
        self.on_sample()
        return self._choices(body["sampling_params"]["n"], "stop")

    def responses(self, *, rollouts: int, finish_reason: str = "stop") -> Response:
        """Return the answer of /inference/v1/generate."""
        return JSONResponse(self._choices(rollouts, finish_reason))

    def _choices(self, rollouts: int, finish_reason: str) -> dict[str, Any]:
        choice = {
            "token_ids": TOKENS,
            "logprobs": {"content": [{"logprob": logprob} for logprob in LOGPROBS]},
            "finish_reason": finish_reason,
            "text": "ab",
            "weight_versions": self.spans or [{"version": self.label, "start": 0, "end": 3}],
        }
        return {"choices": [choice] * rollouts}


@asynccontextmanager
async def serving(routes: VllmRoutes) -> AsyncIterator[VllmRoutes]:
    """Serve the routes on a free port, in this process."""
    server = uvicorn.Server(uvicorn.Config(routes.app(), host="127.0.0.1", port=0, log_config=None, lifespan="off"))
    ready = asyncio.Event()
    startup = server.startup

    async def start(sockets: Any = None) -> None:
        await startup(sockets)
        ready.set()

    server.startup = start  # type: ignore[method-assign]
    task = asyncio.create_task(server.serve())
    await ready.wait()
    routes.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield routes
    finally:
        server.should_exit = server.force_exit = True
        await task


async def status_503() -> Response:
    """Answer as a server does whose engine has died."""
    return JSONResponse({"error": "EngineCore encountered an issue"}, status_code=503)


async def no_json() -> Response:
    """Answer as a proxy in between does."""
    return Response("<html>Bad gateway</html>")


async def nothing() -> Response:
    """Hang until the client hangs up."""
    await asyncio.Event().wait()
    raise AssertionError
