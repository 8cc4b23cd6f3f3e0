"""A file of JSON lines that is appended to while a benchmark runs, and read by the next call of it."""

from pathlib import Path


def whole_lines(path: Path) -> list[str]:
    """Return the lines of a file, none if there is no file; one that a kill cut short is not a line."""
    if not path.exists():
        return []
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def append_line(path: Path, line: str) -> None:
    """Add a line, on a line of its own even where a kill cut the one before short."""
    text = path.read_text() if path.exists() else ""
    if text and not text.endswith("\n"):
        path.write_text(text[: text.rfind("\n") + 1])
    with path.open("a") as file:
        file.write(line + "\n")
