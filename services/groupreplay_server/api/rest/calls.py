"""One call of the REST door: from a request to the messages of its RPC, and from what comes back to an answer."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Self

import orjson
from fastapi import Request
from google.protobuf.message import Message

from groupreplay.errors import GroupReplayError, InvalidRequestError
from groupreplay.group_messages import read_batch_response, read_groups_response
from groupreplay.parts import AssembledGroup, PartAssembler
from groupreplay.v1 import replay_service_pb2 as pb
from groupreplay_server.api.checked_call import CheckedCall
from groupreplay_server.api.operations import Operations, check_at_once
from groupreplay_server.api.rest.bodies import (
    MAX_GROUPS_BYTES,
    MAX_REQUEST_BYTES,
    parse,
    read_json,
    read_lines,
    real_from_text,
    set_from_text,
    while_caller_listens,
)
from groupreplay_server.api.rest.groups import group_from_json, group_to_json, log_ratios_to_json
from groupreplay_server.api.rest.routes import CALL_TIMEOUT_S, Answer, Body, Route, message_class
from groupreplay_server.api.rest.transcode import Json, check_known, fields_of, fill_message, mismatch, to_json
from groupreplay_server.limits import MAX_WAIT_S, check_range
from groupreplay_server.pieces import ArrivedPiece

MAX_STREAM_RESULTS = 65_536
"""Groups or pieces in one stream: their results are kept until its end, since few HTTP clients read while they send."""
_ITEMS = {Body.GROUPS: "groups", Body.PIECES: "pieces"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the query says of the call itself."""

    timeout_s: float
    columns_as_base64: bool = False

    @classmethod
    def read(cls, route: Route, request: Request) -> Self:
        """Return the options of a request.

        Raises:
            InvalidRequestError: there is none of this name, or a value is out of its range.
        """
        query = request.query_params
        check_known(query, query_names(route), "the query")
        timeout_s = real_from_text(query["timeout_s"], "timeout_s") if "timeout_s" in query else route.timeout_s
        check_range("timeout_s", timeout_s, 0, MAX_WAIT_S)
        columns = query.get("columns", "numbers")
        if columns not in {"numbers", "base64"}:
            raise mismatch("columns", columns, "one of numbers, base64")
        return cls(timeout_s=timeout_s, columns_as_base64=columns == "base64")


def query_names(route: Route) -> list[str]:
    """Return all names that a route's query may have."""
    return [*option_names(route), *route.query, *(route.open_fields if route.body is Body.QUERY else [])]


