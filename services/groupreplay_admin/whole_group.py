"""All that can be read of one group: its place, its rollouts, what the table knows of it."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from groupreplay import Client, GroupState, ListedGroup, RolloutGroup

_PAGE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownRollout:
    """One response."""

    reward: float
    response_length: int
    finish_reason: str | None
    """stop, length or abort; None where the producer did not say."""
    policy_version_min: int | None
    policy_version_max: int | None
    """Of the versions that sampled its tokens; None where no payload is kept."""
    logprob_mean: float | None
    """Of its tokens, natural log; None where no payload is kept."""
    logprob_min: float | None
    trained_tokens: int | None
    """Those that the loss mask leaves; None where no payload is kept."""
    text: str | None
    token_ids: list[int] | None
    """None where no payload is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownGroup:
    """One group with its responses."""

    group_id: str
    prompt_id: str
    task: str
    producer_id: str
    state: str
    staleness: int
    times_sampled: int
    policy_version_min: int
    policy_version_max: int
    reward_mean: float
    reward_std: float
    """Population standard deviation."""
    created_at_ms: int
    tags: dict[str, str]
    prompt_length: int
    prompt_text: str | None
    prompt_token_ids: list[int] | None
    """None where no payload is kept."""
    columns: dict[str, list[int]]
    """Further columns by name, with their shapes."""
    rollouts: list[ShownRollout]


def find_group(client: Client, group_id: str, *, run: str, table: str) -> ShownGroup | None:
    """Return a group, or None where the table does not hold it."""
    [state] = client.locate_groups([group_id], run=run, table=table)
    if state in {GroupState.UNKNOWN, GroupState.GONE}:
        return None
    if stored := client.get_groups([group_id], run=run, table=table):
        return _with_payload(stored[0].group, state, stored[0].staleness, stored[0].times_sampled)
    return next((_without_payload(it) for it in _listed(client, state, run, table) if it.group_id == group_id), None)


def _listed(client: Client, state: GroupState, run: str, table: str) -> Iterator[ListedGroup]:
    cursor = ""
    while True:
        page = client.list_groups(run=run, table=table, states=[state], limit=_PAGE, cursor=cursor)
        yield from page.groups
        cursor = page.next_cursor
        if not cursor:
            return


def _with_payload(group: RolloutGroup, state: GroupState, staleness: int, times_sampled: int) -> ShownGroup:
    return ShownGroup(
        group_id=group.group_id,
        prompt_id=group.prompt_id,
        task=group.task,
        producer_id=group.producer_id,
        state=state.value,
        staleness=staleness,
        times_sampled=times_sampled,
        policy_version_min=group.policy_version_min,
        policy_version_max=group.policy_version_max,
        reward_mean=float(np.mean(group.rewards, dtype=np.float64)),
        reward_std=group.reward_std,
        created_at_ms=group.created_at_ms,
        tags=dict(group.tags),
        prompt_length=len(group.prompt_token_ids),
        prompt_text=group.prompt_text,
        prompt_token_ids=group.prompt_token_ids.tolist(),
        columns={name: list(array.shape) for name, array in group.columns.items()},
        rollouts=[_rollout(group, index, tokens) for index, tokens in enumerate(group.response_slices())],
    )


def _rollout(group: RolloutGroup, index: int, tokens: slice) -> ShownRollout:
    logprobs = group.behaviour_logprobs[tokens]
    versions = _versions(group)[tokens]
    return ShownRollout(
        reward=float(group.rewards[index]),
        response_length=len(logprobs),
        finish_reason=group.finish_reasons[index].value if group.finish_reasons else None,
        policy_version_min=int(versions.min()),
        policy_version_max=int(versions.max()),
        logprob_mean=float(np.mean(logprobs, dtype=np.float64)),
        logprob_min=float(logprobs.min()),
        trained_tokens=len(logprobs) if group.loss_mask is None else int(group.loss_mask[tokens].sum()),
        text=group.response_texts[index] if group.response_texts else None,
        token_ids=group.response_token_ids[tokens].tolist(),
    )


def _versions(group: RolloutGroup) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """Return the policy version of each response token."""
    tokens = len(group.response_token_ids)
    if group.version_spans is None:
        return np.full(tokens, group.policy_version_min, np.int64)
    starts, versions = group.version_spans.T
    return np.repeat(versions.astype(np.int64), np.diff(np.append(starts, tokens)))


def _without_payload(group: ListedGroup) -> ShownGroup:
    rewards = np.array(group.rewards, np.float64)
    return ShownGroup(
        group_id=group.group_id,
        prompt_id=group.prompt_id,
        task=group.task,
        producer_id=group.producer_id,
        state=group.state.value,
        staleness=group.staleness,
        times_sampled=group.times_sampled,
        policy_version_min=group.policy_version_min,
        policy_version_max=group.policy_version_max,
        reward_mean=float(rewards.mean()),
        reward_std=float(rewards.std()),
        created_at_ms=group.created_at_ms,
        tags=dict(group.tags),
        prompt_length=group.prompt_length,
        prompt_text=None,
        prompt_token_ids=None,
        columns={},
        rollouts=[
            ShownRollout(
                reward=reward,
                response_length=group.response_lengths[index],
                finish_reason=group.finish_reasons[index].value if group.finish_reasons else None,
                policy_version_min=None,
                policy_version_max=None,
                logprob_mean=None,
                logprob_min=None,
                trained_tokens=None,
                text=None,
                token_ids=None,
            )
            for index, reward in enumerate(group.rewards)
        ],
    )
