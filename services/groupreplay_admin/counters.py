"""What the counters of a table count; docs/reference/counters.md says more."""

MEANINGS = {
    "inserted": "groups accepted",
    "inserted_effective": "of these, whose rewards differ",
    "inserted_ineffective": "of these, whose rewards are all alike",
    "duplicate": "inserts of an id that is, or was, in the table; nothing changed",
    "refused_<reason>": "groups refused: stale_policy_version, future_policy_version, group_too_large, "
    "table_full, quota_exceeded, rate_limited",
    "batches": "batches handed out",
    "samples": "samples handed out",
    "consumed": "fresh groups taken for batches, ineffective ones included",
    "delivered_fresh": "fresh groups handed out",
    "delivered_replay": "replay groups handed out",
    "shortfall": "slots of batches and samples that stayed empty",
    "redelivered": "deliveries of fresh groups that had been handed out before and came back",
    "leases_committed": "leases that ended with a commit",
    "leases_released": "leases that were given back; a rewind and a reset release them too",
    "leases_expired": "leases that ended at their deadline, without a commit",
    "returned": "fresh groups that came back with a released or expired lease",
    "gone_ineffective": "left for want of reward variance: at the commit of their batch, or at once "
    "under fill rule sample",
    "gone_trained": "left at the commit of their batch: the fill rule has no use for replay",
    "gone_exhausted": "left after max_times_sampled deliveries",
    "gone_evicted": "left for a newer group: replay_capacity, capacity_bytes",
    "gone_stale": "left, older than max_staleness",
    "gone_expired": "left, older than ttl_s",
    "gone_rewound": "left with the policy versions that rewind_policy undid",
    "gone_deleted": "left by delete_groups",
    "gone_reset": "left by reset_table",
    "partial_opened": "partial groups of which a first piece came",
    "partial_closed": "closed with all their rollouts",
    "partial_closed_short": "closed by time, with min_rollouts at least but not all",
    "partial_dropped": "dropped: too few rollouts in time, refused for good when they closed (too old, "
    "for example), undone by a rewind or reset, or inserted whole by another way",
}


def meaning_of(counter: str) -> str:
    """Return what a counter counts; empty for one that a newer service has."""
    return MEANINGS.get(counter) or (MEANINGS["refused_<reason>"] if counter.startswith("refused_") else "")
