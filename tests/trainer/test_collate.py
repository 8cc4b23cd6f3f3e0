"""Batches become padded tensors without losing or inventing a token."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from groupreplay import Batch, DeliveredGroup, GroupSource, RolloutGroup
from groupreplay.torch.advantages import AdvantageEstimator, group_advantages
from groupreplay.torch.collate import MinibatchUnit, collate, split_microbatches, split_minibatches
from groupreplay_tinylm import CharTokenizer

PAD = CharTokenizer.pad_id


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Draw a batch of 1 to 4 groups of any make-up."""
    groups = []
    for index in range(draw(st.integers(1, 4))):
        lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
        total = sum(lengths)
        tokens = st.lists(st.integers(0, 30), min_size=total, max_size=total)
        mask = draw(st.none() | st.lists(st.booleans(), min_size=total, max_size=total))
        group = RolloutGroup(
            group_id=f"g{index}",
            prompt_id=f"p{index}",
            prompt_token_ids=np.array(draw(st.lists(st.integers(0, 30), min_size=1, max_size=4)), np.int32),
            response_token_ids=np.array(draw(tokens), np.int32),
            response_lengths=np.array(lengths, np.int32),
            behaviour_logprobs=-np.arange(1, total + 1, dtype=np.float32),
            rewards=np.array(
                draw(st.lists(st.sampled_from([0.0, 0.1, 1.0]), min_size=len(lengths), max_size=len(lengths))),
                np.float32,
            ),
            policy_version_min=0,
            policy_version_max=0,
            loss_mask=None if mask is None else np.array(mask, np.bool_),
        )
        source = draw(st.sampled_from(GroupSource))
        groups.append(
            DeliveredGroup(
                group=group,
                source=source,
                staleness=draw(st.integers(0, 9)),
                times_sampled=1,
                probability=1.0,
                redeliveries=0,
            )
        )
    return Batch(
        lease_id="l",
        lease_deadline_ms=0,
        policy_version=9,
        batch_size=4,
        fresh=0,
        fresh_effective=0,
        refilled=0,
        shortfall=0,
        groups=tuple(groups),
    )


@given(batches(), st.sampled_from(AdvantageEstimator))
def test_every_group_can_be_read_back_from_the_tensors(batch: Batch, estimator: AdvantageEstimator) -> None:
    """Tokens, log probabilities, masks, rewards and advantages of every rollout stand in its row, and nothing else."""
    rollouts = collate(batch, pad_token_id=PAD, estimator=estimator)
    row = 0
    for index, delivered in enumerate(batch.groups):
        group = delivered.group
        advantages = group_advantages(group.rewards, estimator=estimator)
        for number, piece in enumerate(group.response_slices()):
            prompt, response = group.prompt_token_ids.tolist(), group.response_token_ids[piece].tolist()
            end, start = len(prompt) + len(response), len(prompt)
            mask = [True] * len(response) if group.loss_mask is None else group.loss_mask[piece].tolist()
            width = rollouts.token_ids_BT.shape[1]
            assert rollouts.token_ids_BT[row].tolist() == prompt + response + [PAD] * (width - end)
            assert rollouts.attention_mask_BT[row].tolist() == [True] * end + [False] * (width - end)
            assert rollouts.response_mask_BT[row].tolist() == [False] * start + mask + [False] * (width - end)
            logprobs = rollouts.behaviour_logprobs_BT[row].tolist()
            assert logprobs[start:end] == group.behaviour_logprobs[piece].tolist()
            assert not any(logprobs[:start] + logprobs[end:])
            assert rollouts.advantages_B[row] == advantages[number]
            assert rollouts.rewards_B[row] == group.rewards[number]
            assert rollouts.group_index_B[row] == index
            assert rollouts.is_replay_B[row] == (delivered.source is GroupSource.REPLAY)
            assert rollouts.staleness_B[row] == delivered.staleness
            assert rollouts.lengths_B[row] == end
            assert rollouts.response_lengths_B[row] == len(response)
            row += 1
    assert len(rollouts) == row
    assert rollouts.token_ids_BT.shape[1] == rollouts.lengths_B.max()


def test_eos_is_trained_on_and_a_truncated_response_gets_none(make_group, make_batch) -> None:  # type: ignore[no-untyped-def]
    """The mask covers exactly the response tokens that came: EOS where the model wrote it, none where it was cut."""
    stopped = make_group("a", rewards=(1.0, 0.0), lengths=(3, 2))
    rollouts = collate(make_batch([stopped]), pad_token_id=PAD)
    last = [int(rollouts.response_mask_BT[row].nonzero().max()) for row in range(2)]
    assert [int(rollouts.token_ids_BT[row, last[row]]) for row in range(2)] == [CharTokenizer.eos_id] * 2
    tokens = stopped.group.response_token_ids.copy()
    tokens[tokens == CharTokenizer.eos_id] = 9
    cut = RolloutGroup(
        group_id="cut",
        prompt_id="p",
        prompt_token_ids=stopped.group.prompt_token_ids,
        response_token_ids=tokens,
        response_lengths=stopped.group.response_lengths,
        behaviour_logprobs=stopped.group.behaviour_logprobs,
        rewards=stopped.group.rewards,
        policy_version_min=0,
        policy_version_max=0,
    )
    delivered = DeliveredGroup(
        group=cut, source=GroupSource.FRESH, staleness=0, times_sampled=1, probability=1.0, redeliveries=0
    )
    truncated = collate(make_batch([delivered]), pad_token_id=PAD)
    assert CharTokenizer.eos_id not in truncated.token_ids_BT
    assert torch.equal(truncated.response_mask_BT, rollouts.response_mask_BT)


