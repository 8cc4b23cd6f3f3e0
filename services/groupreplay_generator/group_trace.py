"""The spans of one group on its way: group, and under it generate, score and insert."""

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from groupreplay import InsertOutcome, RolloutGroup, tracing
from groupreplay_generator.engines import EngineResult
from groupreplay_generator.tasks import Problem


class GroupTrace:
    """Does nothing while nobody traces."""

    def __init__(self, problem: Problem[Any], result: EngineResult, *, began_ns: int) -> None:
        """Begin with what the engine has done since began_ns; it samples many groups in one go."""
        self._group = tracing.span("group", start_ns=began_ns)
        self._insert: tracing.Span = tracing.NO_SPAN
        with tracing.span("generate", parent=self._group, start_ns=began_ns) as generate:
            generate.note(
                prompt_id=problem.prompt_id,
                policy_version=result.policy_version_min,
                rollouts=len(result.completions),
                tokens=sum(completion.token_ids.size for completion in result.completions),
            )

    def scoring(self) -> AbstractContextManager[tracing.Span]:
        """Return the span to score in."""
        return tracing.span("score", parent=self._group)

    def inserting(self, group: RolloutGroup) -> RolloutGroup:
        """Begin to insert; return the group with the tag that its trainers will refer to."""
        if self._group is tracing.NO_SPAN:
            return group
        self._group.note(group_id=group.group_id, reward_std=group.reward_std)
        self._insert = tracing.span("insert", parent=self._group)
        return replace(group, tags=tracing.tags_of(group.tags, self._insert))

    def inserted(self, outcome: InsertOutcome) -> None:
        """End: the service has acknowledged the group, or refused it for good."""
        if outcome is InsertOutcome.REFUSED:
            self._insert.failed(outcome.value, fault=True)
        for span in (self._insert, self._group):
            span.note(outcome=outcome.value)
            span.end()
