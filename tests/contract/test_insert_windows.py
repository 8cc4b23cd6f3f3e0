"""insert_many works on two windows at a time: one is stored while the next is made."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator

import pytest
from processes import ServerProcess
from samples import make_group
from table_user import MakeTable

from groupreplay import AsyncClient, Client, RolloutGroup
from groupreplay.async_client import WINDOW_GROUPS

pytestmark = pytest.mark.parametrize("client_kind", ["async"], indirect=True)


def source(*, windows: int) -> Iterator[RolloutGroup]:
    """Yield groups that fill so many windows, and one more; then fail."""
    for number in range(windows * WINDOW_GROUPS + 1):
        yield make_group(f"g{number:04}")
    raise OSError("the disk with the rollouts is gone")


async def asynchronous(groups: Iterator[RolloutGroup]) -> AsyncIterator[RolloutGroup]:
    """Yield groups as an asynchronous source does."""
    for group in groups:
        yield group


async def test_what_was_sent_is_answered_before_the_source_fails(make_table: MakeTable, service: ServerProcess) -> None:
    """A caller knows of each group that is stored, and then why there are no more."""
    table = await make_table()
    answered: list[str] = []

    async def insert() -> None:
        async with AsyncClient(service.grpc_address) as client:
            async for result in client.insert_many(asynchronous(source(windows=2)), **table.names):
                answered.append(result.group_id)  # noqa: PERF401 - what came before the error counts

    with pytest.raises(OSError, match="the disk with the rollouts is gone"):
        await insert()
    assert answered == [f"g{number:04}" for number in range(2 * WINDOW_GROUPS)]
    assert (await table.describe()).fresh == len(answered)


async def test_what_was_sent_is_answered_before_the_source_fails_by_plain_calls(
    make_table: MakeTable, service: ServerProcess
) -> None:
    """The same, where a thread does the sending."""
    table = await make_table()
    answered: list[str] = []

    def insert() -> None:
        with Client(service.grpc_address) as client:
            for result in client.insert_many(source(windows=2), **table.names):
                answered.append(result.group_id)  # noqa: PERF401 - what came before the error counts

    with pytest.raises(OSError, match="the disk with the rollouts is gone"):
        await asyncio.to_thread(insert)
    assert answered == [f"g{number:04}" for number in range(2 * WINDOW_GROUPS)]
    assert (await table.describe()).fresh == len(answered)


async def test_a_source_that_waits_does_not_hold_back_what_it_gave(
    make_table: MakeTable, service: ServerProcess
) -> None:
    """A window is stored as soon as it is full, whenever the next may be."""
    table = await make_table()

    async def waiting() -> AsyncIterator[RolloutGroup]:
        for number in range(WINDOW_GROUPS):
            yield make_group(f"g{number:04}")
        while (await table.describe()).fresh < WINDOW_GROUPS:
            pass
        yield make_group("last")

    async with AsyncClient(service.grpc_address) as client:
        results = [result async for result in client.insert_many(waiting(), **table.names)]
    assert len(results) == WINDOW_GROUPS + 1


async def test_nothing_goes_on_behind_a_loop_that_was_left(make_table: MakeTable, service: ServerProcess) -> None:
    """No task and no thread is left, and no result is lost in the log."""
    table = await make_table()
    async with AsyncClient(service.grpc_address) as client:
        before = asyncio.all_tasks()
        results = client.insert_many(asynchronous(source(windows=3)), **table.names)
        assert (await anext(results)).group_id == "g0000"
        await results.aclose()  # type: ignore[attr-defined]
        assert {task for task in asyncio.all_tasks() - before if "insert" in repr(task)} == set()

    def insert() -> None:
        with Client(service.grpc_address) as client:
            results = client.insert_many(source(windows=3), **table.names)
            assert next(results).group_id == "g0000"
            results.close()  # type: ignore[attr-defined]

    await asyncio.to_thread(insert)
    assert not [thread for thread in threading.enumerate() if thread.name == "groupreplay-call"]
