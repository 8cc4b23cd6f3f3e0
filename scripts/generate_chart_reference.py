"""Make values.schema.json and docs/reference/chart.md of the chart's values.yaml; --check fails when they differ."""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
VALUES = ROOT / "helm/groupreplay/values.yaml"
SCHEMA = ROOT / "helm/groupreplay/values.schema.json"
PAGE = ROOT / "docs/reference/chart.md"

_HEAD = """# Values of the chart

`helm install replay helm/groupreplay --set server.replicas=3`, or better `-f values.yaml`. An unknown value, or one of
the wrong kind, is refused. [Deploy on Kubernetes](../howto/deploy-on-kubernetes.md) has examples.

| value | default | meaning |
|---|---|---|"""
_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}


@dataclass(frozen=True, slots=True)
class Value:
    """A value, or a section where it has no meaning of its own."""

    path: str
    default: Any
    meaning: str
    schema: dict[str, Any]
    parts: tuple["Value", ...] = ()


def read_values(text: str) -> tuple[Value, ...]:
    """Return the values of the file.

    Raises:
        ValueError: one has no meaning.
    """
    node = yaml.compose(text)
    return tuple(_read(node, text.splitlines(), ""))


def _read(node: Any, lines: list[str], prefix: str) -> Iterator[Value]:
    for key, child in node.value:
        path = f"{prefix}{key.value}"
        meaning, schema = _comment_above(lines, key.start_mark.line)
        default = yaml.safe_load(yaml.serialize(child))
        if not meaning:
            if not isinstance(default, dict) or not default:
                raise ValueError(f"{path} has no meaning: put `# -- ...` above it")
            yield Value(path, default, "", schema, tuple(_read(child, lines, f"{path}.")))
        else:
            yield Value(path, default, meaning, schema)


def _comment_above(lines: list[str], line: int) -> tuple[str, dict[str, Any]]:
    found: list[str] = []
    while line and (match := re.match(r"\s*# ?(.*)", lines[line - 1])):
        found.insert(0, match[1])
        line -= 1
    schema: dict[str, Any] = {}
    words: list[str] = []
    for comment in found:
        if comment.startswith("@schema "):
            schema = json.loads(comment.removeprefix("@schema "))
        elif comment.startswith("-- "):
            words = [comment.removeprefix("-- ")]
        elif words:
            words.append(comment)
    return " ".join(words), schema


def schema_of(values: tuple[Value, ...]) -> dict[str, Any]:
    """Return the schema of a section: what it does not name is refused."""
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {value.path.rpartition(".")[2]: _schema_of_one(value) for value in values},
    }


def _schema_of_one(value: Value) -> dict[str, Any]:
    if value.parts:
        return schema_of(value.parts)
    described = {"type": _TYPES[type(value.default)], "description": value.meaning, **value.schema}
    if described["type"] == "object":
        described.setdefault("additionalProperties", False)
    return described


def rows(values: tuple[Value, ...]) -> Iterator[str]:
    """Yield the rows of the page."""
    for value in values:
        if value.parts:
            yield from rows(value.parts)
        else:
            default = "" if value.default == "" else f"`{json.dumps(value.default)}`"
            yield f"| `{value.path}` | {default} | {value.meaning.replace('|', chr(92) + '|')} |"


def main() -> int:
    """Write, or compare with what is committed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file differs")
    check = parser.parse_args().check
    values = read_values(VALUES.read_text())
    schema = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "groupreplay", **schema_of(values)}
    schema["properties"]["global"] = {"type": "object", "description": "What a parent chart hands down; not read."}
    made = {SCHEMA: json.dumps(schema, indent=2) + "\n", PAGE: "\n".join([_HEAD, *rows(values), ""])}
    differing = [path for path, text in made.items() if not path.exists() or path.read_text() != text]
    if check:
        for path in differing:
            print(f"{path.name} is not what values.yaml gives: run `make reference` and commit the result")
        return 1 if differing else 0
    for path in differing:
        path.write_text(made[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())
