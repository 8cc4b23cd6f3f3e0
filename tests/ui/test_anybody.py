"""The page for everybody: small and large, light and dark, by keyboard, with hostile texts in it, and 10,000 groups."""

from collections.abc import Callable

import pytest
from ui.browser import Look
from ui.training import AT, NAMES, Training, sum_group

from groupreplay import Client, Rollout, RolloutGroup, TableConfig

pytestmark = pytest.mark.ui
OpenPage = Callable[..., Look]
VIEWS = {"": "math/train", AT: "Last steps", f"{AT}/groups": "g00001", f"{AT}/groups/g00001": "Response 0"}
HOSTILE = (
    '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script><svg onload=window.hacked=1>'
    "{{7*7}}${7*7}</pre></main>\u202egnp.exe\u0000&lt;b&gt; javascript:alert(1)"
)
OPENS_WITHIN_S = 2.0


def brightness(page: Look, name: str) -> float:
    """Return how bright a colour of the page is, 0 to 1."""
    colour = str(page.page.evaluate(f"getComputedStyle(document.body).{name}"))
    return sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(","))) / (3 * 255)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_every_view_fits_its_window_in_the_colours_of_the_system(
    client: Client, look: OpenPage, width: int, scheme: str
) -> None:
    """Nothing sticks out, at 400 px neither; text stands out from its ground."""
    training = Training(client)
    training.step()
    training.generate(4)
    training.take(2)
    page = look(width=width, scheme=scheme)
    for path, text in VIEWS.items():
        page.go(path)
        page.wait_for(text)
        assert page.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, path
        ground, ink = (brightness(page, name) for name in ("backgroundColor", "color"))
        assert abs(ground - ink) > 0.7
        assert (ground > ink) == (scheme == "light")


def test_everything_can_be_reached_by_keyboard_alone(client: Client, look: OpenPage) -> None:
    """Tab, arrows, Enter and Escape; the focus is seen, and comes back to where it was."""
    training = Training(client)
    for _ in range(3):
        training.step()
    page = look()
    page.wait_for("math/train")
    press = page.page.keyboard.press
    press("Tab")
    assert page.focused() == "Skip to content"
    press("Enter")
    press("Tab")
    while page.focused() != "math/train":
        press("Tab")
    assert page.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    press("Enter")
    page.page.get_by_role("img", name="Reward. Steps 1 to 3.").wait_for()
    while page.focused() != "groups":
        press("Tab")
    press("Enter")
    page.until("() => document.querySelectorAll('a.row').length > 3")
    while not page.focused().startswith("g0"):
        press("Tab")
    first = page.focused()
    press("ArrowDown")
    press("ArrowDown")
    press("ArrowUp")
    second = page.focused()
    assert (second != first, second.startswith("g0")) == (True, True)
    press("End")
    press("Home")
    assert page.focused() == first
    press("ArrowDown")
    press("Enter")
    page.wait_for("Policy version", ".facts")
    press("Escape")
    page.until("(id) => document.activeElement.innerText === id", second)
    press("Escape")
    page.page.get_by_role("img", name="Reward. Steps 1 to 3.").wait_for()
    press("Escape")
    page.wait_for("1 in 1 run")


def test_charts_are_read_step_by_step_with_the_arrow_keys(client: Client, look: OpenPage) -> None:
    """What a pointer shows, a keyboard shows too, in words."""
    training = Training(client)
    for _ in range(3):
        training.step()
    page = look(AT)
    chart = page.page.get_by_role("img", name="What fills a batch. Steps 1 to 3.")
    chart.focus()
    page.page.keyboard.press("Home")
    caption = page.page.locator("figure", has=chart).locator(".values")
    assert caption.inner_text().split() == ["step", "1", "fresh", "5", "refilled", "0", "short", "3"]
    page.page.keyboard.press("ArrowRight")
    assert caption.inner_text().split()[:2] == ["step", "2"]
    assert "Cursor at step 2" in (chart.get_attribute("aria-label") or "")
    buffer = page.page.get_by_role("img", name="Staleness in the buffer")
    buffer.focus()
    page.page.keyboard.press("End")
    assert "at " in page.page.locator("figure", has=buffer).locator(".values").inner_text()


