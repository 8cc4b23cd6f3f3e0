"""Items of Atropos and rollout groups are each other's mirror image."""

import gzip
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import make_group

from groupreplay import InvalidGroupError, MessageTooLargeError
from groupreplay.convert import group_from_wire, group_to_wire
from groupreplay_server.api.atropos.arrivals import QueuedGroup, slots_for
from groupreplay_server.api.atropos.bodies import unpack
from groupreplay_server.api.atropos.items import Receipt, group_from_item, item_from_group
from groupreplay_server.api.atropos.schema import ScoredData

RECEIPT = Receipt(producer_id="env", task="adding", policy_version=3, epoch="run/train/0")
TOKENS = st.lists(st.integers(0, 9), min_size=1, max_size=6)
FLOATS = st.floats(-100, 0, width=32)


@st.composite
def items(draw: st.DrawFn) -> ScoredData:
    """Return what an environment may send: any masks, any nested lists, prompts that are shared or not."""
    prompt = draw(st.lists(st.integers(0, 9), max_size=3))
    tokens = [prompt + draw(TOKENS) for _ in range(draw(st.integers(1, 4)))]
    masks = [[draw(st.sampled_from([-100, token, token, 1])) for token in sequence] for sequence in tokens]
    logprobs = [[draw(FLOATS | st.just(1.0)) for _ in sequence] for sequence in tokens]
    nested = st.none() | st.lists(st.lists(FLOATS, max_size=3), max_size=3)
    deep = st.none() | st.lists(st.lists(st.lists(st.integers(0, 99), max_size=2), max_size=2), max_size=2)
    return ScoredData(
        tokens=tokens,
        masks=masks,
        scores=draw(st.lists(st.floats(-10, 10), min_size=len(tokens), max_size=len(tokens))),
        inference_logprobs=draw(st.none() | st.just(logprobs) | nested),
        advantages=draw(nested),
        ref_logprobs=draw(nested),
        distill_token_ids=draw(deep),
        messages=draw(st.none() | st.just([])),
        overrides=draw(st.none() | st.lists(st.dictionaries(st.just("x"), st.booleans()), max_size=2)),
        images=draw(st.none() | st.just(["x", None]) | st.just([])),
        env_id=draw(st.none() | st.integers(0, 5)),
    )


@given(items())
def test_an_item_survives_the_way_through_a_group(item: ScoredData) -> None:
    """Over the wire and back, field for field."""
    group = group_from_item(item, RECEIPT)
    back = item_from_group(group_from_wire(*group_to_wire(group)))
    assert back == item.model_dump()


@given(items())
def test_the_same_item_is_the_same_group(item: ScoredData) -> None:
    """And another group in another epoch, or from another environment."""
    one = group_from_item(item, RECEIPT)
    assert group_from_item(item.model_copy(deep=True), RECEIPT).group_id == one.group_id
    later = Receipt(producer_id="env", task="adding", policy_version=3, epoch="run/train/1")
    assert group_from_item(item, later).group_id != one.group_id
    assert group_from_item(item.model_copy(update={"env_id": 77}), RECEIPT).group_id != one.group_id


def test_a_prompt_is_what_all_sequences_share_and_none_trains_on() -> None:
    """Turns of a conversation that are not the model's own stay in the response, untrained."""
    item = ScoredData(
        tokens=[[1, 2, 3, 4, 9, 5], [1, 2, 3, 7, 9, 6]],
        masks=[[-100, -100, -100, 4, -100, 5], [-100, -100, 3, 7, -100, 6]],
        scores=[0, 1],
    )
    group = group_from_item(item, RECEIPT)
    assert group.prompt_token_ids.tolist() == [1, 2]
    assert group.response_token_ids.tolist() == [3, 4, 9, 5, 3, 7, 9, 6]
    assert group.loss_mask is not None
    assert group.loss_mask.tolist() == [False, True, False, True, True, True, False, True]


def test_sequences_without_a_trained_token_keep_a_response() -> None:
    """Every response has a token, though none is trained on."""
    group = group_from_item(ScoredData(tokens=[[1, 2], [1]], masks=[[-100, -100], [-100]], scores=[0, 1]), RECEIPT)
    assert group.response_lengths.tolist() == [2, 1]


def test_reference_logprobs_of_the_sdk_are_aligned_with_the_tokens() -> None:
    """1 stands before the response, as for all log probabilities of Atropos."""
    group = make_group("a", columns={"reference_logprobs": np.full(6, -2.0, np.float32)})
    assert item_from_group(group)["ref_logprobs"] == [[1.0, 1.0, -2.0, -2.0, -2.0]] * 2


@pytest.mark.parametrize("value", [float("nan"), "\ud800"], ids=["nan", "surrogate"])
def test_what_json_cannot_express_is_refused(value: Any) -> None:
    """It could never leave again, and would block the batch that it is in."""
    with pytest.raises(InvalidGroupError, match="JSON cannot express"):
        group_from_item(ScoredData(tokens=[[1]], masks=[[1]], scores=[0], overrides=[{"x": value}]), RECEIPT)


@pytest.mark.parametrize(
    ("sizes", "batch_size", "slots"),
    [([], 4, 0), ([2], 4, 0), ([2, 2], 4, 2), ([2, 2, 2], 4, 2), ([4, 2, 4], 8, 2), ([8], 4, 1), ([2, 8], 4, 1)],
)
def test_a_batch_is_the_groups_that_fit(sizes: list[int], batch_size: int, slots: int) -> None:
    """In order of arrival; what is too large for any batch is one of its own."""
    assert slots_for([QueuedGroup(None, size, effective=True) for size in sizes], batch_size) == slots


def test_a_small_body_that_unpacks_to_a_large_one_is_refused() -> None:
    """Before there is memory taken for it."""
    assert unpack(gzip.compress(b"ab") + gzip.compress(b"cd"), limit=4) == b"abcd"
    with pytest.raises(MessageTooLargeError, match="more than 4 bytes"):
        unpack(gzip.compress(bytes(10_000_000)), limit=4)
