"""The page beside a real demo, whose model learns. `--pictures docs/images` takes those of the documentation."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from processes import plain_environment, wait_until
from ui.browser import Look
from ui.conftest import OpenLook

pytestmark = pytest.mark.ui
STEPS = 12
STEPS_FOR_PICTURES = 150
TABLE = "#/popo/rollouts"
WAIT_MS = 240_000


@pytest.fixture
def pictures(request: pytest.FixtureRequest) -> Path | None:
    """Where to keep pictures; None = nowhere."""
    folder: Path | None = request.config.getoption("--pictures")
    return folder


@pytest.fixture
def demo_address(tmp_path: Path, pictures: Path | None) -> Iterator[str]:
    """The HTTP address of a demo that has just begun."""
    steps = STEPS_FOR_PICTURES if pictures else STEPS
    demo = subprocess.Popen(
        [
            sys.executable, "-m", "groupreplay_cli", "demo", "--run-dir", str(tmp_path / "demo"), "--keep-running",
            "--steps", str(steps), "--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0",
        ],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=plain_environment(),
    )  # fmt: skip
    assert demo.stdout is not None
    found = None
    for line in demo.stdout:
        if found := re.search(r"watch it on the page: http://([\w.:]+)/ui/", line):
            break
    assert found is not None
    yield found[1]
    demo.terminate()
    demo.communicate(timeout=60)


def take(page: Look, pictures: Path | None, name: str, *, height: int = 800) -> None:
    """Keep a picture of a page."""
    if pictures:
        page.page.set_viewport_size({"width": page.width, "height": height})
        page.page.mouse.move(0, 0)
        page.page.evaluate("document.activeElement.blur()")
        page.screenshot(pictures / f"ui-{name}.png")


def group_with_ratios(address: str) -> str:
    """Return the id of a group whose ratios the demo's trainer fed back."""
    table = f"http://{address}/v1/runs/popo/tables/rollouts"
    listed = httpx.get(f"{table}/groups", params={"states": "replay", "limit": 1000}).raise_for_status().json()
    wanted = {"group_ids": [it["header"]["group_id"] for it in listed["groups"]], "log_ratios": True}
    read = httpx.post(f"{table}/groups/read", params={"columns": "base64"}, json=wanted).raise_for_status()
    found = [line for line in map(json.loads, read.text.splitlines()) if "log_ratios" in line]
    assert found, "no group of the buffer has ratios"
    return str(max(found, key=lambda line: line["delivery"]["times_sampled"])["group"]["group_id"])


@pytest.mark.timeout(600)
def test_a_demo_is_watched_while_it_trains(demo_address: str, open_look: OpenLook, pictures: Path | None) -> None:
    """Steps appear one after the other; its groups can be read."""
    page = open_look(demo_address, TABLE)
    page.expected = ("404",)  # the trainer may not have made its table yet
    page.page.get_by_role("img", name=re.compile("Reward. Steps 1 to ")).wait_for(timeout=WAIT_MS)
    wanted = STEPS - 4 if not pictures else STEPS_FOR_PICTURES - 10
    last = page.page.locator("section", has_text="Last steps").locator("tbody th").first
    wait_until(lambda: int(last.inner_text()) >= wanted, f"step {wanted}", timeout_s=WAIT_MS / 1000)
    page.wait_for("demo", "tbody")
    page.wait_for("alive,")
    label = page.page.get_by_role("img", name="What fills a batch").get_attribute("aria-label") or ""
    assert re.search(r"refilled: \d+ now", label)
    take(page, pictures, "table", height=1130)

    page.go(f"{TABLE}/groups?state=replay")
    page.page.locator("a.row").first.wait_for()
    take(page, pictures, "groups", height=560)
    page.page.locator("a.row").nth(2).click()
    page.wait_for("reward 1", "article")
    assert page.page.locator("article").count() == 8
    assert page.page.locator("article .token").count() > 8
    take(page, pictures, "group", height=560)

    page.go(f"{TABLE}/groups/{group_with_ratios(demo_address)}")
    page.page.get_by_label("Shade tokens by").locator("option", has_text="ratio fed back (policy").wait_for(
        state="attached"
    )
    page.page.get_by_label("Shade tokens by").select_option(value="ratio fed back")
    page.until("() => document.querySelector('article .token').title.startsWith('ratio fed back ')")
    take(page, pictures, "ratios", height=560)

    for name, options in (("dark", {"scheme": "dark"}), ("narrow", {"width": 400})):
        other = open_look(demo_address, TABLE, **options)
        other.page.get_by_role("img", name="Reward. Steps 1 to").wait_for()
        take(other, pictures, name, height=1130)
    open_look(demo_address).wait_for("popo/rollouts")
