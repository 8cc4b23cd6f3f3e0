"""Groups and batches far above the size of a message."""

import numpy as np
import pytest
from samples import ids, make_group, same
from table_user import MakeTable

from groupreplay import GroupState, GroupTooLargeError, InsertOutcome
from groupreplay.convert import group_to_wire
from groupreplay.parts import MESSAGE_BYTES


async def test_a_group_of_16_times_32k_tokens_comes_through(make_table: MakeTable) -> None:
    """Long reasoning: 512k tokens with their log probabilities, 4 MiB."""
    tokens = 16 * 32_768
    group = make_group(
        "long",
        rewards=[float(number) for number in range(16)],
        tokens=32_768,
        behaviour_logprobs=-np.linspace(0, 9, tokens, dtype=np.float32),
        loss_mask=np.arange(tokens) % 5 > 1,
    )
    table = await make_table()
    assert await table.insert(group) == [InsertOutcome.INSERTED]
    same((await table.take(1)).groups[0].group, group)


async def test_a_group_of_17_megabytes_comes_through(make_table: MakeTable) -> None:
    """Agents with images: one payload of many messages, between small neighbours."""
    pixels = np.arange(17_000_000, dtype=np.uint8).reshape(1000, 100, 170)
    groups = [make_group("before"), make_group("images", columns={"pixel_values": pixels}), make_group("after")]
    table = await make_table()
    await table.insert_many(groups)
    batch = await table.take(3)
    assert ids(batch) == ["before", "images", "after"]
    same(batch.groups[1].group, groups[1])


@pytest.mark.parametrize("excess", [-8, 0, 8])
async def test_a_payload_around_the_size_of_a_message_comes_through(make_table: MakeTable, excess: int) -> None:
    """No group falls between the unary call and the stream, nor a byte between two parts."""
    empty = len(group_to_wire(make_group("a", columns={"x": np.zeros(0, np.uint8)}))[1])
    group = make_group("a", columns={"x": np.zeros(MESSAGE_BYTES + excess - empty, np.uint8)})
    assert len(group_to_wire(group)[1]) == MESSAGE_BYTES + excess
    table = await make_table()
    await table.insert_many([group, make_group("b")])
    batch = await table.take(2)
    same(batch.groups[0].group, group)
    assert ids(batch) == ["a", "b"]


async def test_large_headers_of_small_groups_come_through(make_table: MakeTable) -> None:
    """Annotations can outweigh tokens; messages stay below gRPC's limit all the same."""
    table = await make_table(fill="keep")
    tags = {f"note-{number}": "n" * 2000 for number in range(20)}
    await table.insert_many([make_group(f"g{number}", tags=tags) for number in range(200)])
    batch = await table.take(200)
    assert all(delivered.group.tags == tags for delivered in batch.groups)


@pytest.mark.parametrize("extra", [1_000, 5_000_000], ids=["unary", "stream"])
async def test_a_group_above_the_limit_of_the_table_is_refused(make_table: MakeTable, extra: int) -> None:
    """max_group_bytes holds however the group travels; its neighbours are not affected."""
    table = await make_table(max_group_bytes=900)
    large = make_group("large", columns={"x": np.zeros(extra, np.uint8)})
    size = len(group_to_wire(large)[1])
    results = await table.insert_many([make_group("a"), large, make_group("b")])
    assert [result.outcome for result in results] == [
        InsertOutcome.INSERTED, InsertOutcome.REFUSED, InsertOutcome.INSERTED,
    ]  # fmt: skip
    error = results[1].error
    assert isinstance(error, GroupTooLargeError)
    assert f"group large: its payload is {size} bytes" in str(error)
    assert "takes at most 900; shorten the responses or raise max_group_bytes" in str(error)
    assert await table.locate("a", "large", "b") == [GroupState.FRESH, GroupState.UNKNOWN, GroupState.FRESH]
    assert len(list(table.redis.scan_iter(f"gr1:payload:{table.run}/*"))) == 2


async def test_an_ineffective_group_above_the_limit_is_refused_too(make_table: MakeTable) -> None:
    """Whether a group fits does not depend on its rewards or on the way it travels."""
    table = await make_table(max_group_bytes=900)
    columns = {"x": np.zeros(1000, np.uint8)}
    with pytest.raises(GroupTooLargeError, match="group x: its payload is"):
        await table.insert(make_group("x", rewards=(1, 1), columns=columns))


@pytest.mark.slow
@pytest.mark.parametrize("client_kind", ["async"])
async def test_a_batch_of_300_megabytes_comes_through(make_table: MakeTable) -> None:
    """A whole training batch of long agentic groups, 18 of 17 MB."""
    table = await make_table()
    pixels = np.zeros(17_000_000, np.uint8)
    await table.insert_many(
        [make_group(f"g{number:02}", columns={"pixels": pixels}) for number in range(18)], timeout_s=60.0
    )
    batch = await table.take(18)
    assert ids(batch) == [f"g{number:02}" for number in range(18)]
    assert sum(delivered.group.columns["pixels"].nbytes for delivered in batch.groups) == 306_000_000
