"""What REST says and takes, literally: the JSON, the statuses and the problems that a foreign client builds on."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any, cast

import httpx
import numpy as np
import pytest
import redis
from processes import ServerProcess
from rest_client import LINES
from rest_json import write_group
from samples import effective, ids, make_group
from table_user import MakeTable, TableUser
from unchanged import unchanged

from groupreplay import GroupState
from groupreplay.convert import group_to_wire
from groupreplay.errors import ERRORS
from groupreplay_server.api.rest.bodies import MAX_GROUPS_BYTES, MAX_REQUEST_BYTES

pytestmark = pytest.mark.parametrize("client_kind", ["rest"])

GROUP: dict[str, Any] = {
    "group_id": "g", "prompt_id": "p", "rewards": [0, 0.1], "response_lengths": [1, 2],
    "finish_reasons": ["stop", "length"],
    "prompt_token_ids": [7], "response_token_ids": [4, 5, 6], "behaviour_logprobs": [-0.1, -2, -0.3],
    "loss_mask": [True, False, 1], "version_spans": [[0, 0]], "prompt_text": "?", "response_texts": ["a", "é"],
    "columns": {"x": {"dtype": "float32", "shape": [1, 3], "values": ["NaN", "-Infinity", 0.1]}}, "tags": {"k": "v"},
}  # fmt: skip


@pytest.fixture
async def http(service: ServerProcess) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of the service."""
    async with httpx.AsyncClient(base_url=f"http://{service.http_address}", timeout=30) as opened:
        yield opened


@pytest.fixture
async def table(make_table: MakeTable) -> TableUser:
    """A table of the test's own."""
    return await make_table()


def path(table: TableUser, rest: str = "") -> str:
    """Return a path below a table."""
    return f"/v1/runs/{table.run}/tables/{table.table}{rest}"


def problem_of(response: httpx.Response, reason: str, status: int | None = None) -> str:
    """Check that an answer is the problem of a reason; return what it says."""
    problem = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert problem.keys() == {"type", "title", "status", "detail", "reason", "retryable"}
    assert (problem["reason"], problem["type"]) == (reason, f"urn:groupreplay:error:{reason}")
    assert response.status_code == problem["status"] == (status or ERRORS[reason].http_status)
    return str(problem["detail"])


def lines_of(response: httpx.Response) -> list[dict[str, Any]]:
    """Return the objects of an NDJSON answer."""
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


# Paths


async def test_paths_and_verbs_that_are_not_there_are_problems_too(http: httpx.AsyncClient, table: TableUser) -> None:
    """A 404 of a typing error and one of a table can be told apart by their words, and a 405 names what goes."""
    assert "there is nothing here" in problem_of(await http.get("/v1/nothing"), "INVALID_REQUEST", 404)
    assert "there is no table" in problem_of(await http.get(path(table, "-not")), "UNKNOWN_TABLE")
    wrong = await http.delete(path(table, "/groups"))
    assert "this path takes GET, POST" in problem_of(wrong, "INVALID_REQUEST", 405)
    assert wrong.headers["allow"] == "GET, POST"


# Groups as JSON


async def test_a_group_comes_back_as_it_was_sent(http: httpx.AsyncClient, table: TableUser) -> None:
    """Numbers are arrays, texts are texts, enums are the SDK's words, and what is not finite is a word too."""
    answer = await http.post(path(table, "/groups"), json={"groups": [GROUP]})
    result = {"group_id": "g", "outcome": "inserted", "reason": None, "message": ""}
    assert answer.json() == {"results": [result], "durability": "memory"}
    first, last = lines_of(await http.post(path(table, "/groups/read"), json={"group_ids": ["g"]}))
    assert first["group"] == GROUP | {
        "loss_mask": [1, 0, 1], "task": "", "producer_id": "", "policy_version_min": 0, "policy_version_max": 0,
        "prompt_length": 1, "created_at_ms": 0, "priority": None,
    }  # fmt: skip
    assert (first["delivery"]["staleness"], first["delivery"]["times_sampled"]) == (0, 0)
    assert last == {"end": {"lines": 1}}


