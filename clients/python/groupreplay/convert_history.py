"""Protocol messages <-> the dataclasses of a table's history."""

from typing import Any

from groupreplay.history import GroupDistribution, Histogram, StepSummary, TableHistory
from groupreplay.v1 import replay_service_pb2 as pb

_STEP_FIELDS = (
    "step", "committed_at_ms", "policy_version", "batch_size", "fresh", "fresh_effective", "groups", "refilled",
    "staleness_max",
)  # fmt: skip
_MEANS = ("staleness_mean", "reward_mean", "replay_reward_mean", "kl_mean", "ess_mean")


def history_to_proto(history: TableHistory) -> pb.GetTableHistoryResponse:
    """Return the message of a table's history."""
    return pb.GetTableHistoryResponse(
        steps=[
            pb.StepSummary(shortfall=step.shortfall, **{name: getattr(step, name) for name in (*_STEP_FIELDS, *_MEANS)})
            for step in history.steps
        ],
        newest_step=history.newest_step,
        steps_undone=history.steps_undone,
        taken_at_ms=history.taken_at_ms,
        fresh=_distribution_to_proto(history.fresh),
        replay=_distribution_to_proto(history.replay),
    )


def _distribution_to_proto(distribution: GroupDistribution) -> pb.GroupDistribution:
    return pb.GroupDistribution(
        groups=distribution.groups,
        looked_at=distribution.looked_at,
        staleness=pb.Histogram(edges=distribution.staleness.edges, counts=distribution.staleness.counts),
        priority=pb.Histogram(edges=distribution.priority.edges, counts=distribution.priority.counts),
    )


def history_from_proto(message: pb.GetTableHistoryResponse) -> TableHistory:
    """Return a table's history."""
    return TableHistory(
        steps=tuple(_step_from_proto(step) for step in message.steps),
        newest_step=message.newest_step if message.HasField("newest_step") else None,
        steps_undone=message.steps_undone,
        taken_at_ms=message.taken_at_ms,
        fresh=_distribution_from_proto(message.fresh),
        replay=_distribution_from_proto(message.replay),
    )


def _step_from_proto(message: pb.StepSummary) -> StepSummary:
    given = {field.name for field, _ in message.ListFields()}
    means: dict[str, Any] = {name: getattr(message, name) if name in given else None for name in _MEANS}
    return StepSummary(**{name: getattr(message, name) for name in _STEP_FIELDS}, **means)


def _distribution_from_proto(message: pb.GroupDistribution) -> GroupDistribution:
    return GroupDistribution(
        groups=message.groups,
        looked_at=message.looked_at,
        staleness=Histogram(edges=tuple(message.staleness.edges), counts=tuple(message.staleness.counts)),
        priority=Histogram(edges=tuple(message.priority.edges), counts=tuple(message.priority.counts)),
    )
