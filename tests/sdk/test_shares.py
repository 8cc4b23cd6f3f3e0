"""How a batch is divided among ranks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groupreplay import Delivery, GroupOutline, GroupSource
from groupreplay.shares import share_by_tokens, share_groups


@given(st.lists(st.integers(1, 10_000), max_size=60), st.integers(1, 9))
def test_every_item_is_in_one_share_and_no_share_is_far_ahead(tokens: list[int], shares: int) -> None:
    """Shares differ by one item's tokens at most, and none is empty while there are items enough."""
    found = share_by_tokens(tokens, shares)
    assert len(found) == shares
    assert sorted(index for share in found for index in share) == list(range(len(tokens)))
    assert all(list(share) == sorted(share) for share in found)
    sums = [sum(tokens[index] for index in share) for share in found]
    assert max(sums) - min(sums) <= max(tokens, default=0)
    assert sum(map(bool, found)) == min(shares, len(tokens))
    assert found == share_by_tokens(tuple(tokens), shares)


def test_groups_are_shared_by_what_a_model_reads_of_them() -> None:
    """A long prompt counts once for each response."""

    def outline(group_id: str, prompt_length: int, *lengths: int) -> GroupOutline:
        delivery = Delivery(
            group_id=group_id,
            source=GroupSource.FRESH,
            staleness=0,
            times_sampled=1,
            probability=1.0,
            redeliveries=0,
            importance_weight=1.0,
        )
        return GroupOutline(delivery=delivery, rewards=(0.0,), prompt_length=prompt_length, response_lengths=lengths)

    groups = [outline("a", 1, 10, 10), outline("b", 50, 1, 1), outline("c", 1, 40, 39)]
    assert [group.tokens for group in groups] == [22, 102, 81]
    assert share_groups(groups, 2) == [("b",), ("a", "c")]


@pytest.mark.parametrize(("tokens", "shares"), [([1], 0), ([0], 1)])
def test_nothing_cannot_be_shared(tokens: list[int], shares: int) -> None:
    """Both counts begin at 1."""
    with pytest.raises(ValueError, match="both begin at 1"):
        share_by_tokens(tokens, shares)