async def test_columns_travel_as_base64_on_request(http: httpx.AsyncClient, table: TableUser) -> None:
    """Little-endian bytes: exact, and many times cheaper than numbers."""
    columns = {
        "prompt_token_ids": "BwAAAA==", "response_token_ids": "BAAAAAUAAAAGAAAA",
        "behaviour_logprobs": "zczMvQAAAMCamZm+", "loss_mask": "AQAB", "version_spans": "AAAAAAAAAAA=",
        "columns": {"x": {"dtype": "float32", "shape": [1, 3], "values": "AADAfwAAgP/NzMw9"}},
    }  # fmt: skip
    await http.post(path(table, "/groups"), json={"groups": [GROUP | columns]})
    plain, _ = lines_of(await http.post(path(table, "/groups/read"), json={"group_ids": ["g"]}))
    assert plain["group"]["columns"] == GROUP["columns"]
    assert plain["group"]["behaviour_logprobs"] == GROUP["behaviour_logprobs"]
    encoded, _ = lines_of(await http.post(path(table, "/groups/read?columns=base64"), json={"group_ids": ["g"]}))
    assert {name: encoded["group"][name] for name in columns} == columns


async def test_a_batch_is_a_header_a_line_for_each_group_and_an_end(http: httpx.AsyncClient, table: TableUser) -> None:
    """A stream that was cut has no end, and cannot be mistaken for a whole one."""
    await table.insert(*effective("a", "b"))
    request = {"batch_size": 2, "lease_id": "mine"}
    header, one, two, end = lines_of(await http.post(path(table, "/batches/next"), json=request))
    assert (header["batch"]["lease_id"], header["batch"]["groups"], header["batch"]["shortfall"]) == ("mine", 2, 0)
    assert [line["group"]["group_id"] for line in (one, two)] == ["a", "b"]
    assert one["delivery"] == {
        "source": "fresh", "staleness": 0, "times_sampled": 1, "probability": 1.0, "redeliveries": 0,
        "importance_weight": 1.0,
    }  # fmt: skip
    assert end == {"end": {"lines": 3}}


async def test_a_group_without_its_payload_shows_its_header(http: httpx.AsyncClient, table: TableUser) -> None:
    """An ineffective group may leave its tokens out, coming and going."""
    header_only = {name: GROUP[name] for name in ("group_id", "prompt_id", "response_lengths")} | {"rewards": [1, 1]}
    answer = await http.post(path(table, "/groups"), json={"groups": [header_only]})
    assert answer.json()["results"][0]["outcome"] == "inserted"
    first, _ = lines_of(await http.post(path(table, "/groups/read"), json={"group_ids": ["g"]}))
    assert first["group"]["rewards"] == [1, 1]
    assert "prompt_token_ids" not in first["group"]


async def test_a_table_is_made_once_and_its_configuration_can_be_sent_back(
    http: httpx.AsyncClient, table: TableUser
) -> None:
    """201 is for a new one; null is the default, coming and going."""
    new = await http.put(path(table, "-2"), json={"config": {"fill": "resample", "max_staleness": 3}})
    again = await http.put(path(table, "-2"), json={"config": {"fill": "resample", "max_staleness": 3, "ttl_s": None}})
    assert (new.status_code, again.status_code, again.json()["created"]) == (201, 200, False)
    config = (await http.get(path(table, "-2"))).json()["table"]["config"]
    assert (config["fill"], config["max_staleness"], config["ttl_s"]) == ("resample", 3, None)
    changed = await http.put(path(table, "-2/config"), json={"config": config | {"ttl_s": 60}})
    assert changed.json()["table"]["config"] == config | {"ttl_s": 60.0}


