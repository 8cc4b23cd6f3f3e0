"""Listed groups: what a request asks for, and the message of a group."""

from groupreplay.convert import STATES
from groupreplay.groups import MAX_POLICY_VERSION
from groupreplay.v1 import group_pb2
from groupreplay.v1 import replay_service_pb2 as pb
from groupreplay_server.store.listing_store import FoundGroup, GroupFilter


def group_filter(request: pb.ListGroupsRequest) -> GroupFilter:
    """Return which groups are asked for."""
    has_end = request.HasField("policy_version_to")
    return GroupFilter(
        task=request.task if request.HasField("task") else None,
        prompt_id=request.prompt_id,
        effective=request.effective if request.HasField("effective") else None,
        policy_version_from=request.policy_version_from,
        policy_version_to=request.policy_version_to if has_end else MAX_POLICY_VERSION,
    )


def listed_group(found: FoundGroup) -> pb.ListedGroup:
    """Return the message of a listed group."""
    return pb.ListedGroup(
        header=group_pb2.GroupHeader.FromString(found.header),
        state=STATES[found.state],
        effective=found.effective,
        staleness=found.staleness,
        times_sampled=found.times_sampled,
        redeliveries=found.redeliveries,
        inserted_at_ms=found.inserted_ms,
        priority=found.priority,
        kl=found.kl,
        ess=found.ess,
        lease_id=found.lease_id,
        has_payload=found.has_payload,
    )