def test_selected_rows_are_narrowed_to_their_longest(make_group, make_batch) -> None:  # type: ignore[no-untyped-def]
    """A piece of short rollouts is not padded to the longest of the batch."""
    rollouts = collate(make_batch([make_group(lengths=(3, 2, 9))]), pad_token_id=PAD)
    piece = rollouts.select(torch.tensor([1, 0]))
    assert piece.token_ids_BT.shape == (2, 6)
    assert piece.lengths_B.tolist() == [5, 6]
    assert piece.trained_tokens == 5
    assert torch.equal(piece.token_ids_BT[1], rollouts.token_ids_BT[0, :6])


def test_what_cannot_be_trained_on_is_refused_by_name(make_group, make_batch) -> None:  # type: ignore[no-untyped-def]
    """An empty batch, a group without prompt, and a rollout that the model cannot take are errors that name them."""
    with pytest.raises(ValueError, match="trainer-000001 has no groups"):
        collate(make_batch([]), pad_token_id=PAD)
    with pytest.raises(ValueError, match="group bare has no prompt tokens"):
        collate(make_batch([make_group("bare", prompt=())]), pad_token_id=PAD)
    with pytest.raises(ValueError, match="group long has a rollout of 12 tokens"):
        collate(make_batch([make_group("long", lengths=(1, 9, 2))]), pad_token_id=PAD, max_tokens=11)


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=40).map(sorted),
    st.integers(1, 6),
    st.sampled_from(MinibatchUnit),
    st.integers(0, 5),
)
def test_minibatches_hold_every_row_once(groups: list[int], count: int, unit: MinibatchUnit, seed: int) -> None:
    """Every row is in one minibatch, whole groups stay together, sizes in units differ by one at most."""
    group_index = torch.tensor(groups)
    generator = torch.Generator().manual_seed(seed)
    pieces = split_minibatches(group_index, count=count, generator=generator, unit=unit)
    assert sorted(torch.cat(pieces).tolist()) == list(range(len(groups)))
    units = len(set(groups)) if unit is MinibatchUnit.GROUP else len(groups)
    assert len(pieces) == min(count, units)
    sizes = [len(set(group_index[piece].tolist())) if unit is MinibatchUnit.GROUP else len(piece) for piece in pieces]
    assert max(sizes) - min(sizes) <= 1
    assert sum(sizes) == units


def test_microbatches_put_like_lengths_together() -> None:
    """Rows are sorted by length, longest first, so that padding is least; none is lost."""
    lengths = torch.tensor([9, 1, 8, 2, 7, 3])
    pieces = split_microbatches(torch.tensor([5, 4, 2, 1, 0]), lengths, tokens_at_once=100, max_rollouts=2)
    assert [piece.tolist() for piece in pieces] == [[0, 2], [4, 5], [1]]


@pytest.mark.parametrize(
    ("packed", "expected"),
    [(False, [[0, 2], [4, 5], [3, 1]]), (True, [[0, 2], [4, 5, 3, 1]])],
    ids=["padded", "packed"],
)
def test_microbatches_keep_to_the_token_budget(packed: bool, expected: list[list[int]]) -> None:
    """Padding counts where there is padding; a rollout that is longer than the budget goes alone."""
    lengths = torch.tensor([9, 1, 8, 2, 7, 3])
    rows = torch.arange(6)
    pieces = split_microbatches(rows, lengths, tokens_at_once=18, packed=packed)
    assert [piece.tolist() for piece in pieces] == expected
    alone = split_microbatches(rows, lengths, tokens_at_once=1, packed=packed)
    assert [piece.tolist() for piece in alone] == [[0], [2], [4], [5], [3], [1]]


def test_minibatches_and_microbatches_of_nothing_are_refused() -> None:
    """Counts below 1 are errors."""
    with pytest.raises(ValueError, match="count 0"):
        split_minibatches(torch.tensor([0]), count=0, generator=torch.Generator())
    with pytest.raises(ValueError, match="max_rollouts 0"):
        split_microbatches(torch.tensor([0]), torch.tensor([1]), tokens_at_once=1, max_rollouts=0)
    with pytest.raises(ValueError, match="tokens_at_once 0"):
        split_microbatches(torch.tensor([0]), torch.tensor([1]), tokens_at_once=0)


def test_a_token_outside_the_vocabulary_is_refused(make_group, make_batch) -> None:  # type: ignore[no-untyped-def]
    """The error names the group, the token and the size: the generator has another tokenizer than the model."""
    batch = make_batch([make_group("good", prompt=(5, 6)), make_group("bad", prompt=(5, 900))])
    with pytest.raises(ValueError, match=r"group bad has the token id 900 in a prompt; .* vocabulary has 64"):
        collate(batch, pad_token_id=0, vocab_size=64)
    assert len(collate(batch, pad_token_id=0, vocab_size=901)) == 6