# What is refused

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a field nobody knows": ({"rewardz": [1]}, r"groups[0] has no field 'rewardz'; it has group_id, prompt_id"),
    "a string for a number": ({"rewards": ["x", 1]}, "groups[0].rewards[0] is \"x\", not a number"),
    "true for a number": ({"rewards": [True, 1]}, "groups[0].rewards[0] is true, not a number"),
    "no array": ({"response_lengths": 3}, "groups[0].response_lengths is 3, not an array"),
    "a fraction for a token": ({"prompt_token_ids": [1.5]}, "groups[0].prompt_token_ids[0] is 1.5, not an integer"),
    "a token above 32 bits": ({"prompt_token_ids": [2**31]}, "[0] is 2147483648, not a number that fits int32"),
    "a token above 64 bits": ({"prompt_token_ids": [2**63]}, "9223372036854775808, not a number that fits int32"),
    "a log probability above 32 bits": ({"behaviour_logprobs": [-1e39, 0, 0]}, "[0] is -1e+39, not a number that fits"),
    "a reward above 32 bits": ({"rewards": [1e39, 0]}, "rewards[0] is 1e+39, not a number that fits 32 bits"),
    "an unknown word": ({"finish_reasons": ["done", "stop"]}, '[0] is "done", not one of stop, length, abort'),
    "no base64": ({"prompt_token_ids": "***"}, "groups[0].prompt_token_ids is not base64"),
    "half a number": ({"prompt_token_ids": "BwA="}, "is 2 bytes of base64, not a multiple of int32's size"),
    "a mask of 2": ({"loss_mask": [1, 2, 0]}, "groups[0].loss_mask[1] is 2, not 0 or 1"),
    "spans that are no pairs": ({"version_spans": [[0]]}, "version_spans is not an array of pairs"),
    "texts that are none": ({"response_texts": [1, 2]}, "groups[0].response_texts[0] is 1, not a string"),
    "a column of no dtype": ({"columns": {"x": {"values": [1]}}}, "columns['x'].dtype is null, not one of float16"),
    "a column of other shape": (
        {"columns": {"x": {"dtype": "uint8", "shape": [2, 2], "values": [1]}}}, "has 1 values for the shape [2, 2]",
    ),
    "a column of a gigantic shape": (
        {"columns": {"x": {"dtype": "uint8", "shape": [2**62, 2**62], "values": [1]}}}, "has 1 values for the shape",
    ),
    "a column of a negative shape": (
        {"columns": {"x": {"dtype": "uint8", "shape": [-1], "values": [1]}}}, "not an array of integers of at least 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
async def test_a_group_of_the_wrong_types_is_refused(http: httpx.AsyncClient, table: TableUser, case: str) -> None:
    """The whole call changes nothing, and is told which value of which group."""
    change, words = REFUSED[case]
    async with unchanged(table):
        answer = await http.post(path(table, "/groups"), json={"groups": [GROUP | change]})
    assert words in problem_of(answer, "INVALID_REQUEST")


async def test_a_group_that_contradicts_itself_does_not_hold_up_its_neighbours(
    http: httpx.AsyncClient, table: TableUser
) -> None:
    """The door checks values as the SDK does, group by group."""
    bad = {
        "lengths": GROUP | {"group_id": "a", "response_lengths": [1, 1]},
        "positive": GROUP | {"group_id": "b", "behaviour_logprobs": [1, 0, 0]},
        "no tokens": {name: value for name, value in GROUP.items() if name != "response_token_ids"} | {"group_id": "c"},
        "prompt": GROUP | {"group_id": "d", "prompt_length": 2},
        "not finite": GROUP | {"group_id": "e", "rewards": ["NaN", 1]},
        "reserved": GROUP | {"group_id": "f", "columns": {"loss_mask_runs": {"dtype": "int32", "values": [1]}}},
    }
    answer = await http.post(path(table, "/groups"), json={"groups": [*bad.values(), GROUP]})
    results = answer.json()["results"]
    assert [it["reason"] for it in results] == ["INVALID_GROUP"] * 6 + [None]
    for result, words in zip(
        results,
        ("sum to the 3", "at most 0", "no column", "prompt_length is 2", "not all finite", "reserved"),
        strict=False,
    ):
        assert words in result["message"]
    assert await table.locate("a", "g") == [GroupState.UNKNOWN, GroupState.FRESH]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"groups": [', "the body is no JSON: unexpected end of data"),
        (b"\xff\xfe", "the body is no JSON"),
        (b'{"groups": [NaN]}', "the body is no JSON"),
        (b"[" * 2000, "the body is no JSON"),
        (b"[]", "the body is an array, not an object"),
        (b'{"groups": {}}', "groups is an object, not an array"),
        (b'{"groups": [null]}', "groups[0] is null, not an object"),
        (b'{"groupz": []}', "the body has no field 'groupz'; it has groups"),
        (b'"' + b"x" * 200 + b'"', 'the body is "xxx'),
    ],
)
async def test_a_body_that_is_no_request_is_refused(
    http: httpx.AsyncClient, table: TableUser, body: bytes, words: str
) -> None:
    """Truncated, of another encoding, too deep, or of another shape."""
    async with unchanged(table):
        answer = await http.post(path(table, "/groups"), content=body, headers={"Content-Type": "application/json"})
    assert words in problem_of(answer, "INVALID_REQUEST")


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("limit=ten", 'limit is "ten", not an integer'),
        ("limit=1&limit=2", "limit comes 2 times in the query; give it once"),
        ("states=freshh", 'states[0] is "freshh", not one of unknown, fresh'),
        ("effective=1", 'effective is "1", not true or false'),
        ("sort=asc", "the query has no field 'sort'; it has timeout_s, states, task"),
        ("timeout_s=soon", 'timeout_s is "soon", not a number'),
        ("timeout_s=nan", "timeout_s nan is not in 0 to 86400"),
        ("timeout_s=-1", "timeout_s -1.0 is not in 0 to 86400"),
    ],
)
async def test_a_query_that_is_no_request_is_refused(
    http: httpx.AsyncClient, table: TableUser, query: str, words: str
) -> None:
    """A misspelt filter that were ignored would list everything."""
    assert words in problem_of(await http.get(path(table, f"/groups?{query}")), "INVALID_REQUEST")


