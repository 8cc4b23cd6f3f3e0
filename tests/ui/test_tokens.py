"""A service that asks for tokens: the page is open, what it shows is not."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from processes import ServerProcess
from ui.conftest import OpenLook
from ui.training import AT, RUN, Training

from groupreplay import Client, NewToken, Scope, Token

pytestmark = pytest.mark.ui
ADMIN_TOKEN = "an-admin-token-of-more-than-32-characters"


@pytest.fixture
def secured(clean_redis: redis.Redis, redis_url: str, tmp_path: Path) -> Iterator[ServerProcess]:
    """A service that asks for tokens."""
    file = tmp_path / "admin.token"
    file.write_text(ADMIN_TOKEN)
    process = ServerProcess(tmp_path, redis_url, "--admin-token-file", str(file))
    process.start()
    yield process
    assert process.terminate() == 0


def make_token(service: ServerProcess, scope: Scope) -> str:
    """Train a little, and make a token for the run; return it."""
    with Client(service.grpc_address, timeout_s=20, token=ADMIN_TOKEN) as admin:
        Training(admin).step()
        new = NewToken.generate(Token(name="watcher", scope=scope, run=RUN))
        admin.create_token(new)
        return new.secret


def test_the_token_is_asked_for_once_and_stays_in_its_tab(secured: ServerProcess, open_look: OpenLook) -> None:
    """Wrong ones are told; the right one shows the table, also after a reload, and can be forgotten."""
    secret = make_token(secured, Scope.CONSUMER)
    page = open_look(secured.http_address, AT)
    page.expected = ("401",)
    dialog = page.page.get_by_role("dialog")
    dialog.wait_for()
    assert page.page.evaluate("document.activeElement.id") == "token-input"
    page.page.get_by_label("Token", exact=True).fill("not-the-token")
    page.page.keyboard.press("Enter")
    page.page.locator("#token-error").get_by_text("token").wait_for()
    page.page.get_by_label("Token", exact=True).fill(secret)
    page.page.keyboard.press("Enter")
    page.page.get_by_role("img", name="Reward. Steps 1 to 1.").wait_for()
    page.page.reload()
    page.page.get_by_role("img", name="Reward. Steps 1 to 1.").wait_for()
    data = [request for request in page.requests if "/v1/" in request.url]
    assert data[-1].headers["authorization"] == f"Bearer {secret}"
    assert all("authorization" not in request.headers for request in page.requests if "/ui/" in request.url)
    assert all(secret not in request.url for request in page.requests)
    assert page.page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    page.page.get_by_role("button", name="Token").click()
    page.page.get_by_role("button", name="Forget it").click()
    dialog.wait_for()
    assert page.page.evaluate("sessionStorage.length") == 0
    page.page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    page.wait_for("token", "#trouble")
    assert not dialog.is_visible()


def test_a_token_that_may_not_read_groups_is_told_so(secured: ServerProcess, open_look: OpenLook) -> None:
    """A producer's token shows the table and not its groups."""
    secret = make_token(secured, Scope.PRODUCER)
    page = open_look(secured.http_address, AT)
    page.expected = ("401", "403")
    page.page.get_by_label("Token", exact=True).fill(secret)
    page.page.keyboard.press("Enter")
    page.page.get_by_role("img", name="Reward. Steps 1 to 1.").wait_for()
    page.page.get_by_role("link", name="groups", exact=True).click()
    page.wait_for("consumer", "#trouble")
