"""Generate clients/python/groupreplay/client.py from async_client.py; --check fails when the committed file differs."""

import argparse
import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "clients/python/groupreplay"
SOURCE, TARGET = PACKAGE / "async_client.py", PACKAGE / "client.py"

# In order: longer words before the words they contain.
REPLACEMENTS = [
    (
        r'^"""AsyncClient: .*"""$',
        '"""Client: the service\'s operations as plain calls. Generated from async_client.py by `make sync-client`."""',
    ),
    (r"import grpc\.aio\n", ""),
    (r"import asyncio\n", "import time\n"),
    (r"open_async_channel", "open_channel"),
    (r"grpc\.aio\.Channel", "grpc.Channel"),
    (r"await asyncio\.sleep", "time.sleep"),
    (r"async def", "def"),
    (r"async with", "with"),
    (r"async for", "for"),
    (r"await ", ""),
    (r"Awaitable\[(\w+)\]", r"\1"),
    (r"__aenter__", "__enter__"),
    (r"__aexit__", "__exit__"),
    (r"AsyncIterable", "Iterable"),
    (r"AsyncIterator", "Iterator"),
    (r"AsyncClient", "Client"),
    (r"BackgroundTask", "BackgroundThread"),
    (r"\banext\(", "next("),
]


def generate() -> str:
    """Return the text of client.py, formatted."""
    text = SOURCE.read_text()
    for pattern, replacement in REPLACEMENTS:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    for arguments in (["check", "--fix", "--select", "I,F401", "--quiet"], ["format"]):
        ruff = [sys.executable, "-m", "ruff", *arguments, f"--stdin-filename={TARGET}", "-"]
        text = subprocess.run(ruff, input=text, capture_output=True, text=True, check=True).stdout
    return text


def main() -> int:
    """Generate, or compare with what is committed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the file differs")
    args = parser.parse_args()
    text = generate()
    if args.check and TARGET.read_text() != text:
        print("client.py is not what async_client.py gives: run `make sync-client` and commit the result")
        return 1
    if not args.check:
        TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
