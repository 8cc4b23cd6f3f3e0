"""Groups for people: a line for each, or one with its responses, coloured by reward."""

from collections.abc import Iterator, Sequence

from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from groupreplay import ListedGroup
from groupreplay.groups import now_ms
from groupreplay_admin.output import age, clean, console
from groupreplay_admin.progress import size
from groupreplay_admin.whole_group import ShownGroup, ShownRollout

_TEXT_SHOWN = 1200
_TOKENS_SHOWN = 24


def print_groups(groups: Sequence[ListedGroup], cursor: str) -> None:
    """Print a line for each group, and how to see more."""
    out = console()
    grid = Grid(box=None, pad_edge=False)
    for heading in ("group", "state", "task"):
        grid.add_column(heading, overflow="fold")
    for heading in ("age", "version", "stale", "used", "rewards", "tokens", "payload"):
        grid.add_column(heading, justify="right", no_wrap=True)
    for group in groups:
        grid.add_row(*_row(group))
    out.print(grid if groups else "no groups")
    if cursor:
        out.print(f"more: --cursor {cursor}")


def _row(group: ListedGroup) -> Iterator[Text]:
    versions = {group.policy_version_min, group.policy_version_max}
    mean = sum(group.rewards) / len(group.rewards)
    yield Text(group.group_id)
    yield Text(group.state.value)
    yield Text(clean(group.task) or "-")
    yield Text(age((now_ms() - group.inserted_at_ms) / 1000))
    yield Text("-".join(map(str, sorted(versions))))
    yield Text(str(group.staleness))
    yield Text(str(group.times_sampled))
    spread = f"{min(group.rewards):.3g}..{max(group.rewards):.3g}"
    yield Text(f"{len(group.rewards)}: {mean:.3g} in {spread}", style="" if group.effective else "dim")
    yield Text(str(sum(group.response_lengths)))
    yield Text(size(group.payload_bytes) if group.payload_bytes else "not kept")


def print_group(group: ShownGroup, *, full: bool) -> None:
    """Print a group with each response; texts of some length are cut unless full."""
    out = console()
    for line in _about(group):
        out.print(line)
    out.print(Text(f"\nprompt ({group.prompt_length} tokens)", style="bold"))
    out.print(Padding(Text(_words(group.prompt_text, group.prompt_token_ids, full)), (0, 0, 0, 2), expand=False))
    low, high = min(it.reward for it in group.rollouts), max(it.reward for it in group.rollouts)
    for index, rollout in enumerate(group.rollouts):
        out.print()
        out.print(
            Text(f"response {index}  ", style="bold")
            + Text(f"reward {rollout.reward:.4g}", style=reward_style(rollout.reward, low, high))
            + Text(f"  {_figures(rollout)}", style="dim")
        )
        if rollout.token_ids is not None:
            out.print(Padding(Text(_words(rollout.text, rollout.token_ids, full)), (0, 0, 0, 2), expand=False))


def _about(group: ShownGroup) -> Iterator[Text]:
    yield Text(f"{group.group_id}", style="bold") + Text(
        f"  {group.state}, staleness {group.staleness}, delivered {group.times_sampled} times"
    )
    yield Text(
        clean(
            f"prompt {group.prompt_id}, task {group.task or '(none)'}, producer {group.producer_id or '(none)'}, "
            f"policy versions {group.policy_version_min} to {group.policy_version_max}"
        )
    )
    yield Text(f"{len(group.rollouts)} rollouts, reward mean {group.reward_mean:.4g}, std {group.reward_std:.4g}")
    if group.created_at_ms:
        yield Text(f"scored {age((now_ms() - group.created_at_ms) / 1000)} ago")
    if group.tags:
        yield Text(clean("tags " + ", ".join(f"{name}={value}" for name, value in sorted(group.tags.items()))))
    if group.columns:
        yield Text(clean("columns " + ", ".join(f"{name} {shape}" for name, shape in group.columns.items())))


def _figures(rollout: ShownRollout) -> str:
    parts = [f"{rollout.response_length} tokens"]
    if rollout.finish_reason:
        parts.append(rollout.finish_reason)
    if rollout.logprob_mean is not None:
        parts.append(f"versions {rollout.policy_version_min} to {rollout.policy_version_max}")
        parts.append(f"logprob mean {rollout.logprob_mean:.3f}, min {rollout.logprob_min:.3f}")
    if rollout.trained_tokens is not None and rollout.trained_tokens < rollout.response_length:
        parts.append(f"{rollout.trained_tokens} trained on")
    return ", ".join(parts)


def _words(text: str | None, token_ids: Sequence[int] | None, full: bool) -> str:
    if text is not None:
        cut = text if full or len(text) <= _TEXT_SHOWN else f"{text[:_TEXT_SHOWN]} ... ({len(text)} characters; --full)"
        return clean(cut) or "(empty)"
    if token_ids is None:
        return "(no payload kept: the group has no reward variance; keep_ineffective_payload keeps such ones)"
    shown = token_ids if full else token_ids[:_TOKENS_SHOWN]
    more = "" if len(shown) == len(token_ids) else f" ... ({len(token_ids)} tokens; --full)"
    return f"(no text) {' '.join(map(str, shown))}{more}"


def reward_style(reward: float, low: float, high: float) -> str:
    """Return the colour of a reward among those of its group: red for the lowest third, green for the highest."""
    if high <= low:
        return "yellow"
    share = (reward - low) / (high - low)
    return "red" if share < 1 / 3 else "green" if share > 2 / 3 else "yellow"
