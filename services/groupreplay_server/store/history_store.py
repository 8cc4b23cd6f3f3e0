"""Reads what the training steps of a table were given, and how the groups are that wait in it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from groupreplay.history import StepSummary
from groupreplay_server.store.backend import Backend
from groupreplay_server.store.connection import translated_errors
from groupreplay_server.store.keys import TableKeys
from groupreplay_server.store.scripts import Value, call_script


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingGroups:
    """What was seen of the groups of a place."""

    groups: int
    looked_at: int
    staleness: tuple[int, ...]
    priority: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryReading:
    """A table's history at one moment."""

    steps: tuple[StepSummary, ...]
    """In ascending order."""
    newest_step: int | None
    steps_undone: int
    taken_at_ms: int
    fresh: WaitingGroups
    replay: WaitingGroups


class HistoryStore:
    """Reads history."""

    def __init__(self, redis: Backend, shared: Callable[[TableKeys], Mapping[str, Value]]) -> None:
        self._redis = redis
        self._shared = shared

    async def read(self, run: str, table: str, *, after_step: int, limit: int) -> HistoryReading:
        """Return the newest steps beyond after_step, and the groups that wait."""
        keys = TableKeys(run, table)
        shared = self._shared(keys)
        values: dict[str, Value] = {**shared, "after_step": after_step, "limit": limit}
        with translated_errors():
            reply = await call_script(self._redis, "table_history", keys.all(), values)
        undone, newest, summaries, fresh, replay = reply
        return HistoryReading(
            steps=tuple(_summary(summary) for summary in reversed(summaries)),
            newest_step=int(newest) if newest else None,
            steps_undone=undone,
            taken_at_ms=int(shared["now_ms"]),
            fresh=_waiting(fresh),
            replay=_waiting(replay),
        )


def _summary(reply: Sequence[Any]) -> StepSummary:
    step, committed_ms, version, batch_size, fresh, effective, groups, refilled, oldest, *means = reply
    staleness, reward, replay_reward, kl, ess = (float(mean) if mean else None for mean in means)
    return StepSummary(
        step=step,
        committed_at_ms=committed_ms,
        policy_version=version,
        batch_size=batch_size,
        fresh=fresh,
        fresh_effective=effective,
        groups=groups,
        refilled=refilled,
        staleness_max=oldest,
        staleness_mean=staleness,
        reward_mean=reward,
        replay_reward_mean=replay_reward,
        kl_mean=kl,
        ess_mean=ess,
    )


def _waiting(reply: Sequence[Any]) -> WaitingGroups:
    groups, looked_at, staleness, priority = reply
    return WaitingGroups(
        groups=groups,
        looked_at=looked_at,
        staleness=tuple(int(age) for age in staleness.split()),
        priority=tuple(float(value) for value in priority.split()),
    )
