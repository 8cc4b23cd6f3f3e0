"""The OpenAPI document of the REST door, from the descriptors of the protocol, the routes, and the table of errors.

scripts/generate_openapi.py adds the comments of protos/ and writes openapi.json, which the service serves as it is.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, cast

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from groupreplay.errors import ERRORS
from groupreplay.payload import DTYPES
from groupreplay.v1 import group_pb2, replay_service_pb2
from groupreplay_server.api.rest.bodies import JSON_TYPE, LINES_TYPE
from groupreplay_server.api.rest.calls import option_names
from groupreplay_server.api.rest.examples import ANSWERS, GROUP, LINES, PATH, QUERIES, REQUESTS
from groupreplay_server.api.rest.groups import HEADER_FIELDS, TOKEN_COLUMNS
from groupreplay_server.api.rest.problems import MEDIA_TYPE, RETRY_AFTER_S, problem
from groupreplay_server.api.rest.routes import ROUTES, Answer, Body, Route
from groupreplay_server.api.rest.transcode import COLUMNS, INTEGERS, Json, is_map, to_json, words_of

Schema = dict[str, Json]

_ALWAYS = (
    "INVALID_REQUEST", "STORE_UNAVAILABLE", "SHUTTING_DOWN", "INTERNAL", "UNAUTHENTICATED", "PERMISSION_DENIED",
    "RATE_LIMITED",
)  # fmt: skip
_LEASE = ("UNKNOWN_LEASE", "LEASE_EXPIRED", "STEP_CONFLICT")
_BATCH = ("BATCH_NOT_READY", "STEP_CONFLICT", "LEASE_EXPIRED", "PAYLOAD_LOST")
_STORED = ("DURABILITY_NOT_REACHED",)
REASONS: dict[str, tuple[str, ...]] = {
    "ListTables": ("UNKNOWN_RUN",),
    "CreateTable": ("TABLE_EXISTS",),
    "Insert": _STORED,
    "InsertStream": _STORED,
    "PushRollouts": _STORED,
    "PushRolloutsStream": _STORED,
    "GetGroups": ("PAYLOAD_LOST",),
    "NextBatch": _BATCH,
    "Sample": _BATCH,
    "ReadLease": (*_LEASE, "PAYLOAD_LOST"),
    "Commit": (*_LEASE, *_STORED),
    "Release": _LEASE,
    "ExtendLease": _LEASE,
    "GetLineage": ("UNKNOWN_STEP",),
    "ReplayStep": ("UNKNOWN_STEP", "PAYLOAD_LOST"),
    "AdvancePolicy": ("POLICY_VERSION_CONFLICT",),
    "RewindPolicy": ("POLICY_VERSION_CONFLICT", "STEP_CONFLICT"),
    "ResolvePolicy": ("FUTURE_POLICY_VERSION",),
    "Snapshot": ("LEASE_EXPIRED", "PAYLOAD_LOST"),
    "Restore": ("TABLE_EXISTS", "FUTURE_POLICY_VERSION", "QUOTA_EXCEEDED", "LEASE_EXPIRED", *_STORED),
    "CreateToken": ("TOKEN_EXISTS", "QUOTA_EXCEEDED"),
    "RevokeToken": ("UNKNOWN_TOKEN",),
}
"""RPC -> ErrorReasons that it may end with, beside those of every call and of names that do not exist."""

_ABOUT = """Every operation of groupreplay's gRPC service, in plain JSON. docs/reference/rest.md has the rules that hold
for all of them: names, numbers, options, streams and errors."""
_LOGIN = "grt.NAME.SECRET, where the service asks for tokens; docs/howto/secure-the-service.md lists the scopes"
_TIMEOUT = "Seconds to wait for what is asked for, 0 to 86400"
_COLUMNS = "How columns of numbers are sent: arrays of numbers, or base64 of their little-endian bytes"


def reasons_of(route: Route) -> list[str]:
    """Return the ErrorReasons that a route's calls may end with."""
    names = [*_ALWAYS, *REASONS.get(route.rpc, ())]
    if "run" in route.path_names:
        names.append("UNKNOWN_RUN")
    if "table" in route.path_names:
        names.append("UNKNOWN_TABLE")
    if route.body is not Body.QUERY:
        names += ["MESSAGE_TOO_LARGE", "DEADLINE_EXCEEDED"]
    if route.answer is Answer.GROUP_LINES:
        names.append("INVALID_GROUP")  # its payload, which the service never reads, is not what its header says
    return names


