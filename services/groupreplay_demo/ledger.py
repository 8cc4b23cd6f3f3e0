"""Accounts for every group after a run: none lost, none trained twice."""

from collections import Counter
from pathlib import Path

from groupreplay import Client, GroupState
from groupreplay_demo.records import JsonLines

_PAGE = 10_000


def count_lost(client: Client, *, run: str, table: str, inserted_log: Path) -> int:
    """Return how many acknowledged groups the service cannot account for.

    Each id that a generator saw acknowledged must be fresh, leased, in replay, or known to have left; and the table's
    own counts must add up.
    """
    acknowledged = inserted_log.read_text().split() if inserted_log.exists() else []
    unknown = 0
    for start in range(0, len(acknowledged), _PAGE):
        states = client.locate_groups(acknowledged[start : start + _PAGE], run=run, table=table)
        unknown += states.count(GroupState.UNKNOWN)
    state = client.describe_table(run=run, table=table)
    gone = sum(count for name, count in state.counters.items() if name.startswith("gone_"))
    inserted = state.counters.get("inserted", 0)
    unaccounted = abs(inserted - state.fresh - state.leased - state.replay - gone)
    return unknown + unaccounted + max(0, len(set(acknowledged)) - inserted)


def count_trained_twice(groups_log: Path) -> int:
    """Return how many groups were trained on as fresh in more than one step."""
    uses = Counter(group_id for line in JsonLines(groups_log).read() for group_id in line["fresh_group_ids"])
    return sum(count > 1 for count in uses.values())
