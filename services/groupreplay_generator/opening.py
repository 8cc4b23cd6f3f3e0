"""Opens an engine with the newest weights of a run."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from groupreplay_generator.engines import Engine, create_engine
from groupreplay_generator.policy_follower import PolicyFollower, weights_label, weights_path
from groupreplay_generator.sections import VllmSettings

_log = logging.getLogger(__name__)

NEWER_TIMEOUT_S = 10.0
"""How long to wait to hear of newer weights once those that were the newest are gone."""


@asynccontextmanager
async def opened_engine(name: str, follower: PolicyFollower, *, vllm: VllmSettings) -> AsyncIterator[Engine]:
    """Open the engine `name` with the newest weights, and let the follower know which these are.

    Importing PyTorch takes seconds. A trainer with quick steps has removed the weights by then that were the newest
    before; so the next ones are tried, until some are still there.

    Raises:
        FileNotFoundError: there is nothing where the newest weights should be, and no newer ones came.
        ValueError: as `create_engine` and `weights_path`.
    """
    policy = await follower.newer_than(-1)
    async with AsyncExitStack() as stack:
        while True:
            try:
                engine = create_engine(
                    name,
                    weights=weights_path(policy),
                    policy_version=policy.version,
                    label=weights_label(policy),
                    version_of=follower.version_of,
                    vllm=vllm,
                )
                await stack.enter_async_context(engine)
                break
            except FileNotFoundError as error:
                try:
                    policy = await asyncio.wait_for(follower.newer_than(policy.version), NEWER_TIMEOUT_S)
                except TimeoutError:
                    raise error from None
                _log.info("%s; newer weights came meanwhile", error)
        follower.opened_with(policy)
        yield engine
