"""Write openapi.json and docs/reference/rest.md from the routes and the protocol; --check fails when they differ."""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from groupreplay import __version__
from groupreplay_server.api.http_access import MAX_HEADER_BYTES
from groupreplay_server.api.rest.bodies import MAX_GROUPS_BYTES, MAX_REQUEST_BYTES
from groupreplay_server.api.rest.calls import MAX_STREAM_RESULTS
from groupreplay_server.api.rest.openapi import Document
from groupreplay_server.api.rest.routes import ROUTES, Answer, Body

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
DOCUMENTS = (ROOT / "services/groupreplay_server/api/rest/openapi.json", ROOT / "docs/reference/openapi.json")
"""The service serves the one; the other is for people, and for tools that have no service."""
PAGE = ROOT / "docs/reference/rest.md"
_KINDS = {4: "message_type", 5: "enum_type", 6: "service"}
_PARTS = {"message_type": {2: "field"}, "enum_type": {2: "value"}, "service": {2: "method"}}


def read_comments() -> dict[str, str]:
    """Return full name -> comment of everything in protos/ that has one."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "descriptors"
        names = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
        command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTOS}"]
        options = [f"--descriptor_set_out={target}", "--include_source_info"]
        subprocess.run([*command, *options, *names], check=True)
        files = FileDescriptorSet.FromString(target.read_bytes()).file
    return {name: text for file in files for name, text in _comments_of(file)}


def _comments_of(file: FileDescriptorProto) -> Iterator[tuple[str, str]]:
    for location in file.source_code_info.location:
        text = " ".join(location.leading_comments.split())
        path = list(location.path)
        if not text or len(path) not in {2, 4} or path[0] not in _KINDS:
            continue
        kind = _KINDS[path[0]]
        owner = getattr(file, kind)[path[1]]
        name = f"{file.package}.{owner.name}"
        if len(path) == 4 and path[2] in _PARTS[kind]:
            yield f"{name}.{getattr(owner, _PARTS[kind][path[2]])[path[3]].name}", text
        elif len(path) == 2:
            yield name, text


_HEAD = """# REST

Every operation of the [protocol](../../protos/groupreplay/v1/replay_service.proto) in plain JSON, on the port of
`--http-listen`. [`openapi.json`](openapi.json), which the service has under `/openapi.json`, says the same for
programs, with every field, an example of each call and the errors that it may end with. Calls from a shell:
[use REST](../howto/use-rest.md).

## Routes

`TABLE` is `/v1/runs/{run}/tables/{table}`. What the path does not say comes in the query of a GET, else in the body.

| call | does | body | answer | timeout_s |
|---|---|---|---|---|"""

_RULES = f"""## Rules

- **Names** of fields are those of the protocol. A value of an enum is the SDK's word: `"fill": "replay"`, `"state":
  "fresh"`. A field that is `null` or left out is absent, and has its default; an answer has every field. A field, or
  a name in the query, that does not exist is refused.
- **Numbers** are JSON numbers, 64-bit ones too. One that is not finite is the string `"NaN"`, `"Infinity"` or
  `"-Infinity"`. Bytes are base64.
- **Groups** have the fields of the SDK's `RolloutGroup`: those of the protocol's `GroupHeader`, without the layout,
  and the columns `prompt_token_ids`, `response_token_ids`, `behaviour_logprobs`, `loss_mask`, `version_spans`,
  `prompt_text`, `response_texts`, and others in `columns` as `{{"dtype", "shape", "values"}}`. A column of numbers is
  an array or a string: base64 of the little-endian bytes, many times cheaper for both sides. Send either;
  `?columns=base64` asks for the latter. A group without any of them is a header only, as the protocol allows for
  groups without reward variance.
- **Media types.** A body is `Content-Type: application/json`, or `application/x-ndjson` where it is lines, also when
  it is empty: a browser does not send those to us for a page of somebody else's without asking. Bodies are not
  compressed. One of groups, or a line, has at most {MAX_GROUPS_BYTES // 2**20} MiB, any other {
    MAX_REQUEST_BYTES // 2**20
} MiB.
- **timeout_s**, in the query of every call, is how long to wait: for a batch, a draw or an admission, after which the
  call ends with what is missing; until the watch of a policy ends; and for any other call until it is given up with
  STORE_UNAVAILABLE. 0 to 86400. A caller who hangs up is no longer waited for, and nothing is kept for him.
- **Lines.** An answer of many groups is NDJSON, `application/x-ndjson`. The last line has `end`, or `error` with a
  problem: an answer without either was cut, and is not to be used. `lines` counts those before it. A snapshot ends
  with the protocol's own `end`; what it sends is what `restore` takes, with `restore_id` in the query.
- **Lines in.** A stream of groups is answered when its last line has come, at most {MAX_STREAM_RESULTS} of them.
  Groups before a line that is refused are stored and answered.
- **Errors** are `application/problem+json` (RFC 9457): `type`, `title`, `status`, `detail`, `reason`, `retryable`.
  The [reasons](errors.md) and their statuses are those of gRPC and the SDK; one that may pass comes with
  `Retry-After`. A path or a verb that does not exist is INVALID_REQUEST with 404 or 405, another media type with 415,
  a body that is too large MESSAGE_TOO_LARGE with 413, headers of more than {MAX_HEADER_BYTES // 2**10} KiB with 431.
  (What is no HTTP at all, and headers of more than 64 KiB, the HTTP library ends with a 400 of its own, without a
  problem.) A group that is refused is no error of the call: its result says why.
- **Tokens**, where the service asks for them: `Authorization: Bearer grt.NAME.SECRET`, on every path but `/healthz`,
  `/readyz` and the files of [the page](../howto/watch-on-the-page.md). UNAUTHENTICATED is 401, PERMISSION_DENIED 403.
  [Secure the service](../howto/secure-the-service.md) has the scopes.
- **Drain.** On SIGTERM calls that wait end with SHUTTING_DOWN, others may end within `--drain-s`, and new ones are
  refused.
"""


def rest_page() -> str:
    """Return the page of the REST door."""
    rows = []
    for route in ROUTES:
        path = route.path.replace("/v1/runs/{run}/tables/{table}", "TABLE")
        body = "" if route.body is Body.QUERY else "NDJSON" if "NDJSON" in route.body.value else "JSON"
        answer = "JSON" if route.answer is Answer.JSON else "NDJSON"
        rows.append(
            f"| `{route.verb} {path}` | {route.summary} (`{route.rpc}`) | {body} | {answer} | {route.timeout_s:g} |"
        )
    return "\n".join([_HEAD, *rows, "", _RULES])


def main() -> int:
    """Write, or compare with what is committed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the file differs")
    args = parser.parse_args()
    document = json.dumps(Document(read_comments()).write(__version__), indent=1, ensure_ascii=False) + "\n"
    status = 0
    for target, content in [*((it, document) for it in DOCUMENTS), (PAGE, rest_page())]:
        if not args.check:
            target.write_text(content)
        elif not target.exists() or target.read_text() != content:
            print(f"{target.relative_to(ROOT)} is not what the routes give: run `make reference`, commit the result")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
