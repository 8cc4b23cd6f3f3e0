"""The page of guarantees names tests that exist, and is found from where people start."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs/explanation/guarantees.md"
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE.read_text())


@pytest.mark.parametrize(("file", "name"), NAMED, ids=lambda part: part)
def test_every_test_that_a_promise_names_exists(file: str, name: str) -> None:
    """A promise whose test was renamed or removed is no promise."""
    assert re.search(rf"^(async )?def {name}\(", (ROOT / file).read_text(), re.MULTILINE), f"{file} has no {name}"


def test_the_page_names_tests_in_this_way_only() -> None:
    """A name that is written otherwise would be checked by nobody."""
    assert len(NAMED) > 30
    assert len(NAMED) == PAGE.read_text().count("::") - 1  # the introduction shows the form


@pytest.mark.parametrize("page", ["README.md", "docs/explanation/architecture.md"])
def test_the_page_is_linked(page: str) -> None:
    """From the table of the documentation, and from how it works."""
    assert "guarantees.md" in (ROOT / page).read_text()