async def test_a_run_in_the_body_must_be_that_of_the_path(http: httpx.AsyncClient, table: TableUser) -> None:
    """Nobody publishes for another run by mistake."""
    request = {"policy": {"run": "other", "version": 1}}
    answer = await http.post(f"/v1/runs/{table.run}/policy/advance", json=request)
    assert "run is 'other' in the body" in problem_of(answer, "INVALID_REQUEST")


@pytest.mark.parametrize("given", ["", "text/plain", "application/x-www-form-urlencoded", "application/json"])
async def test_a_body_of_another_type_is_refused(http: httpx.AsyncClient, table: TableUser, given: str) -> None:
    """Any page may make a browser post text or a form to us, unasked; and compressed bodies could be of any size."""
    await table.insert(*effective("a"))
    headers = {"Content-Type": given} | ({"Content-Encoding": "gzip"} if given == "application/json" else {})
    async with unchanged(table):
        answer = await http.post(path(table, "/reset"), content=b"", headers=headers)
    assert "send Content-Type: application/json" in problem_of(answer, "INVALID_REQUEST", 415)


@pytest.mark.parametrize(("call", "limit"), [("groups", MAX_GROUPS_BYTES), ("groups/locate", MAX_REQUEST_BYTES)])
async def test_a_body_that_is_too_large_is_refused_by_what_it_announces(
    service: ServerProcess, table: TableUser, call: str, limit: int
) -> None:
    """Before a byte of it was read."""
    host, _, port = service.http_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        f"POST {path(table)}/{call} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {limit + 1}\r\n\r\n".encode()
    )
    async with asyncio.timeout(60):
        answer = await reader.readuntil(b"}")
    writer.close()
    assert b"413" in answer.partition(b"\r\n")[0]
    assert f"the body has {limit + 1} bytes or more, at most {limit} are read".encode() in answer


async def test_a_body_that_does_not_come_is_not_waited_for(service: ServerProcess, table: TableUser) -> None:
    """Its sender is told that it was the body that took too long, and the connection is closed."""
    host, _, port = service.http_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST {path(table)}/groups?timeout_s=0.2 HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n"
    writer.write(f'{head}Content-Type: application/json\r\n\r\n{{"groups"'.encode())
    async with asyncio.timeout(60):
        answer = await reader.read()
    writer.close()
    assert b"504" in answer.partition(b"\r\n")[0]
    assert b"the body of Insert did not come within timeout_s" in answer


