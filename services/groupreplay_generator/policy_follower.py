"""Keeps an engine on the newest published weights of a run."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import unquote, urlparse

from groupreplay import AsyncClient, GroupReplayError, Policy
from groupreplay.weights import weights_sha256
from groupreplay_generator.engines import Engine

_log = logging.getLogger(__name__)

_RUN_MISSING_PAUSE_S = 0.5


class PolicyFollower:
    """The newest policy with weights that the service told of; read with `newest`, awaited with `newer_than`."""

    def __init__(self) -> None:
        self._newest: Policy | None = None
        self._loaded: Policy | None = None
        self._refused: Policy | None = None
        self._versions: dict[str, int] = {}
        self._changed = asyncio.Condition()

    @property
    def newest(self) -> Policy | None:
        """The newest policy that has weights, or None before the trainer published any."""
        return self._newest

    def version_of(self, label: str) -> int | None:
        """Return the policy version that a weights_label names, or None for one of no policy heard of."""
        return self._versions.get(label)

    async def newer_than(self, version: int) -> Policy:
        """Wait until a policy above version is known, and return the newest."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._newest is not None and self._newest.version > version)
        assert self._newest is not None
        return self._newest

    async def tell(self, policy: Policy) -> None:
        """Take note of a policy, from whatever answer of the service. The clock may have gone back."""
        if not policy.weights_uri:
            return
        self._versions[weights_label(policy)] = policy.version
        if self._newest is not None and _age(policy) <= _age(self._newest):
            return
        async with self._changed:
            self._newest = policy
            self._changed.notify_all()

    def opened_with(self, policy: Policy) -> None:
        """Take note that the engine was opened with the weights of this policy."""
        self._loaded = policy

    async def take_up(self, engine: Engine, policy: Policy) -> bool:
        """Load a policy's weights unless the engine has them; return False if they cannot be had (any more).

        After the clock went back a version number names other weights than before, so the number alone does not tell.

        Raises:
            EngineAwayError: the engine does not answer at the moment.
        """
        if self._loaded is not None and _age(policy) == _age(self._loaded):
            return True
        try:
            path = await asyncio.to_thread(weights_path, policy)
            await engine.load_weights(path, policy.version, label=weights_label(policy))
        except (OSError, ValueError) as error:
            if self._refused is None or _age(policy) != _age(self._refused):
                _log.warning("policy version %d stays out: %s; trying on, or the next", policy.version, error)
            self._refused = policy
            return False
        self._loaded = policy
        return True

    async def watch(self, client: AsyncClient, run: str) -> None:
        """Take note of every policy of a run, until cancelled. Waits for the run where there is none yet."""
        waited = False
        while True:
            try:
                async for policy in client.watch_policy(run=run):
                    await self.tell(policy)
            except GroupReplayError as error:
                if not waited:
                    _log.info("waiting for the trainer to create run %s: %s", run, error)
                    waited = True
            await asyncio.sleep(_RUN_MISSING_PAUSE_S)


def _age(policy: Policy) -> tuple[int, int]:
    return policy.rewinds, policy.version


@asynccontextmanager
async def following(client: AsyncClient, run: str) -> AsyncIterator[PolicyFollower]:
    """Follow the policy of a run."""
    follower = PolicyFollower()
    task = asyncio.create_task(follower.watch(client, run))
    try:
        yield follower
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def weights_label(policy: Policy) -> str:
    """Return what an inference engine calls the weights of a policy: the label the trainer gave it, or version@digest.

    The digest is there because a server may outlive a run, and the next one has a version 3 too.
    """
    if policy.label not in {"", str(policy.version)}:
        return policy.label
    return f"{policy.version}@{policy.weights_sha256[:16] or policy.run}"


def weights_path(policy: Policy) -> Path:
    """Return the file or folder of a policy's weights, after comparing its SHA-256 with the published one.

    Raises:
        ValueError: the URI is no path here, or what lies there is not what was published.
        OSError: it cannot be read, perhaps because newer weights have replaced it.
    """
    uri = urlparse(policy.weights_uri)
    if uri.scheme != "file" or uri.netloc not in {"", "localhost"}:
        raise ValueError(f"weights {policy.weights_uri!r} are not a file:// URI of this machine's file system")
    path = Path(unquote(uri.path))
    if policy.weights_sha256:
        found = weights_sha256(path)
        if found != policy.weights_sha256:
            raise ValueError(f"{path} has SHA-256 {found}, published was {policy.weights_sha256}")
    return path
