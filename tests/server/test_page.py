"""The page's files: how they are served, what they may not do, and that they are in the package."""

import re
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import redis
from service_user import settings

from groupreplay_server.app import RunningServer, running_server
from groupreplay_server.ui.page import page_files

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = page_files()
SCRIPTS = {name: file.content.decode() for name, file in FILES.items() if name.endswith(".js")}


@pytest.fixture
async def http(server: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of the service."""
    async with httpx.AsyncClient(base_url=f"http://{server.http_address}") as opened:
        yield opened


@pytest.mark.parametrize("path", ["/", "/ui"])
async def test_the_short_addresses_lead_to_the_page(http: httpx.AsyncClient, path: str) -> None:
    """What people type works, behind a proxy with a path of its own too."""
    answer = await http.get(path)
    assert (answer.status_code, answer.headers["location"]) == (307, "ui/")
    assert (await http.get(path, follow_redirects=True)).url.path == "/ui/"


async def test_the_root_belongs_to_the_atropos_api_where_it_is_served_there(
    clean_redis: redis.Redis, redis_url: str
) -> None:
    """Its clients read JSON there; the page is at its own address."""
    at_root = replace(settings(redis_url), atropos_table="math/train")
    async with running_server(at_root) as server, httpx.AsyncClient(base_url=f"http://{server.http_address}") as http:
        assert (await http.get("/")).headers["content-type"] == "application/json"
        assert (await http.get("/ui/")).status_code == 200


async def test_every_file_comes_with_its_type_and_with_headers_that_confine_it(http: httpx.AsyncClient) -> None:
    """The browser loads and runs nothing from elsewhere, guesses no types, and shows the page in no frame."""
    types = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    for name, file in FILES.items():
        answer = await http.get(f"/ui/{'' if name == 'index.html' else name}")
        assert (answer.status_code, answer.content) == (200, file.content), name
        assert answer.headers["content-type"].startswith(types[name.rpartition(".")[2]])
        policy = dict(part.strip().partition(" ")[::2] for part in answer.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'self'"
        assert policy["img-src"] == "'self' blob:"
        assert policy["frame-ancestors"] == policy["base-uri"] == policy["object-src"] == "'none'"
        assert policy["require-trusted-types-for"] == "'script'"
        assert not {"script-src", "style-src", "connect-src"} & policy.keys()
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"


async def test_a_file_that_a_browser_has_is_not_sent_again(http: httpx.AsyncClient) -> None:
    """It asks each time, so that a new version of the service shows its own page."""
    first = await http.get("/ui/main.js")
    assert first.headers["cache-control"] == "no-cache"
    again = await http.get("/ui/main.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert (await http.head("/ui/")).status_code == 200


async def test_requests_for_the_page_are_counted_as_one_method(http: httpx.AsyncClient) -> None:
    """A file more is no series more, and all that is not there makes one."""
    for path in ("/", "/ui", "/ui/", "/ui/main.js", "/ui/nothing.js", "/nothing"):
        await http.get(path)
    page = (await http.get("/metrics")).text
    counts = re.findall(
        r'^groupreplay_call_seconds_count\{method="([^"]+)",reason="([^"]+)"\} (.+)$', page, re.MULTILINE
    )
    assert counts == [("Page", "OK", "4.0"), ("unknown", "INVALID_REQUEST", "2.0")]


@pytest.mark.parametrize(
    "path", ["/ui/nothing.js", "/ui/page.py", "/ui/../app.py", "/ui/%2e%2e/settings.py", "/ui/static/main.js"]
)
async def test_there_is_nothing_beside_the_files(http: httpx.AsyncClient, path: str) -> None:
    """Paths are names in a table, not places on the disk."""
    assert (await http.get(path)).status_code == 404


def test_no_script_makes_markup_of_data_or_code_of_text() -> None:
    """Texts of groups are untrusted: they become text nodes."""
    forbidden = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser|srcdoc"
        r"|\beval\(|new Function|setTimeout\([\"']|localStorage|document\.cookie"
    )
    assert SCRIPTS
    for name, source in SCRIPTS.items():
        assert not forbidden.search(source), name


def test_nothing_is_loaded_from_elsewhere() -> None:
    """The page works without the Internet: its files name each other only."""
    for name, file in FILES.items():
        addresses = set(re.findall(r"https?://[^\s\"')]+", file.content.decode()))
        assert addresses <= {"http://www.w3.org/2000/svg"}, name
    for name, source in SCRIPTS.items():
        for imported in re.findall(r'from "([^"]+)"', source):
            assert imported.removeprefix("./") in SCRIPTS, f"{name} imports {imported}"
    linked = re.findall(r'(?:href|src)="([^"#]+)"', FILES["index.html"].content.decode())
    assert set(linked) <= FILES.keys()


def test_the_page_has_no_style_or_script_in_its_markup() -> None:
    """The policy would refuse them."""
    markup = FILES["index.html"].content.decode()
    assert not re.search(r"<style|style=|\son\w+=|<script(?![^>]*\ssrc=)", markup)


def test_the_wheel_has_the_files(tmp_path: Path) -> None:
    """Whoever installs the package has the page."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    assert {f"groupreplay_server/ui/static/{name}" for name in FILES} <= names
