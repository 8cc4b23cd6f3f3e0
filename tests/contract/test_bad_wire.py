"""What the SDK would not send is refused at the door with a typed error, and nothing changes."""

import re
from collections.abc import Callable, Iterable
from typing import Any, cast

import grpc
import numpy as np
import pytest
from samples import ids, make_group
from table_user import MakeTable, TableUser
from unchanged import unchanged

from groupreplay import GroupReplayError, GroupState
from groupreplay.convert import group_to_wire
from groupreplay.parts import MESSAGE_BYTES, split_group
from groupreplay.retry import error_from_rpc
from groupreplay.v1 import error_pb2, group_pb2, table_pb2
from groupreplay.v1 import replay_service_pb2 as pb
from groupreplay.v1.replay_service_pb2_grpc import ReplayServiceStub

pytestmark = pytest.mark.parametrize("client_kind", ["async"])

Header = group_pb2.GroupHeader


def rich_wire() -> tuple[Header, bytes]:
    """Return a valid group that has every column with a meaning of its own."""
    group = make_group(
        "bad",
        loss_mask=np.array([1, 1, 0, 1, 1, 1], np.bool_),
        version_spans=np.array([[0, 0]], np.int32),
        prompt_text="?",
        response_texts=("a", "b"),
        columns={"x": np.zeros((2, 3), np.float32)},
    )
    return group_to_wire(group)


def column(header: Header, name: str) -> group_pb2.Column:
    """Return a column of a header, to be changed."""
    return next(column for column in header.columns if column.name == name)


def change(of: str, **fields: Any) -> Callable[[Header], None]:
    """Return a change of a header's column."""

    def apply(header: Header) -> None:
        for field, value in fields.items():
            if field == "shape":
                column(header, of).shape[:] = value
            else:
                setattr(column(header, of), field, value)

    return apply


def set_fields(**fields: Any) -> Callable[[Header], None]:
    """Return a change of a header's fields; lists replace."""

    def apply(header: Header) -> None:
        for field, value in fields.items():
            if isinstance(value, list):
                getattr(header, field)[:] = value
            else:
                setattr(header, field, value)

    return apply