@pytest.mark.parametrize("megabytes", [MAX_REQUEST_BYTES // 2**20, 10**6])
async def test_a_body_that_hides_its_size_is_refused_at_the_limit(
    http: httpx.AsyncClient, table: TableUser, megabytes: int
) -> None:
    """Chunks are counted as they come, and who goes on sending is hung up on."""

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(megabytes):
            yield b" " * 2**20
        yield b" "

    json_type = {"Content-Type": "application/json"}
    try:
        answer = await http.post(path(table, "/groups/locate"), content=chunks(), headers=json_type)
    except httpx.TransportError:
        assert megabytes == 10**6  # it was busy sending, and did not hear why
    else:
        assert f"at most {MAX_REQUEST_BYTES} are read" in problem_of(answer, "MESSAGE_TOO_LARGE")


async def test_a_group_above_the_limit_of_its_table_is_refused(http: httpx.AsyncClient, make_table: MakeTable) -> None:
    """As over gRPC, whether it comes in a body or in a stream."""
    table = await make_table(max_group_bytes=200)
    group = write_group(*group_to_wire(make_group("large", columns={"x": np.zeros(500, np.uint8)})))
    async with unchanged(table):
        whole = await http.post(path(table, "/groups"), json={"groups": [group]})
        stream = await http.post(path(table, "/groups/stream"), content=json.dumps(group), headers=LINES)
    assert whole.json()["results"][0]["reason"] == "GROUP_TOO_LARGE"
    assert lines_of(stream)[0]["result"]["reason"] == "GROUP_TOO_LARGE"


# Streams


async def test_a_stream_with_a_broken_line_keeps_what_came_before(http: httpx.AsyncClient, table: TableUser) -> None:
    """Its groups are answered, then the line is named, and there is no end."""
    body = "\n".join([json.dumps(GROUP), "", json.dumps(GROUP | {"group_id": "h"})[:-9], json.dumps(GROUP)])
    stored, broken = lines_of(await http.post(path(table, "/groups/stream"), content=body, headers=LINES))
    assert stored["result"]["outcome"] == "inserted"
    assert (broken["error"]["reason"], broken["error"]["status"]) == ("INVALID_REQUEST", 422)
    assert "line 3 is no JSON" in broken["error"]["detail"]
    assert await table.locate("g", "h") == [GroupState.FRESH, GroupState.UNKNOWN]


async def test_a_stream_to_an_unknown_table_is_refused_with_its_status(
    http: httpx.AsyncClient, table: TableUser
) -> None:
    """Nothing was stored, so nothing has to be said but that; and nothing in is nothing out."""
    answer = await http.post(path(table, "-not/groups/stream"), content=json.dumps(GROUP), headers=LINES)
    problem_of(answer, "UNKNOWN_TABLE")
    nothing = await http.post(path(table, "/groups/stream"), content=b"\n\n", headers=LINES)
    assert lines_of(nothing) == [{"end": {"lines": 0}}]


@pytest.mark.uncached
async def test_an_error_in_the_middle_of_an_answer_is_its_last_line(
    http: httpx.AsyncClient, table: TableUser, clean_redis: redis.Redis
) -> None:
    """The status is long gone: groups, then a problem, and no end."""
    names = [f"g{number}" for number in range(70)]  # more than are read at once, and larger than a message together
    await table.insert_many(make_group(name, columns={"x": np.zeros(60_000, np.uint8)}) for name in names)
    batch = await table.take(70, lease_id="l")
    assert ids(batch) == names
    [last_payload] = clean_redis.scan_iter(f"gr1:payload:{table.run}/*g69*")
    kept = clean_redis.get(last_payload)
    clean_redis.delete(last_payload)
    answer = await http.post(path(table, "/leases/l/read?columns=base64"), json={"group_ids": names})
    *groups, last = lines_of(answer)
    assert answer.status_code == 200
    assert [line["group"]["group_id"] for line in groups] == names[: len(groups)]
    assert len(groups) > 0
    assert (last["error"]["reason"], last["error"]["status"]) == ("PAYLOAD_LOST", 500)
    clean_redis.set(last_payload, cast(bytes, kept))


async def test_watching_the_policy_ends_when_the_caller_said(http: httpx.AsyncClient, table: TableUser) -> None:
    """Proxies and fuzzers do not like answers without end; each newer version is a line."""
    await table.advance(1)
    watch = f"/v1/runs/{table.run}/policy/watch?after_version="
    policy, end = lines_of(await http.get(f"{watch}0&timeout_s=5"))
    assert (policy["policy"]["version"], end) == (1, {"end": {"lines": 1}})
    assert lines_of(await http.get(f"{watch}1&timeout_s=0.1")) == [{"end": {"lines": 0}}]


async def test_a_trainer_that_hangs_up_while_it_waits_wants_nothing_any_more(
    http: httpx.AsyncClient, make_table: MakeTable
) -> None:
    """Producers must not generate for a batch that nobody will take."""
    table = await make_table(ahead_groups=0)
    request = {"batch_size": 3, "lease_id": "gone"}
    waiting = asyncio.create_task(http.post(path(table, "/batches/next?timeout_s=3600"), json=request, timeout=None))
    await table.until(missing=3)
    waiting.cancel()
    await table.until(missing=0)
    assert (await table.admit("producer", 8)).groups == 0


async def test_a_snapshot_is_a_file_that_restores(http: httpx.AsyncClient, table: TableUser) -> None:
    """What curl writes to a file can be sent back under another name; a cut file cannot."""
    await table.insert(*effective("a", "b"))
    snapshot = (await http.get(path(table, "/snapshot"))).content
    parts = [json.loads(line) for line in snapshot.splitlines()]
    assert (parts[0]["header"]["table"]["fresh"], parts[-1]["end"]["groups"]) == (2, 2)
    cut = b"".join(snapshot.splitlines(keepends=True)[:-1])
    answer = await http.post(path(table, "-cut/restore?restore_id=x"), content=cut, headers=LINES)
    assert "the snapshot ends in the middle" in problem_of(answer, "INVALID_REQUEST")
    copy = await http.post(path(table, "-copy/restore?restore_id=y"), content=snapshot, headers=LINES)
    assert (copy.json()["table"]["table"], copy.json()["table"]["fresh"]) == ("train-copy", 2)


async def test_log_ratios_are_numbers_or_base64_both_ways(http: httpx.AsyncClient, table: TableUser) -> None:
    """A plain list with "NaN" for what is none, or the bytes of float16; what is neither is refused."""
    await table.insert(*effective("a"))
    numbers: list[float | str] = [0.5, -0.25, 0, "NaN", 1.5, -14.0]
    packed = base64.b64encode(np.array([float(it) for it in numbers], "<f2").tobytes()).decode()
    read = path(table, "/groups/read")
    for sent in (numbers, packed):
        feedback = {"feedback": [{"group_id": "a", "log_ratios": sent}]}
        response = await http.post(path(table, "/groups/feedback"), json=feedback)
        assert response.json() == {"unknown_group_ids": []}
        for columns, values in (("numbers", numbers), ("base64", packed)):
            answer = await http.post(f"{read}?columns={columns}", json={"group_ids": ["a"], "log_ratios": True})
            line = json.loads(answer.text.splitlines()[0])
            assert line["log_ratios"] == {"values": values, "policy_version": 0, "step": None}
    answer = await http.post(read, json={"group_ids": ["a"]})
    assert "log_ratios" not in json.loads(answer.text.splitlines()[0])
    for wrong, words in (
        ([0.5, 1e9], "feedback[0].log_ratios[1] is 1000000000.0, not a number that fits float16"),
        ([True], "feedback[0].log_ratios[0] is true, not a number"),
        ("AAAA", "3 bytes of base64, not a multiple of float16's size"),
        (7, "not an array of numbers, or base64 of float16s"),
        ([0.5], "group a: 1 log_ratios came, and its responses have 6 tokens"),
    ):
        refused: dict[str, Any] = {"feedback": [{"group_id": "a", "log_ratios": wrong}]}
        response = await http.post(path(table, "/groups/feedback"), json=refused)
        assert words in problem_of(response, "INVALID_REQUEST")
