"""The engine of vLLM servers: prompts are spread over all that answer, and weights are brought into each."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import numpy as np
import numpy.typing as npt

from groupreplay_generator.engines.base import EngineAwayError, EngineResult, Sampling
from groupreplay_generator.engines.vllm_server import VllmServer
from groupreplay_generator.engines.vllm_weights import VersionOf, Versions, Weights, seed_of
from groupreplay_generator.sections import VllmSettings


class VllmHttpEngine:
    """An `Engine` over one or more vLLM servers.

    A server that fails costs the prompts it had, which the others take over. One that is back, or new, is given the
    policy's weights before it is sampled from. Nothing is asked of any server before the first call.
    """

    def __init__(
        self,
        weights: Path | str,
        *,
        settings: VllmSettings,
        policy_version: int = 0,
        label: str = "",
        version_of: VersionOf = lambda _: None,
    ) -> None:
        """Remember which servers to use, and with which weights.

        Args:
            weights, policy_version, label: as of `load_weights`.
            settings: where the servers are.
            version_of: finds the policy version of a label that others brought into a server; None = not known.

        Raises:
            FileNotFoundError, ValueError: as `load_weights`.
        """
        self._settings = settings
        self._versions = Versions(version_of)
        self._weights = Weights.at(weights, policy_version, label)
        self._client: httpx.AsyncClient | None = None
        self._servers: list[VllmServer] = []

    async def __aenter__(self) -> Self:
        """Open a pool of connections.

        Raises:
            OSError: the file of the API key cannot be read.
        """
        self._versions.add(self._weights)
        key = await asyncio.to_thread(self._settings.api_key)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # The servers queue by themselves, and know best how much they take at a time.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self._client = httpx.AsyncClient(headers=headers, limits=limits, trust_env=False)
        self._servers = [
            VllmServer(url, client=self._client, settings=self._settings, versions=self._versions)
            for url in self._settings.urls
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connections; the servers keep their weights."""
        if self._client is not None:
            await self._client.aclose()
        self._client, self._servers = None, []

    @property
    def policy_version(self) -> int:
        """The version of the weights that the next call samples with."""
        return self._weights.version

    async def load_weights(self, path: Path | str, policy_version: int, *, label: str = "") -> None:
        """Sample with the model folder at `path` from now on, in the middle of responses under way too.

        Raises:
            FileNotFoundError: there is nothing at `path`.
            ValueError: it is no Hugging Face model folder, no server could load it, or policy_version is negative.
            EngineAwayError: no server answers.
        """
        before, weights = self._weights, Weights.at(path, policy_version, label)
        self._versions.add(weights)
        self._weights = weights
        try:
            await self._ready_servers()
        except EngineAwayError as error:
            self._weights = before
            if any(server.refused == weights.label for server in self._servers):
                raise ValueError(str(error)) from error
            raise

    async def generate(
        self,
        prompts: Sequence[str],
        *,
        rollouts_per_prompt: int,
        sampling: Sampling,
        images: Sequence[npt.NDArray[np.uint8]] | None = None,
    ) -> list[EngineResult]:
        """Sample completions of all prompts; see `Engine.generate`.

        Raises:
            ValueError: there are images, a prompt is empty, leaves no room for the response, or a server refuses the
                sampling.
            RuntimeError: the engine is not open.
            EngineAwayError: no server answers, or none with weights that are known.
        """
        if self._client is None:
            raise RuntimeError("the engine is not open: use it inside `async with VllmHttpEngine(...) as engine`")
        if images is not None:
            raise ValueError(
                "engine vllm-http shows no images to the policy; use engine torch for tasks that have them"
            )
        if rollouts_per_prompt < 1:
            raise ValueError(f"rollouts_per_prompt must be >= 1, got {rollouts_per_prompt}")
        finished: dict[int, EngineResult] = {}
        while len(finished) < len(prompts):
            missing = [index for index in range(len(prompts)) if index not in finished]
            try:
                servers = await self._ready_servers()
            except EngineAwayError as error:
                raise EngineAwayError(str(error), finished) from error
            work = _Work(
                prompts=prompts,
                rollouts=rollouts_per_prompt,
                sampling=sampling,
                salt=self._weights.salt,
                finished=finished,
            )
            async with _task_group() as group:
                for number, server in enumerate(servers):
                    group.create_task(work.share(server, missing[number :: len(servers)]))
        return [finished[index] for index in range(len(prompts))]

    async def _ready_servers(self) -> list[VllmServer]:
        """Return the servers that hold the weights, after bringing them into those that do not.

        Raises:
            EngineAwayError: there is none.
        """
        due = [server for server in self._servers if server.due]
        ready = await asyncio.gather(*(self._make_ready(server) for server in due))
        if not any(ready):
            raise EngineAwayError("; ".join(server.trouble for server in self._servers if server.trouble))
        return [server for server, is_ready in zip(due, ready, strict=True) if is_ready]

    async def _make_ready(self, server: VllmServer) -> bool:
        try:
            await server.make_ready(self._weights)
        except (EngineAwayError, ValueError) as error:
            server.note_away(error)
            return False
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """One call of `generate`."""

    prompts: Sequence[str]
    rollouts: int
    sampling: Sampling
    salt: str
    finished: dict[int, EngineResult]

    async def share(self, server: VllmServer, indices: Sequence[int]) -> None:
        """Have a server sample some of the prompts; if it fails, those it has not finished stay undone."""
        try:
            async with _task_group() as group:
                watch = group.create_task(server.watch())
                # All of them first, so that a prompt that cannot be answered costs no response to another.
                encoded = await asyncio.gather(
                    *(server.encode(self.prompts[index], self.sampling) for index in indices)
                )
                sampling = [
                    group.create_task(self._sample(server, index, token_ids))
                    for index, token_ids in zip(indices, encoded, strict=True)
                ]
                await asyncio.wait(sampling)
                watch.cancel()
        except EngineAwayError as error:
            server.note_away(error)

    async def _sample(self, server: VllmServer, index: int, token_ids: list[int]) -> None:
        self.finished[index] = await server.sample(
            token_ids,
            rollouts=self.rollouts,
            sampling=self.sampling,
            seed=seed_of(self.sampling, index),
            salt=self.salt,
        )
        server.note_back()


@asynccontextmanager
async def _task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """Open a TaskGroup that raises the first error of its tasks, rather than a group of them."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