MALFORMED: dict[str, tuple[Callable[[Header], None], str]] = {
    "no group_id": (set_fields(group_id=""), "group_id '' is not 1 to 128 characters"),
    "bad group_id": (set_fields(group_id="a/b"), "group_id 'a/b' is not 1 to 128 characters"),
    "bad producer_id": (set_fields(producer_id="ä"), "producer_id 'ä' is not 1 to 128 characters"),
    "no prompt_id": (set_fields(prompt_id=""), "prompt_id '' is not 1 to 256 bytes long"),
    "long task": (set_fields(task="t" * 129), "is longer than 128 bytes"),
    "versions descend": (set_fields(policy_version_min=1), "policy versions 1 to 0 are not ascending in 0 to 1048575"),
    "version too large": (set_fields(policy_version_max=2**20), "0 to 1048576 are not ascending in 0 to 1048575"),
    "no rollouts": (set_fields(rewards=[]), "no rollouts; a group has at least one"),
    "unequal lengths": (set_fields(response_lengths=[6]), "1 response_lengths and 0 finish_reasons for 2 rewards"),
    "an empty response": (set_fields(response_lengths=[6, 0]), "an empty response; every response has at least one"),
    "a reward of NaN": (set_fields(rewards=[0, float("nan")]), r"rewards \[0.0, nan\] are not all finite"),
    "an infinite reward": (set_fields(rewards=[float("inf"), 0]), r"rewards \[inf, 0.0\] are not all finite"),
    "a finish reason of none": (set_fields(finish_reasons=[1, 0]), r"finish_reasons \[1, 0\] not known"),
    "an unknown finish reason": (set_fields(finish_reasons=[1, 99]), r"finish_reasons \[1, 99\] not known"),
    "other payload_bytes": (set_fields(payload_bytes=8), r"payload_bytes 8 in the header, \d+ came"),
    "other tokens": (
        set_fields(response_lengths=[3, 4]),
        r"'response_token_ids' is int32 of shape \[6\]; .* shape \[7\]",
    ),
    "other prompt": (set_fields(prompt_length=3), r"'prompt_token_ids' is int32 of shape \[2\]; .* shape \[3\]"),
    "no dtype": (change("x", dtype=0), "column 'x' has no known dtype"),
    "an unknown dtype": (change("x", dtype=77), "column 'x' has no known dtype"),
    "tokens as int64": (change("response_token_ids", dtype=group_pb2.INT64), "is int64 of shape .* needs int32"),
    "logprobs as float64": (change("behaviour_logprobs", dtype=group_pb2.FLOAT64), "is float64 .* needs float32"),
    "a mask of two dimensions": (
        change("loss_mask_runs", shape=[1, 3]),
        r"shape \[1, 3\].* needs int32 of shape \[any\]",
    ),
    "spans of one dimension": (change("version_spans", shape=[2]), r"needs int32 of shape \[any, 2\]"),
    "text lengths for others": (change("response_text_lengths", shape=[1]), r"needs int32 of shape \[2\]"),
    "a larger column": (
        change("x", shape=[2, 4]),
        r"its payload is \d+ bytes, its \d columns need \d+: it is truncated",
    ),
    "a gigantic column": (change("x", shape=[2**62, 2**62]), "at most 32 dimensions and 1099511627776 elements"),
    "an empty gigantic column": (change("x", shape=[0, 2**62, 2]), "at most 32 dimensions and 1099511627776 elements"),
    "a column of 33 dimensions": (change("x", shape=[1] * 33), "at most 32 dimensions"),
    "a column without a name": (change("x", name=""), "column names .* are not unique and non-empty"),
    "a column twice": (change("x", name="prompt_text"), "column names .* are not unique and non-empty"),
    "no tokens": (change("response_token_ids", name="y"), r"the payload has no column \['response_token_ids'\]"),
    "texts without lengths": (
        change("response_text_lengths", name="y"),
        "response_texts and response_text_lengths come",
    ),
}


async def failure(call: Any) -> GroupReplayError:
    """Return the typed error of a call that must fail."""
    with pytest.raises(grpc.RpcError) as raised:
        await call
    return error_from_rpc(raised.value, "the service")


async def insert_result(table: TableUser, stub: ReplayServiceStub, header: Header, payload: bytes) -> pb.InsertResult:
    """Insert a group as it is, and return what became of it."""
    group = group_pb2.RolloutGroup(header=header, payload=payload)
    response = await cast(Any, stub.Insert(pb.InsertRequest(groups=[group], **table.names)))
    [result] = response.results
    return cast(pb.InsertResult, result)


async def stream_results(stub: ReplayServiceStub, requests: Iterable[pb.InsertStreamRequest]) -> list[pb.InsertResult]:
    """Send a stream as it is, and return the results that came."""
    return [result async for response in cast(Any, stub.InsertStream(iter(requests))) for result in response.results]


async def test_the_rich_group_is_valid(make_table: MakeTable, stub: ReplayServiceStub) -> None:
    """What the other tests change one thing of is taken as it is."""
    table = await make_table()
    result = await insert_result(table, stub, *rich_wire())
    assert result.outcome == pb.INSERTED
    assert ids(await table.take(1)) == ["bad"]


