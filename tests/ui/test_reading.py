"""Looking for groups, and reading one."""

import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from ui.browser import Look
from ui.training import AT, NAMES, Training, sum_group

from groupreplay import Client, GroupFeedback, Rollout, RolloutGroup, TableConfig

pytestmark = pytest.mark.ui
OpenPage = Callable[..., Look]


def rows(page: Look) -> list[str]:
    """Return the ids of the groups that are listed."""
    return [str(text) for text in page.page.locator("a.row").all_inner_texts()]


def png(width: int, height: int) -> bytes:
    """Return a black picture."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    lines = zlib.compress((b"\0" + bytes(width)) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")


def test_groups_are_found_by_state_variance_task_version_and_prompt(client: Client, look: OpenPage) -> None:
    """Each filter, and the address that says them again."""
    training = Training(client)
    training.step()
    training.insert([sum_group(100, version=1, task="other"), sum_group(101, version=1, solved=0)])
    page = look(f"{AT}/groups")
    page.wait_for("g00100")
    for label, value, expected in (
        ("State", "fresh", ["g00101", "g00100"]),
        ("Reward variance", "effective", ["g00100"]),
    ):
        page.page.get_by_label(label).select_option(label=value)
        page.until("(n) => document.querySelectorAll('a.row').length === n", len(expected))
        assert rows(page) == expected
    assert page.page.url.endswith("/groups?state=fresh&effective=true")
    page.page.reload()
    page.until("() => document.querySelectorAll('a.row').length === 1")
    assert page.page.get_by_label("State").input_value() == "fresh"
    page.page.get_by_role("button", name="Clear").click()
    for label, value in (("Task", "other"), ("Version from", "1"), ("Prompt id", "sum-100")):
        page.page.get_by_role("button", name="Clear").click()
        page.until("() => document.querySelectorAll('a.row').length > 2")
        page.page.get_by_label(label).fill(value)
        page.page.keyboard.press("Enter")
        page.until("() => document.querySelectorAll('a.row').length < 3")
        assert "g00100" in rows(page)
    page.page.get_by_label("Prompt id").fill("no such prompt")
    page.page.keyboard.press("Enter")
    page.wait_for("There are no groups that match")


def test_more_groups_come_page_by_page(client: Client, look: OpenPage) -> None:
    """None twice, none left out."""
    training = Training(client)
    training.generate(250)
    page = look(f"{AT}/groups")
    page.wait_for("100 of more")
    more = page.page.get_by_role("button", name="Show more")
    for count in (200, 250):
        more.click()
        page.until("(n) => document.querySelectorAll('a.row').length === n", count)
    more.wait_for(state="hidden")
    assert sorted(rows(page)) == [f"g{number:05d}" for number in range(250)]


def test_a_group_is_read_with_its_responses_side_by_side(client: Client, look: OpenPage) -> None:
    """Prompt, responses, rewards in words and colour, and what the trainer fed back."""
    training = Training(client)
    training.insert([sum_group(1, solved=1)])
    client.update_priorities([GroupFeedback(group_id="g00001", priority=2.5, kl=0.125, ess=0.75)], **NAMES)
    page = look(f"{AT}/groups/g00001")
    page.wait_for("0.125, 0.75", ".facts")
    page.wait_for("101+7=", ".prompt")
    responses = page.page.locator("article")
    assert responses.count() == 4
    assert responses.nth(0).get_attribute("aria-label") == "Response 0, reward 1"
    assert "r4" in (responses.nth(0).get_attribute("class") or "").split()
    assert "r0" in (responses.nth(1).get_attribute("class") or "").split()
    assert responses.nth(0).locator(".words").inner_text() == "108⟨1⟩"
    assert "0.125, 0.75" in page.text(".facts")
    assert "2.5" in page.text(".facts")
    boxes = [responses.nth(index).bounding_box() for index in (0, 1)]
    assert boxes[0] is not None
    assert boxes[1] is not None
    assert boxes[0]["y"] == boxes[1]["y"]


def test_tokens_are_shaded_by_what_is_known_of_each(client: Client, look: OpenPage) -> None:
    """Behaviour log probabilities; and columns of the producer, as they are and as ratios."""
    training = Training(client)
    plain, rich = sum_group(1), sum_group(2)
    columns = {"reference_logprobs": (rich.behaviour_logprobs * 2).astype(np.float32)}
    fields = {name: getattr(rich, name) for name in RolloutGroup.__slots__}
    training.insert([plain, RolloutGroup(**fields | {"columns": columns})])
    page = look(f"{AT}/groups/g00001")
    page.wait_for("108", "article")
    tokens = page.page.locator("article").first.locator(".token")
    shades = [tokens.nth(index).get_attribute("class") for index in range(4)]
    assert shades == ["token t0", "token t0", "token t0", "token t0"]
    assert tokens.nth(3).get_attribute("title") == "behaviour log probability -0.4"
    choice = page.page.get_by_label("Shade tokens by")
    names = ["nothing", "behaviour log probability", "ratio fed back (none)"]
    assert choice.locator("option").all_inner_texts() == names
    choice.select_option(label="nothing")
    page.until("() => document.querySelector('article .words').innerText === '108'")
    page.go(f"{AT}/groups/g00002")
    page.page.reload()
    page.wait_for("109", "article")
    choice.select_option(label="ratio of reference_logprobs to behaviour")
    page.until("() => document.querySelector('article .token').title.startsWith('ratio')")
    assert tokens.nth(0).get_attribute("title") == "ratio of reference_logprobs to behaviour 0.905"
    assert "below" in (tokens.nth(3).get_attribute("class") or "")


def test_a_text_whose_tokens_are_not_its_letters_is_shown_beside_the_token_ids(client: Client, look: OpenPage) -> None:
    """The service has no tokenizer, so the page does not pretend to know which token made which part."""
    rollouts = [
        Rollout(token_ids=[4021, 77], behaviour_logprobs=[-0.5, -3.9], reward=reward, text="a long answer")
        for reward in (0.0, 1.0)
    ]
    group = RolloutGroup.from_rollouts(
        rollouts, group_id="words", prompt_id="p", prompt_token_ids=[3], prompt_text="say", policy_version=0
    )
    Training(client).insert([group])
    page = look(f"{AT}/groups/words")
    page.wait_for("a long answer", "article")
    assert page.page.locator("article").first.locator(".token").all_inner_texts() == ["4021 ", "77 "]
    assert page.page.locator("article").first.locator(".token").nth(1).get_attribute("class") == "token t7"


def test_images_are_shown(client: Client, look: OpenPage) -> None:
    """Pixels as they were inserted, grey or coloured, and the bytes of a file."""
    colours = np.arange(12, dtype=np.uint8).reshape(2, 2, 3) * 20
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3, 1) * 40
    columns = {"image": colours, "mask": grey, "photo": np.frombuffer(png(5, 4), np.uint8)}
    Training(client).insert([sum_group(1, columns=columns)])
    page = look(f"{AT}/groups/g00001")
    page.page.get_by_role("img", name="image of column image, 2 by 2 pixels").wait_for()
    pixels = (
        "(label) => { const it = [...document.querySelectorAll('canvas')].find((it) => it.ariaLabel.includes(label));"
        " return [...it.getContext('2d').getImageData(0, 0, it.width, it.height).data]; }"
    )
    found = np.array(page.page.evaluate(pixels, "column image")).reshape(2, 2, 4)
    np.testing.assert_array_equal(found[:, :, :3], colours)
    found = np.array(page.page.evaluate(pixels, "column mask")).reshape(2, 3, 4)
    np.testing.assert_array_equal(found[:, :, :3], np.repeat(grey, 3, axis=2))
    page.until("() => document.querySelector('img.picture').naturalWidth === 5")


def test_a_group_without_payload_says_why_there_are_no_words(client: Client, look: OpenPage) -> None:
    """So does one that left, and one that never was."""
    training = Training(client, TableConfig(replay_capacity=1))
    training.insert([sum_group(1, solved=0)])
    page = look(f"{AT}/groups/g00001")
    page.wait_for("The table keeps no payload of this group")
    client.delete_groups(["g00001"], **NAMES)
    page.page.reload()
    page.wait_for("This group was in the table, and left.")
    page.go(f"{AT}/groups/never")
    page.wait_for("The table has no such group.")


def test_a_table_that_is_not_there_is_told_in_the_words_of_the_service(client: Client, look: OpenPage) -> None:
    """A deep link may be old."""
    Training(client)
    page = look("#/math/gone")
    page.expected = ("404",)
    page.wait_for("there is no table math/gone", "#trouble")


def test_a_group_of_long_responses_can_be_read(client: Client, look: OpenPage) -> None:
    """A few tokens at first, more when asked."""
    tokens = 40_000
    rollouts = [
        Rollout(token_ids=list(range(tokens)), behaviour_logprobs=[-0.5] * tokens, reward=reward, text="long " * 30_000)
        for reward in (0.0, 1.0)
    ]
    group = RolloutGroup.from_rollouts(rollouts, group_id="long", prompt_id="p", prompt_token_ids=[3], policy_version=0)
    Training(client).insert([group])
    page = look(f"{AT}/groups/long")
    first = page.page.locator("article").first
    first.get_by_role("button", name="Show more of 40k tokens").wait_for()
    assert first.locator(".token").count() == 600
    first.get_by_role("button").click()
    assert first.locator(".token").count() == 4800
