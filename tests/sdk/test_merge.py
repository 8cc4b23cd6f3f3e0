"""How the pieces of a partial group are put together."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import make_group, same

from groupreplay import FinishReason, InvalidGroupError, RolloutGroup
from groupreplay.convert import group_from_wire, group_to_wire
from groupreplay.merge import merge_groups


def piece(*rewards: float, tokens: int = 3, **other: Any) -> RolloutGroup:
    """Return a piece of group g."""
    fields: dict[str, Any] = {"group_id": "g", "rewards": rewards, "tokens": tokens, "created_at_ms": 5}
    return make_group(**fields | other)


def cut(group: RolloutGroup, sizes: list[int]) -> list[RolloutGroup]:
    """Cut a group into pieces of so many rollouts."""
    pieces, first = [], 0
    bounds = np.concatenate([[0], np.cumsum(group.response_lengths)])
    for size in sizes:
        tokens = slice(int(bounds[first]), int(bounds[first + size]))
        rollouts = slice(first, first + size)
        assert group.loss_mask is not None
        assert group.response_texts is not None
        versions = versions_of(group)[tokens]
        starts = np.flatnonzero(np.diff(versions, prepend=-1))
        pieces.append(
            piece(
                *group.rewards[rollouts],
                response_token_ids=group.response_token_ids[tokens],
                response_lengths=group.response_lengths[rollouts],
                behaviour_logprobs=group.behaviour_logprobs[tokens],
                loss_mask=group.loss_mask[tokens],
                policy_version_min=int(versions.min()),
                policy_version_max=int(versions.max()),
                version_spans=np.stack([starts, versions[starts]], axis=1).astype(np.int32),
                finish_reasons=group.finish_reasons[rollouts],
                response_texts=group.response_texts[rollouts],
                columns={"experts": group.columns["experts"][tokens], "score": group.columns["score"][rollouts]},
            )
        )
        first += size
    return pieces


def versions_of(group: RolloutGroup) -> np.ndarray[Any, Any]:
    """Return the policy version of each token."""
    tokens = len(group.response_token_ids)
    if group.version_spans is None:
        return np.full(tokens, group.policy_version_min)
    starts = group.version_spans[:, 0]
    return np.repeat(group.version_spans[:, 1], np.diff(np.append(starts, tokens)))


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 5)), min_size=1, max_size=6), st.integers(0, 2**32 - 1))
def test_a_group_that_was_cut_into_pieces_comes_out_whole(shape: list[tuple[int, int]], seed: int) -> None:
    """Wherever it is cut, whatever the lengths and versions: every array is that of the whole group."""
    rng = np.random.default_rng(seed)
    sizes = [size for size, _ in shape]
    lengths = np.repeat([length for _, length in shape], sizes).astype(np.int32)
    rollouts, tokens = len(lengths), int(lengths.sum())
    versions = np.sort(rng.integers(0, 3, tokens)) if seed % 2 else rng.integers(0, 3, tokens)
    starts = np.flatnonzero(np.diff(versions, prepend=-1))
    group = piece(
        *rng.normal(size=rollouts).astype(np.float32),
        response_token_ids=rng.integers(0, 100, tokens).astype(np.int32),
        response_lengths=lengths,
        behaviour_logprobs=-rng.random(tokens).astype(np.float32),
        loss_mask=rng.random(tokens) < 0.5,
        policy_version_min=int(versions.min()),
        policy_version_max=int(versions.max()),
        version_spans=np.stack([starts, versions[starts]], axis=1).astype(np.int32) if len(starts) > 1 else None,
        finish_reasons=tuple(rng.choice(list(FinishReason), rollouts)),
        response_texts=tuple(f"text {index}" for index in range(rollouts)),
        prompt_text="a prompt",
        columns={
            "experts": rng.integers(0, 255, (tokens, 2, 3)).astype(np.uint8),
            "score": rng.normal(size=rollouts),
        },
    )
    pieces = [group_from_wire(*group_to_wire(part)) for part in cut_with_prompt(group, sizes)]
    merged = merge_groups(pieces)
    np.testing.assert_array_equal(versions_of(merged), versions)
    if len(pieces) > 1:
        same(merged, group)


def cut_with_prompt(group: RolloutGroup, sizes: list[int]) -> list[RolloutGroup]:
    """Cut a group; each piece has the prompt's text."""
    fields = RolloutGroup.__slots__
    return [
        RolloutGroup(**{name: getattr(part, name) for name in fields} | {"prompt_text": group.prompt_text})
        for part in cut(group, sizes)
    ]


