"""Payloads of a batch are read some megabytes at a time, a page ahead of what is being sent."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

import pytest

from groupreplay.v1.group_pb2 import GroupHeader
from groupreplay_server.batches import _read_ahead
from groupreplay_server.store.records import Payload, ReadGroup

MEGABYTE = 2**20


def group(number: int, size: int) -> ReadGroup:
    """Return a group with a payload of this size, 0 = none is kept."""
    header = GroupHeader(group_id=f"g{number}", payload_bytes=size).SerializeToString()
    return ReadGroup(f"g{number}", header, "ref" if size else "", 0, 0)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], []),
        ([100] * 130, [64, 64, 2]),
        ([3 * MEGABYTE] * 3, [1, 1, 1]),
        ([MEGABYTE] * 5, [4, 1]),
        ([100, 17 * MEGABYTE, 100], [1, 1, 1]),
        ([0] * 3, [3]),
    ],
)
async def test_a_page_is_some_megabytes_or_one_group(sizes: list[int], expected: list[int]) -> None:
    """However large the groups are, all come, in order, and only two pages are in memory at a time."""
    pages: list[int] = []
    sent = 0

    async def read(page: Sequence[ReadGroup]) -> list[Payload]:
        if page:
            pages.append(len(page))
        assert sum(pages[:-2]) <= sent
        return [each.group_id.encode() for each in page]

    groups = [group(number, size) for number, size in enumerate(sizes)]
    found = []
    async for each in _read_ahead(groups, read):
        found.append(each)
        sent += 1
        await asyncio.sleep(0)  # lets the page ahead be read
    assert found == [(each, each.group_id.encode()) for each in groups]
    assert pages == expected


async def test_a_reader_that_goes_away_leaves_no_read_behind() -> None:
    """The read of the page ahead ends with it."""
    reads: list[str] = []

    async def read(page: Sequence[ReadGroup]) -> list[Payload]:
        if reads:
            reads.append("began")
            try:
                await asyncio.Event().wait()
            finally:
                reads.append("ended")
        reads.append("first")
        return [b""] * len(page)

    async with aclosing(_read_ahead([group(number, 3 * MEGABYTE) for number in range(3)], read)) as groups:
        await anext(groups)
        await asyncio.sleep(0)
    assert reads == ["first", "began", "ended"]
