"""What clients of the Atropos API send, and an HTTP client of one table that sends it as they do."""

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

REGISTRATION = {
    "wandb_group": "group", "wandb_project": "project", "batch_size": 4, "max_token_len": 64,
    "checkpoint_dir": "/checkpoints", "save_checkpoint_interval": 10, "starting_step": 0, "num_steps": 100,
}  # fmt: skip
ENVIRONMENT = {"max_token_length": 64, "desired_name": "adding", "weight": 1.0, "group_size": 2}


def scored_data(seed: int = 0, *, scores: Sequence[float] = (0.0, 1.0), **other: Any) -> dict[str, Any]:
    """Return a group of two prompt tokens and three response tokens each; another seed, another prompt."""
    prompt = [1000 + seed, 7]
    tokens = [[*prompt, 10 + index, 20, 30 + seed] for index in range(len(scores))]
    return {
        "tokens": tokens,
        "masks": [[-100, -100, *sequence[2:]] for sequence in tokens],
        "scores": list(scores),
        "inference_logprobs": [[1.0, 1.0, -0.5, -0.25, -0.125] for _ in tokens],
    } | other


@dataclass(frozen=True, slots=True)
class AtroposUser:
    """Calls the routes of one server."""

    http: httpx.AsyncClient

    async def post(self, path: str, body: Any, *, packed: bool = False) -> httpx.Response:
        """Post JSON, gzipped as BaseEnv does with more than 1 KiB."""
        content, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        if packed:
            content, headers["Content-Encoding"] = gzip.compress(content), "gzip"
        return await self.http.post(path, content=content, headers=headers)

    async def get(self, path: str, body: Any = None) -> Any:
        """Return the JSON of a GET, which has a body for /status-env."""
        answer = await self.http.request("GET", path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def register(self, **other: Any) -> None:
        """Register a trainer."""
        answer = await self.post("/register", REGISTRATION | other)
        assert answer.status_code == 200, answer.text

    async def register_env(self, **other: Any) -> dict[str, Any]:
        """Register an environment."""
        answer = await self.post("/register-env", ENVIRONMENT | other)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def push(self, *items: dict[str, Any]) -> None:
        """Push groups, one by one."""
        for item in items:
            answer = await self.post("/scored_data", item)
            assert (answer.status_code, answer.json()) == (200, {"status": "received"}), answer.text

    async def batch(self) -> list[dict[str, Any]] | None:
        """Ask for a batch."""
        batch: list[dict[str, Any]] | None = (await self.get("/batch"))["batch"]
        return batch

    async def prompts(self) -> list[int] | None:
        """Ask for a batch, and return the seeds of its groups."""
        batch = await self.batch()
        return None if batch is None else [item["tokens"][0][0] - 1000 for item in batch]
