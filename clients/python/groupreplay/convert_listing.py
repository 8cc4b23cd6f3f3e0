"""Protocol messages <-> the dataclasses of listed groups and of what a service runs on."""

from groupreplay.convert import STATES, finish_reasons_from_proto, meaning_of
from groupreplay.errors import InternalError, InvalidRequestError
from groupreplay.server_info import RedisServer, ServerInfo
from groupreplay.types import GroupPage, GroupState, ListedGroup
from groupreplay.v1 import replay_service_pb2 as pb

_STATE_OF = {number: state for state, number in STATES.items()}
_REDIS_FIELDS = (
    "address", "software", "version", "ping_p50_ms", "ping_p99_ms", "appendonly", "appendfsync",
    "writes_ok", "maxmemory_policy", "maxmemory_bytes", "used_memory_bytes", "replicas", "certificate_ends_ms",
    "says_all",
)  # fmt: skip
_SERVER_FIELDS = (
    "version", "time_ms", "started_at_ms", "redis_url", "embedded_redis", "disk_free_bytes", "disk_total_bytes",
    "durability_min_replicas",
)  # fmt: skip


def state_from_proto(number: int) -> GroupState:
    """Return a state to list groups of; the caller checks whether groups can be in it.

    Raises:
        InvalidRequestError: the number names none.
    """
    return meaning_of(_STATE_OF, number, "group state", InvalidRequestError)


def page_from_proto(message: pb.ListGroupsResponse) -> GroupPage:
    """Return a page of groups."""
    return GroupPage(
        groups=tuple(listed_from_proto(group) for group in message.groups), next_cursor=message.next_cursor
    )


def listed_from_proto(message: pb.ListedGroup) -> ListedGroup:
    """Return a listed group."""
    header = message.header
    return ListedGroup(
        group_id=header.group_id,
        prompt_id=header.prompt_id,
        task=header.task,
        producer_id=header.producer_id,
        state=meaning_of(_STATE_OF, message.state, f"group {header.group_id}: state", InternalError),
        effective=message.effective,
        policy_version_min=header.policy_version_min,
        policy_version_max=header.policy_version_max,
        staleness=message.staleness,
        times_sampled=message.times_sampled,
        redeliveries=message.redeliveries,
        rewards=tuple(header.rewards),
        response_lengths=tuple(header.response_lengths),
        finish_reasons=finish_reasons_from_proto(header),
        prompt_length=header.prompt_length,
        payload_bytes=header.payload_bytes if message.has_payload else 0,
        created_at_ms=header.created_at_ms,
        inserted_at_ms=message.inserted_at_ms,
        priority=message.priority,
        kl=message.kl if message.HasField("kl") else None,
        ess=message.ess if message.HasField("ess") else None,
        lease_id=message.lease_id,
        tags=dict(header.tags),
    )


def server_info_to_proto(info: ServerInfo) -> pb.GetServerInfoResponse:
    """Return the message of what a service runs on."""
    return pb.GetServerInfoResponse(
        redis=[
            pb.RedisServer(**{name: getattr(server, name) for name in (*_REDIS_FIELDS, "clock_ahead_ms")})
            for server in info.redis
        ],
        **{name: getattr(info, name) for name in _SERVER_FIELDS},
    )


def server_info_from_proto(message: pb.GetServerInfoResponse) -> ServerInfo:
    """Return what a service runs on."""
    return ServerInfo(
        redis=tuple(
            RedisServer(
                clock_ahead_ms=server.clock_ahead_ms if server.HasField("clock_ahead_ms") else None,
                **{name: getattr(server, name) for name in _REDIS_FIELDS},
            )
            for server in message.redis
        ),
        **{name: getattr(message, name) for name in _SERVER_FIELDS},
    )
