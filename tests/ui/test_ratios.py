"""Tokens shaded by the ratio that the trainer fed back."""

from collections.abc import Callable

import numpy as np
import pytest
from ui.browser import Look
from ui.training import AT, NAMES, Training, sum_group

from groupreplay import Client, GroupFeedback, Rollout, RolloutGroup

pytestmark = pytest.mark.ui
OpenPage = Callable[..., Look]
LOG_RATIOS = np.array([0.0, 0.65, -0.65, np.nan] + [-0.1] * 12, np.float32)
"""Of the 16 tokens of a sum_group."""
BY_RATIO = "ratio fed back (policy version 0)"


def train_on(client: Client, *groups: RolloutGroup) -> Training:
    """Insert groups and commit a step that used them, with log ratios of the first."""
    training = Training(client)
    training.insert(groups)
    batch = training.take(len(groups))
    feedback = [GroupFeedback(group_id=groups[0].group_id, kl=0.02, ess=0.9, log_ratios=LOG_RATIOS)]
    client.commit(lease_id=batch.lease_id, step=7, feedback=feedback, **NAMES)
    return training


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_tokens_are_shaded_by_the_ratio_that_was_fed_back(client: Client, look: OpenPage, scheme: str) -> None:
    """In two colours, with the ratio at each token, a legend, and who sent it; a token without one has no colour."""
    train_on(client, sum_group(1))
    page = look(f"{AT}/groups/g00001", scheme=scheme)
    page.wait_for("108", "article")
    tokens = page.page.locator("article").first.locator(".token")
    page.page.get_by_label("Shade tokens by").select_option(label=BY_RATIO)
    page.until("() => document.querySelector('article .token').title === 'ratio fed back 1'")
    assert [tokens.nth(index).get_attribute("title") for index in range(1, 4)] == [
        "ratio fed back 1.92",
        "ratio fed back 0.522",
        "ratio fed back none: the step did not score this token",
    ]
    classes = [tokens.nth(index).get_attribute("class") for index in range(4)]
    assert classes == ["token t0", "token t6", "token below t6", "token "]
    assert page.text(".scale").split() == ["less", "likely,", "0.5", "2,", "more", "likely"]
    assert "Ratio fed back by step 7: how likely policy version 0 finds the token" in page.text(".told")
    colours = [
        page.page.evaluate("(at) => getComputedStyle(document.querySelectorAll('.token')[at]).backgroundColor", at)
        for at in range(4)
    ]
    assert colours[3] == "rgba(0, 0, 0, 0)"
    assert len(set(colours)) == 4


def test_the_ratio_is_chosen_with_the_keyboard(client: Client, look: OpenPage) -> None:
    """Tab to the choice, arrow down: from the log probability to the ratio, and back."""
    train_on(client, sum_group(1))
    page = look(f"{AT}/groups/g00001")
    page.wait_for("108", "article")
    for _ in range(40):
        if page.page.evaluate("document.activeElement.tagName") == "SELECT":
            break
        page.page.keyboard.press("Tab")
    choice = page.page.get_by_label("Shade tokens by")
    assert choice.evaluate("(it) => it === document.activeElement")
    page.page.keyboard.press("ArrowDown")
    page.until("() => document.querySelector('article .token').title === 'ratio fed back 1'")
    page.page.keyboard.press("ArrowUp")
    page.until("() => document.querySelector('article .token').title.startsWith('behaviour')")


def test_a_group_without_ratios_says_why(client: Client, look: OpenPage) -> None:
    """The choice is shown and cannot be made."""
    train_on(client, sum_group(1), sum_group(2))
    page = look(f"{AT}/groups/g00002")
    page.wait_for("109", "article")
    missing = page.page.get_by_label("Shade tokens by").locator("option", has_text="ratio fed back (none)")
    assert missing.is_disabled()
    assert "No ratio of each token was fed back for this group" in page.text(".told")
    assert "feedback_log_ratios" in page.text(".told")


def test_newer_ratios_appear_by_themselves(client: Client, look: OpenPage) -> None:
    """The page is open while a step trains on the group again; what was chosen stays chosen."""
    training = train_on(client, sum_group(1))
    page = look(f"{AT}/groups/g00001")
    page.wait_for("108", "article")
    choice = page.page.get_by_label("Shade tokens by")
    choice.select_option(label=BY_RATIO)
    page.wait_for("0.02, 0.9", ".facts")
    training.insert([sum_group(5, solved=0)])
    batch = client.next_batch(batch_size=1, lease_id="again", timeout_s=10, **NAMES)
    assert [it.group.group_id for it in batch.groups] == ["g00001"]
    feedback = [GroupFeedback(group_id="g00001", kl=0.05, ess=0.8, log_ratios=LOG_RATIOS - 0.1)]
    client.commit(lease_id=batch.lease_id, step=8, feedback=feedback, **NAMES)
    page.until("() => document.querySelector('article .token').title === 'ratio fed back 0.905'")
    assert "by step 8" in page.text(".told")
    assert choice.input_value() == "ratio fed back"


def test_ids_are_shaded_where_the_text_has_no_character_for_each_token(client: Client, look: OpenPage) -> None:
    """As with log probabilities: the text stands above the numbers of its tokens."""
    rollouts = [
        Rollout(token_ids=[4021, 77], behaviour_logprobs=[-0.5, -3.9], reward=reward, text="a long answer")
        for reward in (0.0, 1.0)
    ]
    words = RolloutGroup.from_rollouts(
        rollouts, group_id="words", prompt_id="p", prompt_token_ids=[3], prompt_text="say", policy_version=0
    )
    Training(client).insert([words])
    log_ratios = [0.0, -0.65, 0.3, np.nan]
    client.update_priorities([GroupFeedback(group_id="words", log_ratios=log_ratios)], **NAMES)
    page = look(f"{AT}/groups/words")
    page.wait_for("a long answer", "article")
    page.page.get_by_label("Shade tokens by").select_option(label=BY_RATIO)
    page.until("() => document.querySelectorAll('article .token')[1].title === 'ratio fed back 0.522'")
    first = page.page.locator("article").first.locator(".token")
    assert first.all_inner_texts() == ["4021 ", "77 "]
    assert first.nth(1).get_attribute("class") == "token below t6"
    assert "without a step" in page.text(".told")
