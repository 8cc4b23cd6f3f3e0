"""SIGKILL of a generator in the middle of a batch: the trainer gets its batch, and no id is used twice."""

import asyncio
import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import plain_environment

from groupreplay import AsyncClient, Fill, GroupState, Policy, TableConfig
from groupreplay_server.app import RunningServer
from groupreplay_tinylm import builtin_checkpoint

NAMES: dict[str, Any] = {"run": "run", "table": "train"}
GROUPS = 400
AT_ONCE = 4

Start = Callable[[], "subprocess.Popen[bytes]"]


@pytest.fixture
def start_generator(server: RunningServer, tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts `groupreplay generate` under one name; whatever runs at the end is killed."""
    flags = {
        "--server": server.grpc_address,
        "--run": NAMES["run"],
        "--table": NAMES["table"],
        "--producer-id": "gen",
        "--prompts-at-once": str(AT_ONCE),
        "--rollouts-per-prompt": "2",
        "--threads": "1",
        "--inserted-log": str(tmp_path / "inserted.log"),
    }
    started = []

    def start() -> "subprocess.Popen[bytes]":
        arguments = [part for item in flags.items() for part in item]
        command = [sys.executable, "-m", "groupreplay_cli", "generate", *arguments]
        started.append(subprocess.Popen(command, env=plain_environment()))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


async def test_a_generator_that_was_killed_goes_on_under_its_name_and_loses_no_group(
    client: AsyncClient, start_generator: Start, tmp_path: Path
) -> None:
    """Its successor makes what is missing at once, the admission that died with it notwithstanding, and no more."""
    await client.create_table(**NAMES, config=TableConfig(fill=Fill.KEEP, ahead_groups=0, allow_repeated_prompts=True))
    weights = builtin_checkpoint("addition")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    await client.advance_policy(Policy(run="run", version=0, weights_uri=weights.as_uri(), weights_sha256=digest))
    waiting = asyncio.create_task(client.next_batch(**NAMES, batch_size=GROUPS, timeout_s=100))
    first = start_generator()
    await until_fresh(client, AT_ONCE)
    first.kill()
    first.wait()
    start_generator()
    batch = await waiting
    ids = [delivered.group.group_id for delivered in batch.groups]
    assert len(set(ids)) == len(ids) == GROUPS
    assert len({group_id.split("-")[1] for group_id in ids}) == 2, "both lives made groups of the batch"
    acknowledged = (tmp_path / "inserted.log").read_text().split()
    assert len(set(acknowledged)) == len(acknowledged)
    assert set(await client.locate_groups(acknowledged, **NAMES)) == {GroupState.LEASED}
    assert (await client.describe_table(**NAMES)).counters["inserted"] == GROUPS


async def until_fresh(client: AsyncClient, groups: int) -> None:
    """Wait until so many groups wait in the table."""
    async with asyncio.timeout(60):
        while (await client.describe_table(**NAMES)).fresh < groups:
            pass