def test_spans_are_built_where_pieces_differ_in_version() -> None:
    """A trainer that corrects by version sees which tokens are of which policy, in places of the whole group."""
    merged = merge_groups([piece(0.0, version=3), piece(1.0, 0.5, version=4), piece(1.0, version=4)])
    assert merged.version_spans is not None
    assert merged.version_spans.tolist() == [[0, 3], [3, 4]]
    assert (merged.policy_version_min, merged.policy_version_max) == (3, 4)


def test_pieces_of_one_version_have_no_spans() -> None:
    """None means one version throughout, as everywhere."""
    assert merge_groups([piece(0.0, version=3), piece(1.0, version=3)]).version_spans is None


def test_a_piece_that_mixes_versions_without_spans_leaves_the_group_without() -> None:
    """Nothing is invented; oldest and newest version are known all the same."""
    mixed = piece(1.0, policy_version_min=2, policy_version_max=5)
    merged = merge_groups([piece(0.0, version=3), mixed])
    assert merged.version_spans is None
    assert (merged.policy_version_min, merged.policy_version_max) == (2, 5)


def test_what_belongs_to_the_whole_group() -> None:
    """The producer of the first piece, the tags that all agree on, the latest time, the highest priority."""
    merged = merge_groups(
        [
            piece(0.0, producer_id="one", tags={"a": "1", "b": "1"}, created_at_ms=7, priority=None),
            piece(1.0, producer_id="two", tags={"a": "1", "b": "2"}, created_at_ms=9, priority=2.0),
            piece(1.0, producer_id="one", tags={"a": "1"}, created_at_ms=8, priority=1.0),
        ]
    )
    assert (merged.producer_id, merged.tags, merged.created_at_ms, merged.priority) == ("one", {"a": "1"}, 9, 2.0)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"prompt_id": "q"}, "piece 1 has prompt_id 'q', the first 'prompt-of-g'"),
        ({"prompt_token_ids": np.array([1, 3], np.int32)}, "piece 1 has prompt_token_ids"),
        ({"task": "t"}, "piece 1 has task 't', the first ''"),
        ({"loss_mask": np.ones(3, bool)}, "piece 1 has columns 'loss_mask', the first ''"),
        ({"columns": {"x": np.zeros(3)}}, r"piece 1 has columns 'x float64 \[\]', the first ''"),
        ({"group_id": "h"}, "piece 1 is of group h, the first of g"),
    ],
)
def test_pieces_that_disagree_are_refused(other: dict[str, Any], message: str) -> None:
    """The error names what differs, and both values."""
    with pytest.raises(InvalidGroupError, match=message):
        merge_groups([piece(0.0), piece(1.0, **other)])


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        (np.zeros((3, 2)), np.zeros((3, 4)), r"has columns 'x float64 \[4\]', the first 'x float64 \[2\]'"),
        (np.zeros(3, np.int32), np.zeros(3, np.int64), "has columns 'x int64"),
        (np.zeros(3), np.zeros(1), "a row for each token that the others have for each rollout"),
        (np.zeros(()), np.zeros(()), r"column 'x' of a piece has shape \[\]"),
        (np.zeros(7), np.zeros(7), "neither one for each of the 3 response tokens nor one for each of the 1 rollouts"),
    ],
)
def test_columns_that_cannot_be_put_together_are_refused(left: Any, right: Any, message: str) -> None:
    """Rows are of tokens or of rollouts, in all pieces alike."""
    with pytest.raises(InvalidGroupError, match=message):
        merge_groups([piece(0.0, columns={"x": left}), piece(1.0, columns={"x": right})])


def test_a_column_may_be_of_tokens_and_rollouts_alike_in_a_piece_of_one_token() -> None:
    """Where a piece has as many tokens as rollouts, the others say what its rows are."""
    short = piece(0.0, tokens=1, columns={"x": np.zeros(1)})
    merged = merge_groups([short, piece(1.0, columns={"x": np.ones(3)}), short])
    assert merged.columns["x"].tolist() == [0, 1, 1, 1, 0]
    with pytest.raises(InvalidGroupError, match="for each token"):
        merge_groups([short, piece(1.0, columns={"x": np.ones(3)}), piece(1.0, columns={"x": np.ones(1)})])


def test_no_pieces_are_no_group() -> None:
    """There is nothing to put together."""
    with pytest.raises(InvalidGroupError, match="no pieces"):
        merge_groups([])