@pytest.mark.parametrize("case", MALFORMED)
async def test_a_malformed_group_is_refused(make_table: MakeTable, stub: ReplayServiceStub, case: str) -> None:
    """The header is checked before anything is stored; its neighbours in the call are taken."""
    table = await make_table()
    header, payload = rich_wire()
    apply, message = MALFORMED[case]
    apply(header)
    async with unchanged(table):
        result = await insert_result(table, stub, header, payload)
    assert (result.outcome, error_pb2.ErrorReason.Name(result.reason)) == (pb.REFUSED, "INVALID_GROUP")
    assert re.search(message, result.message), result.message


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda payload: payload[:-8], "it is truncated, or the header belongs to another payload"),
        (lambda payload: payload + bytes(8), "it is truncated, or the header belongs to another payload"),
        (lambda payload: b"PAR1" + payload[4:], "begins with b'PAR1.*it was not made by groupreplay"),
        (lambda _: b"x", "group bad: its payload is 1 bytes"),
        (lambda _: b"", "its payload was left out, but the table will deliver it"),
    ],
)
async def test_a_foreign_or_truncated_payload_is_refused(
    make_table: MakeTable, stub: ReplayServiceStub, damage: Callable[[bytes], bytes], message: str
) -> None:
    """Bytes that are not what the header says never reach a trainer."""
    table = await make_table()
    header, payload = rich_wire()
    damaged = damage(payload)
    header.payload_bytes = len(damaged)
    async with unchanged(table):
        result = await insert_result(table, stub, header, damaged)
    assert error_pb2.ErrorReason.Name(result.reason) == "INVALID_GROUP"
    assert re.search(message, result.message), result.message


async def test_an_ineffective_group_may_leave_its_payload_out(make_table: MakeTable, stub: ReplayServiceStub) -> None:
    """Where the table never delivers it, the header is enough, in a unary call and in a stream."""
    table = await make_table()
    unary, _ = group_to_wire(make_group("x", rewards=(1, 1)))
    streamed, _ = group_to_wire(make_group("y", rewards=(1, 1)))
    assert (await insert_result(table, stub, unary, b"")).outcome == pb.INSERTED
    part = group_pb2.GroupPart(header=streamed, header_only=True)
    [result] = await stream_results(stub, [pb.InsertStreamRequest(parts=[part], **table.names)])
    assert result.outcome == pb.INSERTED
    assert (await table.describe()).fresh == 2


async def test_more_groups_than_one_insert_takes_are_refused_together(
    make_table: MakeTable, stub: ReplayServiceStub
) -> None:
    """The limit of the unary call is 1024 groups."""
    table = await make_table()
    wires = [group_to_wire(make_group(f"g{number}", rewards=(1, 1)))[0] for number in range(1025)]
    request = pb.InsertRequest(groups=[group_pb2.RolloutGroup(header=header) for header in wires], **table.names)
    async with unchanged(table):
        error = await failure(stub.Insert(request))
    assert error.reason == "INVALID_REQUEST"
    assert str(error) == "1025 groups in one Insert, at most 1024"


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (5_000_000, r"InsertRequest of 5\d+ bytes: a message has at most 4194304; .*in parts, with InsertStream"),
        (20_000_000, r"larger than max \(20\d+ vs. 16777216\); send fewer items in a call, .* insert_many\(\) does"),
    ],
)
async def test_a_message_above_the_limit_is_refused(
    make_table: MakeTable, stub: ReplayServiceStub, size: int, message: str
) -> None:
    """Who sends a large group in one message is told what to do, by the service or, far above, by the client."""
    table = await make_table()
    header, payload = group_to_wire(make_group("large", columns={"x": np.zeros(size, np.uint8)}))
    request = pb.InsertRequest(groups=[group_pb2.RolloutGroup(header=header, payload=payload)], **table.names)
    async with unchanged(table):
        error = await failure(stub.Insert(request))
    assert error.reason == "MESSAGE_TOO_LARGE"
    assert re.search(message, str(error)), error