def test_every_control_and_picture_has_a_name(client: Client, look: OpenPage) -> None:
    """Nothing is unnamed to who cannot see it."""
    training = Training(client)
    training.step()
    page = look()
    unnamed = (
        "() => [...document.querySelectorAll('button, input, select, a, [role=img], img, [role=region]')]"
        ".filter((it) => it.checkVisibility() && !(it.ariaLabel || it.innerText || it.alt || it.labels?.length"
        " || it.closest('[aria-label]'))).map((it) => it.outerHTML)"
    )
    for path, text in VIEWS.items():
        page.go(path)
        page.wait_for(text)
        page.until("() => document.querySelector('#pulse').classList.contains('fine')")
        assert page.page.evaluate(unnamed) == []
        assert page.page.locator("h1").count() == 1


def test_hostile_texts_are_shown_and_do_nothing(client: Client, look: OpenPage) -> None:
    """Wherever somebody else's words come in: prompt, response, ids, task, tags, column names, status, holder."""
    rollouts = [
        Rollout(token_ids=[5, 6], behaviour_logprobs=[-0.5, -0.5], reward=reward, text=HOSTILE) for reward in (0.0, 1.0)
    ]
    group = RolloutGroup.from_rollouts(
        rollouts, group_id="hostile", prompt_id=HOSTILE, prompt_token_ids=[3], prompt_text=HOSTILE, policy_version=0,
        task=HOSTILE[:100], tags={HOSTILE: HOSTILE}, producer_id="gen",
    )  # fmt: skip
    training = Training(client, TableConfig(allow_repeated_prompts=True))
    client.beat(producer_id="gen", interval_s=60, status=HOSTILE, **NAMES)
    training.insert([group, sum_group(1)])
    client.next_batch(batch_size=1, lease_id="held", holder=HOSTILE[:100], timeout_s=5, **NAMES)
    page = look(f"{AT}/groups/hostile")
    page.wait_for("Response 1")
    assert page.page.locator(".prompt .words").text_content() == HOSTILE
    page.page.get_by_label("Shade tokens by").select_option(label="nothing")
    page.until("(text) => document.querySelector('article .words').textContent === text", HOSTILE)
    page.expected = ("404", "422")  # what no name can be
    for path in (f"{AT}/groups", f"{AT}/groups?task=<img src=x onerror=hacked=1>", "#/<img src=x>/<b>", "#/%E0%A4%A/x"):
        page.go(path)
        page.until("() => document.querySelector('#pulse').textContent !== ''")
    page.go(AT)
    page.wait_for("window.hacked=1", "tbody")
    assert page.page.evaluate("window.hacked") is None
    assert page.page.locator("main img, main script, main svg[onload]").count() == 0


def test_the_browser_itself_refuses_markup_from_data(client: Client, look: OpenPage) -> None:
    """Were a script of the page to slip one day, the policy would hold."""
    Training(client)
    page = look()
    page.expected = ("TrustedHTML", "Content Security Policy", "violates")
    page.wait_for("math/train")
    assert "TrustedHTML" in page.page.evaluate(
        "() => { try { document.body.innerHTML = '<b>x</b>'; } catch (error) { return error.message; } }"
    )
    assert page.page.evaluate("fetch('https://example.com/').then(() => 'sent', () => 'refused')") == "refused"
    page.hosts.discard("example.com")


def test_ten_thousand_groups_open_at_once(client: Client, look: OpenPage) -> None:
    """Table and list, by the browser's own clock."""
    training = Training(client, TableConfig(fresh_capacity=20_000, replay_capacity=20_000))
    training.generate(10_000)
    for _ in range(4):
        training.step(256)
    table = client.describe_table(**NAMES)
    assert table.fresh + table.replay >= 10_000
    for path, text in ((AT, "Last steps"), (f"{AT}/groups", "100 of more")):
        page = look()
        page.go(path)
        page.page.reload()
        page.wait_for(text)
        page.until("() => performance.getEntriesByName('shown').length > 0")
        painted_s, shown_s = (
            page.page.evaluate(f"performance.getEntriesByName('{name}')[0].startTime / 1000")
            for name in ("first-contentful-paint", "shown")
        )
        print(f"{path}: first paint after {painted_s:.2f} s, everything shown after {shown_s:.2f} s")
        assert shown_s < OPENS_WITHIN_S
