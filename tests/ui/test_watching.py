"""What the page shows of a table while a run trains, and how it keeps up."""

from collections.abc import Callable

import pytest
from playwright.sync_api import TimeoutError as NothingCameError
from processes import ServerProcess
from ui.browser import Look
from ui.conftest import OpenLook
from ui.training import AT, NAMES, Training

from groupreplay import Client, TableConfig

pytestmark = pytest.mark.ui
OpenPage = Callable[..., Look]
HIDE = """(hidden) => {
  Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });
  document.dispatchEvent(new Event('visibilitychange'));
}"""


def test_an_empty_service_says_what_to_do(client: Client, look: OpenPage) -> None:
    """Nobody has to guess whether it works."""
    assert client.list_tables() == []
    look().wait_for("There is no table yet")


def test_all_tables_are_shown_with_reward_and_effective_share_over_time(client: Client, look: OpenPage) -> None:
    """A line for each, which leads to it."""
    training = Training(client)
    client.create_table(run="other", table="idle")
    for _ in range(3):
        training.step()
    page = look()
    page.wait_for("2 in 2 runs")
    row = page.page.locator("tbody tr", has_text="math/train")
    row.get_by_role("img", name="effective share: from").wait_for()
    row.get_by_role("img", name="reward: from").wait_for()
    page.page.get_by_role("link", name="math/train").click()
    page.wait_for("What fills a batch")
    assert page.page.title() == "math/train · groupreplay"


def test_a_table_shows_steps_buffer_producers_leases_and_diagnosis(client: Client, look: OpenPage) -> None:
    """What one asks a run while it trains."""
    training = Training(client)
    client.beat(producer_id="gen-1", interval_s=60, status="sampling 8 prompts", **NAMES)
    for _ in range(4):
        training.step()
    training.generate(2)
    training.take(2)
    page = look(AT)
    chart = page.page.get_by_role("img", name="What fills a batch. Steps 1 to 4.")
    chart.wait_for()
    assert "fresh: 5 now, 5 to 6. refilled: 3 now, 0 to 3. short: 0 now, 0 to 3." in (
        chart.get_attribute("aria-label") or ""
    )
    page.page.get_by_role("img", name="Effective share. Steps 1 to 4").wait_for()
    page.page.get_by_role("img", name="Staleness in the buffer. replay:").wait_for()
    page.wait_for("sampling 8 prompts")
    page.wait_for("alive,")
    page.wait_for("trainer-0")
    page.wait_for("The next batch is being filled. Table math/train needs 8 more fresh groups")
    assert page.text(".tiles").count("\n") > 8


def test_a_batch_of_another_size_can_be_asked_about(client: Client, look: OpenPage) -> None:
    """Diagnose answers for the size that the trainer uses, or for the one that is typed."""
    training = Training(client)
    training.generate(3)
    page = look(AT)
    page.wait_for("needs 61 more fresh groups for a batch of 64")
    page.page.get_by_label("for a batch of").fill("2")
    page.page.keyboard.press("Enter")
    page.wait_for("The next batch is ready.")


def test_a_run_that_stands_still_stands_out(client: Client, look: OpenPage) -> None:
    """Between two batches a table is short of groups for a moment; one that nobody fills is another thing."""
    Training(client)
    page = look(AT)
    page.page.locator(".headline.problem").get_by_text(
        "The next batch is not ready. Table math/train needs 64"
    ).wait_for()
    page.page.get_by_role("status").get_by_text("The next batch is not ready.").wait_for()
    page.wait_for("No producer was ever heard of in table math/train")


def test_new_steps_come_by_themselves_and_disturb_nothing(client: Client, look: OpenPage) -> None:
    """Scroll position, focus, selection and every element stay; figures change."""
    training = Training(client)
    training.step()
    page = look(AT, height=500)
    page.page.get_by_role("img", name="Reward. Steps 1 to 1.").focus()
    page.page.evaluate("scrollTo(0, 300); window.before = [...document.querySelectorAll('main *')]")
    training.step()
    training.step()
    page.page.get_by_role("img", name="Reward. Steps 1 to 3.").wait_for()
    assert page.page.evaluate("scrollY") == 300
    assert "Reward" in page.focused()
    assert (
        page.page.evaluate("before.filter((it) => it.closest('.tiles, figcaption, .bar') && !it.isConnected).length")
        == 0
    )


def test_steps_that_are_undone_leave_the_page(client: Client, look: OpenPage) -> None:
    """A trainer went back to an older checkpoint."""
    training = Training(client)
    for _ in range(3):
        training.step()
    page = look(AT)
    page.page.get_by_role("img", name="Reward. Steps 1 to 3.").wait_for()
    policy = client.get_policy(run="math")
    client.rewind_policy(type(policy)(run="math", version=1, weights_uri="w1"), step=1)
    page.page.get_by_role("img", name="Reward. Steps 1 to 1.").wait_for()


@pytest.mark.parametrize("how", ["paused", "hidden"])
def test_nobody_who_does_not_look_asks(client: Client, look: OpenPage, how: str) -> None:
    """A page in the background costs the service nothing, and catches up when it is looked at again."""
    training = Training(client)
    training.step()
    page = look(AT)
    page.page.get_by_role("img", name="Reward. Steps 1 to 1.").wait_for()
    if how == "paused":
        page.page.get_by_role("button", name="Live").click()
    else:
        page.page.evaluate(HIDE, True)
    page.page.wait_for_load_state("networkidle")
    with pytest.raises(NothingCameError), page.page.expect_request("**/v1/**", timeout=6000):
        pass
    training.step()
    if how == "paused":
        page.page.get_by_role("button", name="Live").click()
    else:
        page.page.evaluate(HIDE, False)
    page.page.get_by_role("img", name="Reward. Steps 1 to 2.").wait_for()


def test_a_service_that_goes_away_is_told_and_what_was_shown_stays(
    open_look: OpenLook, client: Client, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """And when it comes back the page goes on by itself."""
    Training(client, TableConfig()).step()
    process = ServerProcess(tmp_path_factory.mktemp("mortal"), redis_url)
    process.http_address = "127.0.0.1:0"
    process.start()
    page = open_look(process.http_address, AT)
    page.expected = ("ERR_CONNECTION_REFUSED", "503")
    page.page.get_by_role("img", name="Reward. Steps 1 to 1.").wait_for()
    page.page.route("**/v1/**", lambda route: route.abort("connectionrefused"))
    page.wait_for("The service cannot be reached", "#trouble")
    assert page.text(".pulse") == "not up to date"
    page.page.get_by_role("img", name="Reward. Steps 1 to 1.").wait_for()
    page.page.unroute("**/v1/**")
    page.page.locator("#trouble").wait_for(state="hidden")
    assert process.terminate() == 0
