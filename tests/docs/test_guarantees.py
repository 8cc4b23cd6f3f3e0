"""The pages of guarantees and threats name tests that exist, and are found from where people start."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = {name: (ROOT / f"docs/explanation/{name}.md").read_text() for name in ("guarantees", "threat-model")}
NAMED = {name: re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text) for name, text in PAGES.items()}


@pytest.mark.parametrize(("file", "name"), [it for named in NAMED.values() for it in named], ids=lambda part: part)
def test_every_test_that_a_promise_names_exists(file: str, name: str) -> None:
    """A promise whose test was renamed or removed is no promise."""
    assert re.search(rf"^(async )?def {name}\(", (ROOT / file).read_text(), re.MULTILINE), f"{file} has no {name}"


@pytest.mark.parametrize("name", NAMED)
def test_the_page_names_tests_in_this_way_only(name: str) -> None:
    """A name that is written otherwise would be checked by nobody."""
    assert len(NAMED[name]) > 25
    assert len(NAMED[name]) == PAGES[name].count("::") - 1  # the introduction shows the form


@pytest.mark.parametrize("page", ["README.md", "docs/explanation/architecture.md"])
def test_the_pages_are_linked(page: str) -> None:
    """From the table of the documentation, and from how it works."""
    for name in PAGES:
        assert f"{name}.md" in (ROOT / page).read_text()
