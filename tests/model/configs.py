"""Table configurations and groups for the state machine: small numbers, so that limits are reached all the time."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from groupreplay import Fill, RateLimit, Remover, Sampler, StalenessRule, TableConfig

MAX_GROUP_BYTES = 60


def rarely(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return None most of the time, or too many limits would leave nothing to watch."""
    return st.one_of(st.none(), st.none(), st.none(), strategy)


def limits(fill: Fill) -> st.SearchStrategy[dict[str, Any]]:
    """Return values for everything of a table that may change while it lives."""
    rates = st.builds(
        RateLimit.of,
        st.sampled_from([0.5, 1.0, 2.0]),
        min_size_to_sample=st.integers(1, 3),
        error_buffer=st.sampled_from([2.0, 4.0]),
    ) | st.builds(RateLimit.queue, st.integers(1, 4))
    return st.fixed_dictionaries(
        {
            "replay_capacity": st.sampled_from([8, 1, 3, 5, 8, 12]),
            "fresh_capacity": st.sampled_from([16, 6, 16]),
            "max_staleness": rarely(st.integers(0, 4)),
            "max_times_sampled": rarely(st.integers(1, 3)),
            "max_group_bytes": st.just(MAX_GROUP_BYTES),
            "allow_repeated_prompts": st.booleans(),
            "ahead_groups": rarely(st.integers(0, 4)),
            "importance_beta": st.sampled_from([0.0, 0.4, 1.0]),
            "min_staleness": st.sampled_from([0, 0, 0, 0, 0, 1, 2]),
            "max_kl": rarely(st.just(0.5)),
            "staleness_rule": st.sampled_from(StalenessRule),
            "capacity_bytes": rarely(st.integers(50, 300)),
            "ttl_s": rarely(st.sampled_from([5.0, 12.5])),
            "rate_limit": rarely(rates) if fill is Fill.SAMPLE else st.none(),
            "groups_per_version": rarely(st.integers(1, 4)),
        }
    ).map(_consistent)


def _consistent(values: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(values)
    if found["max_staleness"] is None:
        found["groups_per_version"] = None
    else:
        found["min_staleness"] = min(found["min_staleness"], found["max_staleness"])
    return found


@st.composite
def configs(draw: st.DrawFn, fill: Fill, sampler: Sampler) -> TableConfig:
    """Return a configuration of a table with this fill rule and sampler."""
    decays = sampler is Sampler.PRIORITIZED
    return TableConfig(
        fill=fill,
        sampler=sampler,
        remover=draw(st.sampled_from(Remover)),
        alpha=draw(st.sampled_from([1.0, 0.5])),
        recency_decay=draw(st.sampled_from([1.0, 0.5])) if decays else 1.0,
        use_decay=draw(st.sampled_from([1.0, 0.5])) if decays else 1.0,
        kl_decay=draw(st.sampled_from([0.0, 1.0])) if decays else 0.0,
        ess_alpha=draw(st.sampled_from([0.0, 2.0])) if decays else 0.0,
        replay_ineffective=draw(st.sampled_from([False, False, True])),
        **draw(limits(fill)),
    )


@dataclass(frozen=True, slots=True)
class Arrival:
    """What an insert says of a group. A dataclass, so that a failing sequence of operations is short to read."""

    again: int | None
    """None = a new id, else one that was used before."""
    prompt: int
    behind: int
    """Policy versions back from the current one; -1 was never published."""
    span: int
    """Further versions back to the group's oldest token."""
    effective: bool
    size: int | None
    """Bytes of payload; None = sent without."""
    priority: float
    task: str
    producer: str


def arrivals() -> st.SearchStrategy[Arrival]:
    """Return groups to insert, most of them new, on-policy and effective."""
    return st.builds(
        Arrival,
        again=st.one_of(st.none(), st.none(), st.none(), st.none(), st.integers(0, 40)),
        prompt=st.integers(0, 9),
        behind=st.sampled_from([0, 0, 0, 0, 0, 1, 2, 3, -1]),
        span=st.sampled_from([0, 0, 0, 1]),
        effective=st.sampled_from([True, True, True, False]),
        size=st.sampled_from([10, 10, 20, 50, None, MAX_GROUP_BYTES + 1]),
        priority=st.sampled_from([1.0, 0.0, 0.5, 1.0, 2.0, 7.0]),
        task=st.sampled_from(["", "math"]),
        producer=st.sampled_from(["", "p0", "p1"]),
    )