class Document:
    """The document while it is being written."""

    def __init__(self, comments: Mapping[str, str]) -> None:
        """comments: full name of a message, field, enum, value or method of the protocol -> what protos/ says of it."""
        self._comments = comments
        self._schemas: dict[str, Schema] = {}
        self._problems: dict[str, Schema] = {}

    def write(self, version: str) -> dict[str, Json]:
        """Return the document."""
        paths: dict[str, dict[str, Json]] = defaultdict(dict)
        for route in ROUTES:
            paths[route.path][route.verb.lower()] = self._operation(route)
        self._schemas |= {"Group": self._group(), "Numbers": _NUMBERS, "Problem": _problem_schema(), "Number": _NUMBER}
        return {
            "openapi": "3.1.0",
            "info": {"title": "groupreplay", "version": version, "description": " ".join(_ABOUT.split())},
            "paths": dict(paths),
            "components": {
                "schemas": dict(sorted(self._schemas.items())),
                "responses": dict(sorted(self._problems.items())),
                "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": _LOGIN}},
            },
            "security": [{"token": []}, {}],
        }

    def _operation(self, route: Route) -> dict[str, Json]:
        operation: dict[str, Json] = {
            "operationId": route.rpc,
            "summary": route.summary,
            "description": self._comment(route.method.full_name),
            "parameters": self._parameters(route),
            "responses": self._responses(route),
        }
        if route.body is not Body.QUERY:
            operation["requestBody"] = self._body(route)
        return operation

    # What is sent

    def _parameters(self, route: Route) -> list[Json]:
        found: list[dict[str, Json]] = []
        for name in route.path_names:
            schema = {"type": "integer" if name == "step" else "string"}
            found.append({"name": name, "in": "path", "required": True, "schema": schema, "example": PATH[name]})
        if "timeout_s" in option_names(route):
            timeout = {"type": "number", "minimum": 0, "maximum": 86400, "default": route.timeout_s}
            found.append({"name": "timeout_s", "in": "query", "description": _TIMEOUT, "schema": timeout})
        if "columns" in option_names(route):
            columns = {"enum": ["numbers", "base64"], "default": "numbers"}
            found.append({"name": "columns", "in": "query", "description": _COLUMNS, "schema": columns})
        if route.query:
            found += [{"name": name, "in": "query", "schema": {"type": "string"}} for name in route.query]
        if route.body is Body.QUERY:
            found += [self._query_parameter(route, name) for name in route.open_fields]
        examples = QUERIES.get(route.rpc, {})
        return [it | ({"example": examples[it["name"]]} if it["name"] in examples else {}) for it in found]

    def _query_parameter(self, route: Route, name: str) -> dict[str, Json]:
        field = _fields(route.request)[name]
        schema = self._field(field) if field.is_repeated else self._value(field)
        return {"name": name, "in": "query", "description": self._comment(field.full_name), "schema": schema}

    def _body(self, route: Route) -> Schema:
        example = REQUESTS.get(route.rpc)
        match route.body:
            case Body.JSON:
                fields = {name: self._field(_fields(route.request)[name]) for name in route.open_fields}
                return _content(JSON_TYPE, _object(fields), example)
            case Body.GROUPS:
                return _content(JSON_TYPE, _object({"groups": _array(_ref("Group"))}), example)
            case Body.PIECES:
                return _content(JSON_TYPE, _object({"pieces": _array(self._piece())}), example)
            case Body.GROUP_LINES | Body.PIECE_LINES:
                line = _ref("Group") if route.body is Body.GROUP_LINES else self._piece()
                return _content(LINES_TYPE, _lines(route.body.value, line), json.dumps(example) + "\n")
            case _:
                line = self._message(route.request)
                return _content(LINES_TYPE, _lines(route.body.value, line), _example_lines("Snapshot"))

    # What comes back

    def _responses(self, route: Route) -> dict[str, Json]:
        responses: dict[str, Json] = {"200": self._success(route)}
        if route.rpc == "CreateTable":
            responses["201"] = responses["200"] | {"description": "The table is new"}
            responses["200"] = responses["200"] | {"description": "The table was there, with the same configuration"}
        by_status: dict[int, list[str]] = defaultdict(list)
        for reason in reasons_of(route):
            by_status[ERRORS[reason].http_status].append(reason)
        if route.body is not Body.QUERY:
            by_status[415].append("INVALID_REQUEST")
        for status, reasons in sorted(by_status.items()):
            name = f"{status}-{'-'.join(reasons)}"
            self._problems[name] = _problem_response(status, reasons)
            responses[str(status)] = {"$ref": f"#/components/responses/{name}"}
        return responses

    def _success(self, route: Route) -> Schema:
        answer = {"description": route.answer.value}
        if route.answer is Answer.JSON:
            example = to_json(ANSWERS[route.rpc])
            return answer | _content(JSON_TYPE, self._message(route.method.output_type), example)
        lines = _lines(route.answer.value, self._line(route))
        return answer | _content(LINES_TYPE, lines, _example_lines(route.rpc))

    def _line(self, route: Route) -> Schema:
        output = _fields(route.method.output_type)
        closing = {"end": _object({"lines": {"type": "integer"}}), "error": _ref("Problem")}
        match route.answer:
            case Answer.GROUP_LINES:
                batch = {"batch": self._field(output["batch"])} if "batch" in output else {}
                delivery = self._message(group_pb2.Delivery.DESCRIPTOR)
                ratios = {"log_ratios": self._log_ratios()} if "log_ratios" in _fields(route.request) else {}
                return _object({**batch, "group": _ref("Group"), "delivery": delivery, **ratios, **closing})
            case Answer.RESULT_LINES:
                result, durability = self._value(output["results"]), self._field(output["durability"])
                return _object({"result": result, "durability": durability, **closing})
            case _:
                return _object({**closing, **{name: self._field(field) for name, field in output.items()}})

    # Types

    def _message(self, descriptor: Descriptor) -> Schema:
        if descriptor.name not in self._schemas:
            self._schemas[descriptor.name] = {}  # before its fields, of which one may be of this type
            fields = {name: self._field(field) for name, field in _fields(descriptor).items()}
            self._schemas[descriptor.name] = _described(_object(fields), self._comment(descriptor.full_name))
        return _ref(descriptor.name)

    def _field(self, field: FieldDescriptor) -> Schema:
        if is_map(field):
            of = _fields(cast(Any, field).message_type)["value"]
            schema: Schema = {"type": "object", "additionalProperties": self._value(of)}
        elif field.is_repeated:
            schema = _array(self._value(field))
        else:
            schema = self._value(field)
            if field.has_presence or field.enum_type is not None:
                schema = {"anyOf": [schema, {"type": "null"}]}
        return _described(schema, self._comment(field.full_name))

    def _value(self, field: FieldDescriptor) -> Schema:
        if field.message_type is not None:
            return self._message(cast(Any, field).message_type)
        if field.enum_type is not None:
            return self._enum(cast(Any, field).enum_type)
        if field.type in INTEGERS:
            low, high = INTEGERS[field.type]
            return {"type": "integer", "minimum": low, "maximum": high}
        if field.full_name in COLUMNS:
            return _ref("Numbers")
        if field.type == FieldDescriptor.TYPE_BYTES:
            return {"type": "string", "contentEncoding": "base64"}
        simple = {FieldDescriptor.TYPE_BOOL: "boolean", FieldDescriptor.TYPE_STRING: "string"}
        return {"type": simple[field.type]} if field.type in simple else _ref("Number")

    def _enum(self, enum: EnumDescriptor) -> Schema:
        words = words_of(enum)
        meanings = [
            f"{words[value.number]}: {self._comment(value_name)}"
            for value in enum.values
            if value.number and self._comment(value_name := f"{enum.full_name}.{value.name}")
        ]
        text = " ".join([self._comment(enum.full_name), *meanings]).strip()
        self._schemas[enum.name] = _described({"type": "string", "enum": list(words.values())}, text)
        return _ref(enum.name)

    def _group(self) -> Schema:
        header = _fields(group_pb2.GroupHeader.DESCRIPTOR)
        column = _object({
            "dtype": {"enum": sorted(DTYPES)},
            "shape": _array({"type": "integer", "minimum": 0}),
            "values": _ref("Numbers"),
        })  # fmt: skip
        texts = {
            **{name: f"{dtype}; of all responses one after the other" for name, dtype in TOKEN_COLUMNS.items()},
            "prompt_token_ids": "int32",
            "loss_mask": "uint8, 0 or 1 (or false and true) for each response token; absent = all are trained on",
            "version_spans": "int32 pairs [index of a response token, policy version], ascending; absent = one version",
        }
        schema = _object({
            **{name: self._field(header[name]) for name in HEADER_FIELDS},
            **{name: _described(_ref("Numbers"), text) for name, text in texts.items()},
            "prompt_text": {"type": "string"},
            "response_texts": _array({"type": "string"}),
            "columns": {"type": "object", "additionalProperties": column},
        })  # fmt: skip
        about = (
            "A rollout group: what its header says, and the columns of its payload. Without columns, the header only."
        )
        return _described(schema | {"examples": [GROUP]}, about)

    def _log_ratios(self) -> Schema:
        ratios = group_pb2.LogRatios.DESCRIPTOR
        schema = {name: self._field(field) for name, field in _fields(ratios).items()}
        schema["values"] = _described(_ref("Numbers"), self._comment(f"{ratios.full_name}.values"))
        return _described(
            _object(schema), f"Where there are some and they were asked for. {self._comment(ratios.full_name)}"
        )

    def _piece(self) -> Schema:
        fields = _fields(replay_service_pb2.RolloutPiece.DESCRIPTOR)
        schemas = {name: self._field(field) for name, field in fields.items() if name != "rollouts"}
        return _object({"rollouts": _ref("Group"), **schemas})

    def _comment(self, full_name: str) -> str:
        return self._comments.get(full_name, "")