def broken_streams() -> dict[str, tuple[Callable[[], list[group_pb2.GroupPart]], str]]:
    """Return streams of parts that do not fit together, by what is wrong."""
    whole, payload = group_to_wire(make_group("bad", columns={"x": np.zeros(MESSAGE_BYTES + 1_000_000, np.uint8)}))

    def parts() -> list[group_pb2.GroupPart]:
        return list(split_group(whole, payload))

    return {
        "begins in the middle": (
            lambda: parts()[1:],
            "continues a group that never began: its first part has no header",
        ),
        "ends in the middle": (lambda: parts()[:1], r"group bad: the stream ended with \d+ payload bytes missing"),
        "next begins early": (
            lambda: [parts()[0], *split_group(*group_to_wire(make_group("next")))],
            r"group bad: \d+ payload bytes are missing when group next begins",
        ),
        "too many bytes": (
            lambda: [*parts()[:-1], group_pb2.GroupPart(payload=bytes(len(parts()[-1].payload) + 5))],
            "group bad: 5 bytes more than its payload_bytes",
        ),
        "header_only with bytes": (
            lambda: [group_pb2.GroupPart(header=whole, header_only=True, payload=b"x")],
            "group bad: 1 bytes more than its payload_bytes",
        ),
    }


@pytest.mark.parametrize("case", broken_streams())
async def test_a_broken_stream_ends_with_an_error(make_table: MakeTable, stub: ReplayServiceStub, case: str) -> None:
    """Groups that were complete before it are stored and answered; of the broken one nothing stays."""
    table = await make_table()
    make_parts, message = broken_streams()[case]
    first = list(split_group(*group_to_wire(make_group("whole"))))
    requests = [pb.InsertStreamRequest(parts=first, **table.names)]
    requests += [pb.InsertStreamRequest(parts=[part]) for part in make_parts()]
    error = await failure(stream_results(stub, requests))
    assert error.reason == "INVALID_GROUP"
    assert re.search(message, str(error)), error
    assert await table.locate("whole", "bad", "next") == [GroupState.FRESH, GroupState.UNKNOWN, GroupState.UNKNOWN]
    assert len(list(table.redis.scan_iter(f"gr1:payload:{table.run}/*"))) == 1


async def test_a_stream_to_an_unknown_table_ends_at_once(make_table: MakeTable, stub: ReplayServiceStub) -> None:
    """The first message names the table, and is answered before the rest is read."""
    table = await make_table()
    parts = list(split_group(*group_to_wire(make_group("a"))))
    async with unchanged(table):
        error = await failure(stream_results(stub, [pb.InsertStreamRequest(run=table.run, table="no", parts=parts)]))
    assert error.reason == "UNKNOWN_TABLE"


async def test_a_stream_without_messages_is_no_error(make_table: MakeTable, stub: ReplayServiceStub) -> None:
    """Nothing in, nothing out."""
    table = await make_table()
    async with unchanged(table):
        assert await stream_results(stub, []) == []


async def test_a_fill_rule_of_a_newer_protocol_is_refused(make_table: MakeTable, stub: ReplayServiceStub) -> None:
    """An enum's number that this version does not know is the caller's error, not a fault of the service."""
    table = await make_table()
    for config in (table_pb2.TableConfig(fill=cast(Any, 77)), table_pb2.TableConfig(sampler=cast(Any, 77))):
        async with unchanged(table):
            error = await failure(stub.CreateTable(pb.CreateTableRequest(run=table.run, table="new", config=config)))
        assert error.reason == "INVALID_REQUEST"
        assert "77 is unknown" in str(error)


async def test_absent_fields_of_a_configuration_are_the_defaults(
    make_table: MakeTable, stub: ReplayServiceStub
) -> None:
    """A client in another language that sets nothing gets what TableConfig() gives."""
    table = await make_table()
    request = pb.CreateTableRequest(config=table_pb2.TableConfig(), **table.names)
    response = await cast(Any, stub.CreateTable(request))
    assert not response.created
    empty = await cast(Any, stub.CreateTable(pb.CreateTableRequest(run=table.run, table="no-config")))
    assert empty.created
