"""Write openapi.json from the routes and the protocol's descriptors and comments; --check fails when they differ."""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from groupreplay import __version__
from groupreplay_server.api.rest.openapi import Document

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
TARGETS = (ROOT / "services/groupreplay_server/api/rest/openapi.json", ROOT / "docs/reference/openapi.json")
"""The service serves the one; the other is for people, and for tools that have no service."""
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


def main() -> int:
    """Write, or compare with what is committed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the file differs")
    args = parser.parse_args()
    content = json.dumps(Document(read_comments()).write(__version__), indent=1, ensure_ascii=False) + "\n"
    status = 0
    for target in TARGETS:
        if not args.check:
            target.write_text(content)
        elif not target.exists() or target.read_text() != content:
            print(f"{target.relative_to(ROOT)} is not what the routes give: run `make reference`, commit the result")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