_NUMBER: Schema = {
    "description": "A number; one that is not finite is a string.",
    "anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}],
}
_NUMBERS: Schema = {
    "description": "A column: an array of numbers, or a string, which is base64 of their little-endian bytes.",
    "anyOf": [{"type": "array", "items": {}}, {"type": "string", "contentEncoding": "base64"}],
}


def _problem_schema() -> Schema:
    return {
        "description": "RFC 9457. The detail says what was tried, the value, the limit and the fix.",
        "type": "object",
        "required": ["type", "title", "status", "detail", "reason", "retryable"],
        "properties": {
            "type": {"type": "string", "format": "uri"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "reason": {"type": "string", "enum": sorted(ERRORS)},
            "retryable": {"type": "boolean", "description": "Whether the same call may succeed later by itself"},
        },
    }


def _problem_response(status: int, reasons: list[str]) -> Schema:
    schema = {"allOf": [_ref("Problem"), {"properties": {"reason": {"enum": reasons}}}]}
    example = problem(ERRORS[reasons[0]]("what was tried, the value, the limit and the fix"), status)
    retry = {"Retry-After": {"schema": {"type": "integer"}, "example": RETRY_AFTER_S}}
    headers = {"headers": retry} if ERRORS[reasons[0]].retryable else {}
    return {"description": ", ".join(reasons), **headers, **_content(MEDIA_TYPE, schema, example)}


def _example_lines(rpc: str) -> str:
    lines = [{name: _example_value(value) for name, value in line.items()} for line in LINES[rpc]]
    if "end" not in lines[-1]:
        lines.append({"end": {"lines": len(lines)}})
    return "".join(json.dumps(line) + "\n" for line in lines)


def _example_value(value: Message | Json) -> Json:
    return to_json(value) if isinstance(value, Message) else value


def _fields(descriptor: Descriptor) -> dict[str, FieldDescriptor]:
    return cast(dict[str, FieldDescriptor], dict(descriptor.fields_by_name))


def _content(media_type: str, schema: Schema, example: Json) -> Schema:
    return {"content": {media_type: {"schema": schema, "example": example}}}


def _lines(text: str, line: Schema) -> Schema:
    """NDJSON has no type of its own in OpenAPI 3.1: a string, and beside it what each line is."""
    return {"type": "string", "description": text, "x-line": line}


def _object(fields: dict[str, Schema]) -> Schema:
    return {"type": "object", "properties": fields, "additionalProperties": False}


def _array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _described(schema: Schema, text: str) -> Schema:
    return schema | {"description": text} if text else schema