def option_names(route: Route) -> list[str]:
    """Return the names of a route's options."""
    return ["timeout_s", "columns"] if route.answer is Answer.GROUP_LINES else ["timeout_s"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request, the operations that it may use, and its options."""

    operations: Operations
    route: Route
    request: Request
    options: Options
    checked: CheckedCall

    @property
    def deadline_s(self) -> float:
        """Seconds until the answer must have begun; what the caller waits for has its own time within."""
        return self.options.timeout_s + (CALL_TIMEOUT_S if self.route.waits else 0)

    async def read_message(self) -> Message:
        """Return the RPC's request.

        Raises:
            InvalidRequestError: a field of it is unknown, or its value is of another type.
        """
        message: Message = message_class(self.route.request)()
        if self.route.body is Body.JSON:
            values = await read_json(self.request, MAX_REQUEST_BYTES)
            if isinstance(values, dict):
                check_known(values, self.route.open_fields, "the body")
            fill_message(message, values)
        else:
            for name in self.route.open_fields:
                if texts := self.request.query_params.getlist(name):
                    set_from_text(message, fields_of(message)[name], texts)
        self.set_path_fields(message)
        self.checked.check(message)
        if self.route.has_timeout_field:
            setattr(message, "timeout_s", self.options.timeout_s)  # noqa: B010  a field that not every message has
        return message

    def set_path_fields(self, message: Message) -> None:
        """Set what the path and the query say; refuse a body that says something else."""
        lines = self.route.body is Body.MESSAGE_LINES
        given_names = [name for name in self.route.query if name in self.request.query_params]
        texts = self.request.path_params | {name: self.request.query_params[name] for name in given_names}
        for name, text in texts.items():
            *above, last = self.route.field_of(name).split(".")
            if lines and not message.HasField(above[0]):
                continue  # a field of it would make it appear
            owner = message
            for step in above:
                owner = getattr(owner, step)
            given = getattr(owner, last)
            set_from_text(owner, fields_of(owner)[last], [text])
            if not lines and given and given != getattr(owner, last):
                raise InvalidRequestError(f"{name} is {given!r} in the body and {text!r} in the path; leave it out")

    # One object in, one out

    async def unary(self) -> Message:
        """Return the answer of an RPC that has one, to one message or to a body of groups."""
        if self.route.body is Body.MESSAGE_LINES:
            result: Message = await self.operations.method(self.route.rpc)(self._message_lines())
            return result
        if self.route.body in _ITEMS:
            return await self._store_items(_ITEMS[self.route.body])
        message = await self.read_message()
        answer: Message = await while_caller_listens(self.request, self.operations.method(self.route.rpc)(message))
        return answer

    async def _store_items(self, name: str) -> Message:
        values = await read_json(self.request, MAX_GROUPS_BYTES)
        if not isinstance(values, dict):
            raise mismatch("the body", values, "an object")
        check_known(values, [name], "the body")
        items = values.get(name, [])
        if not isinstance(items, list):
            raise mismatch(name, items, "an array")
        check_at_once(len(items), name, self.route.rpc)
        return await self._store([self._item(item, f"{name}[{index}]") for index, item in enumerate(items)])

    def _item(self, value: Json, where: str) -> AssembledGroup | ArrivedPiece:
        if self.route.body in {Body.GROUPS, Body.GROUP_LINES}:
            return group_from_json(value, where)
        if not isinstance(value, dict):
            raise mismatch(where, value, "an object")
        piece = pb.RolloutPiece()
        fill_message(piece, {name: item for name, item in value.items() if name != "rollouts"}, where)
        return ArrivedPiece(piece, group_from_json(value.get("rollouts"), f"{where}.rollouts"))

    async def _store(self, items: list[Any]) -> Message:
        run, table = self.request.path_params["run"], self.request.path_params["table"]
        if self.route.body in {Body.GROUPS, Body.GROUP_LINES}:
            return await self.operations.insert_groups(run, table, items)
        return await self.operations.push_pieces(run, table, items)

    # Lines in

    async def _message_lines(self) -> AsyncIterator[Message]:
        first = True
        async for lines in read_lines(self.request):
            for number, line in lines:
                message: Message = message_class(self.route.request)()
                fill_message(message, parse(line, f"line {number}"), f"line {number}")
                if first:
                    self.set_path_fields(message)
                first = False
                yield message

    async def _results(self) -> AsyncGenerator[dict[str, Json]]:
        """Store the items of an NDJSON body as they come; yield their results when the last has come."""
        run, table = self.request.path_params["run"], self.request.path_params["table"]
        await self.operations.check_table(run, table)
        results: list[dict[str, Json]] = []
        failure: Exception | None = None
        try:
            async for lines in read_lines(self.request):
                items, failure = self._items(lines, MAX_STREAM_RESULTS - len(results))
                answer = to_json(await self._store(items)) if items else {"results": []}
                results += [{"result": result, "durability": answer["durability"]} for result in answer["results"]]
                if failure is not None:
                    break
        except GroupReplayError as error:
            failure = error
        for result in results:
            yield result
        if failure is not None:
            raise failure

    def _items(self, lines: list[tuple[int, bytes]], most: int) -> tuple[list[Any], InvalidRequestError | None]:
        """Return the items of lines, up to the first that is none, and what is wrong with that."""
        items: list[Any] = []
        for number, line in lines:
            where = f"line {number}"
            try:
                if len(items) == most:
                    raise InvalidRequestError(
                        f"{where}: a stream takes {MAX_STREAM_RESULTS} lines; send the others in the next call"
                    )
                items.append(self._item(parse(line, where), where))
            except InvalidRequestError as error:
                return items, error
        return items, None

    # Lines out

    async def lines(self, message: Message | None) -> AsyncGenerator[bytes]:
        """Yield the lines of a streamed answer to a message, or to a body of lines; the closing one included."""
        count, closed = 0, False
        async with aclosing(self._objects(message)) as objects:
            async for item in objects:
                count += 1
                closed = "end" in item
                yield json_line(item)
        if not closed:
            yield json_line({"end": {"lines": count}})

    def _objects(self, message: Message | None) -> AsyncGenerator[dict[str, Json]]:
        if message is None:
            return self._results()
        messages = self.operations.method(self.route.rpc)(message)
        if self.route.answer is Answer.GROUP_LINES:
            return self._groups(messages)
        return self._messages(until(messages, self.options.timeout_s) if self.route.waits else messages)

    async def _groups(self, messages: AsyncGenerator[bytes]) -> AsyncGenerator[dict[str, Json]]:
        assembler = PartAssembler()
        has_batch = "batch" in self.route.method.output_type.fields_by_name
        read = read_batch_response if has_batch else read_groups_response
        async with aclosing(messages):
            async for data in messages:
                message = read(data)
                if message.batch is not None:
                    yield {"batch": to_json(message.batch)}
                for part in message.parts:
                    if (whole := assembler.add(part)) is not None:
                        yield self._delivered(whole)

    def _delivered(self, whole: AssembledGroup) -> dict[str, Json]:
        group = group_to_json(whole.header, whole.payload, as_base64=self.options.columns_as_base64)
        line = {"group": group, "delivery": to_json(whole.delivery) if whole.delivery is not None else None}
        if whole.log_ratios is not None:
            line["log_ratios"] = log_ratios_to_json(whole.log_ratios, as_base64=self.options.columns_as_base64)
        return line

    async def _messages(self, messages: AsyncGenerator[Any]) -> AsyncGenerator[dict[str, Json]]:
        answer: Any = message_class(self.route.method.output_type)
        async with aclosing(messages):
            async for message in messages:
                fields = to_json(answer.FromString(message) if isinstance(message, bytes) else message)
                yield {name: value for name, value in fields.items() if value not in (None, [])}


async def until(messages: AsyncGenerator[Any], timeout_s: float) -> AsyncGenerator[Any]:
    """Yield messages until timeout_s has passed, however many more there would be."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    async with aclosing(messages):
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    message = await anext(messages)
            except (TimeoutError, StopAsyncIteration):
                return
            yield message


def json_line(item: dict[str, Json]) -> bytes:
    """Return a line of NDJSON."""
    return orjson.dumps(item, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)
