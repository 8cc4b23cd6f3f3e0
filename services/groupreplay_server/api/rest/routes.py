"""Every route of the REST door, and the RPC that it is. The rest follows from the RPC's messages."""

from dataclasses import dataclass, field
from enum import Enum

from google.protobuf.descriptor import Descriptor, MethodDescriptor

from groupreplay.v1 import replay_service_pb2 as pb
from groupreplay_server.api.operations import SERVICE

_RUN = "/v1/runs/{run}"
_TABLE = _RUN + "/tables/{table}"
_LEASE = _TABLE + "/leases/{lease_id}"
CALL_TIMEOUT_S = 30.0
WAIT_TIMEOUT_S = 10.0
TRANSFER_TIMEOUT_S = 3600.0


class Body(Enum):
    """What a request carries beside its path."""

    QUERY = "the other fields of the request in the query"
    JSON = "the other fields of the request as one JSON object"
    GROUPS = "a JSON object with groups"
    PIECES = "a JSON object with pieces of groups"
    GROUP_LINES = "NDJSON, a group on each line"
    PIECE_LINES = "NDJSON, a piece of a group on each line"
    MESSAGE_LINES = "NDJSON, a message of the protocol on each line"


class Answer(Enum):
    """What comes back."""

    JSON = "one JSON object"
    GROUP_LINES = "NDJSON: the batch where there is one, then a line for each group, then the end"
    MESSAGE_LINES = "NDJSON: a message of the protocol on each line, then the end"
    WATCH_LINES = "as with MESSAGE_LINES, until timeout_s has passed"
    RESULT_LINES = "NDJSON: a result on each line, then the end"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One RPC over HTTP."""

    rpc: str
    verb: str
    path: str
    summary: str
    body: Body = Body.QUERY
    answer: Answer = Answer.JSON
    timeout_s: float = CALL_TIMEOUT_S
    """Of a caller who says nothing."""
    fields: dict[str, str] = field(default_factory=dict)
    """Name in the path, or in the query, -> field of the request, where that is not its own name."""
    query: tuple[str, ...] = ()
    """Names in the query, beside options and Body.QUERY."""

    @property
    def method(self) -> MethodDescriptor:
        """The RPC's descriptor."""
        method: MethodDescriptor = SERVICE.methods_by_name[self.rpc]
        return method

    @property
    def request(self) -> Descriptor:
        """The request's type."""
        return self.method.input_type

    @property
    def waits(self) -> bool:
        """Whether timeout_s is how long the RPC waits for something; the call has its own time beyond."""
        return self.has_timeout_field or self.answer is Answer.WATCH_LINES

    @property
    def has_timeout_field(self) -> bool:
        """Whether the request itself says how long the RPC waits."""
        return "timeout_s" in self.request.fields_by_name

    @property
    def path_names(self) -> list[str]:
        """Names in the path."""
        return [part[1:-1] for part in self.path.split("/") if part.startswith("{")]

    def field_of(self, name: str) -> str:
        """Return the dotted field of the request that a name in the path or the query sets."""
        return self.fields.get(name, name)

    @property
    def open_fields(self) -> list[str]:
        """Fields of the request that neither the path nor timeout_s sets."""
        taken = {self.field_of(name) for name in self.path_names} | {"timeout_s"}
        return [name for name in self.request.fields_by_name if name not in taken]


def message_class(descriptor: Descriptor) -> type:
    """Return the class of a message of the service."""
    found: type = getattr(pb, descriptor.name)
    return found


ROUTES = (
    Route(rpc="GetServerInfo", verb="GET", path="/v1/info", summary="What runs here"),
    Route(rpc="ListTables", verb="GET", path="/v1/tables", summary="All tables, or those of one run"),
    Route(rpc="DescribeTable", verb="GET", path=_TABLE, summary="A table at one moment"),
    Route(rpc="CreateTable", verb="PUT", path=_TABLE, summary="Make a table", body=Body.JSON),
    Route(rpc="UpdateTable", verb="PUT", path=f"{_TABLE}/config", summary="Change limits of a table", body=Body.JSON),
    Route(rpc="ResetTable", verb="POST", path=f"{_TABLE}/reset", summary="Remove every group", body=Body.JSON),
    Route(rpc="Diagnose", verb="GET", path=f"{_TABLE}/diagnosis", summary="Why a batch is, or is not, ready"),
    Route(
        rpc="GetTableHistory", verb="GET", path=f"{_TABLE}/history", summary="Training steps, and how old the buffer is"
    ),
    Route(rpc="ListGroups", verb="GET", path=f"{_TABLE}/groups", summary="Groups page by page, without payloads"),
    Route(rpc="Insert", verb="POST", path=f"{_TABLE}/groups", summary="Store groups", body=Body.GROUPS),
    Route(
        rpc="InsertStream", verb="POST", path=f"{_TABLE}/groups/stream", summary="Store many groups",
        body=Body.GROUP_LINES, answer=Answer.RESULT_LINES, timeout_s=TRANSFER_TIMEOUT_S,
    ),
    Route(
        rpc="GetGroups", verb="POST", path=f"{_TABLE}/groups/read", summary="Read groups without taking them",
        body=Body.JSON, answer=Answer.GROUP_LINES,
    ),
    Route(
        rpc="LocateGroups", verb="POST", path=f"{_TABLE}/groups/locate", summary="Where groups are", body=Body.JSON
    ),
    Route(rpc="DeleteGroups", verb="POST", path=f"{_TABLE}/groups/delete", summary="Remove groups", body=Body.JSON),
    Route(
        rpc="UpdatePriorities", verb="POST", path=f"{_TABLE}/groups/feedback",
        summary="What was found out about groups", body=Body.JSON,
    ),
    Route(
        rpc="PushRollouts", verb="POST", path=f"{_TABLE}/rollouts", summary="Store rollouts one by one",
        body=Body.PIECES,
    ),
    Route(
        rpc="PushRolloutsStream", verb="POST", path=f"{_TABLE}/rollouts/stream", summary="Store many of them",
        body=Body.PIECE_LINES, answer=Answer.RESULT_LINES, timeout_s=TRANSFER_TIMEOUT_S,
    ),
    Route(
        rpc="NextBatch", verb="POST", path=f"{_TABLE}/batches/next", summary="Wait for a complete batch, and lease it",
        body=Body.JSON, answer=Answer.GROUP_LINES, timeout_s=WAIT_TIMEOUT_S,
    ),
    Route(
        rpc="Sample", verb="POST", path=f"{_TABLE}/batches/sample", summary="Draw from replay, and lease the draw",
        body=Body.JSON, answer=Answer.GROUP_LINES, timeout_s=WAIT_TIMEOUT_S,
    ),
    Route(
        rpc="ReadLease", verb="POST", path=f"{_LEASE}/read", summary="Read groups of a live lease",
        body=Body.JSON, answer=Answer.GROUP_LINES,
    ),
    Route(rpc="Commit", verb="POST", path=f"{_LEASE}/commit", summary="End a lease after training", body=Body.JSON),
    Route(rpc="Release", verb="POST", path=f"{_LEASE}/release", summary="Give a lease back", body=Body.JSON),
    Route(rpc="ExtendLease", verb="POST", path=f"{_LEASE}/extend", summary="Keep a lease for longer", body=Body.JSON),
    Route(
        rpc="RequestAdmission", verb="POST", path=f"{_TABLE}/producers/{{producer_id}}/admission",
        summary="Wait until groups are wanted", body=Body.JSON, timeout_s=WAIT_TIMEOUT_S,
    ),
    Route(
        rpc="Beat", verb="POST", path=f"{_TABLE}/producers/{{producer_id}}/beat", summary="A producer is there",
        body=Body.JSON,
    ),
    Route(rpc="GetLineage", verb="GET", path=f"{_TABLE}/steps/{{step}}", summary="What a training step was given"),
    Route(
        rpc="ReplayStep", verb="GET", path=f"{_TABLE}/steps/{{step}}/batch", summary="The batch of a step, again",
        answer=Answer.GROUP_LINES,
    ),
    Route(
        rpc="Snapshot", verb="GET", path=f"{_TABLE}/snapshot", summary="A table, while it is in use",
        answer=Answer.MESSAGE_LINES, timeout_s=TRANSFER_TIMEOUT_S,
    ),
    Route(
        rpc="Restore", verb="POST", path=f"{_TABLE}/restore", summary="A new table from a snapshot",
        body=Body.MESSAGE_LINES, timeout_s=TRANSFER_TIMEOUT_S,
        query=("restore_id",), fields={
            "run": "header.table.run", "table": "header.table.table", "restore_id": "header.restore_id",
        },
    ),
    Route(rpc="GetPolicy", verb="GET", path=f"{_RUN}/policy", summary="The policy of a run"),
    Route(
        rpc="AdvancePolicy", verb="POST", path=f"{_RUN}/policy/advance", summary="Publish a policy version",
        body=Body.JSON, fields={"run": "policy.run"},
    ),
    Route(
        rpc="RewindPolicy", verb="POST", path=f"{_RUN}/policy/rewind", summary="Move the policy clock back",
        body=Body.JSON, fields={"run": "policy.run"},
    ),
    Route(rpc="ResolvePolicy", verb="GET", path=f"{_RUN}/policy/resolve", summary="The version that a label names"),
    Route(
        rpc="WatchPolicy", verb="GET", path=f"{_RUN}/policy/watch", summary="The policy, then each newer one",
        answer=Answer.WATCH_LINES, timeout_s=WAIT_TIMEOUT_S,
    ),
    Route(rpc="GetQuota", verb="GET", path=f"{_RUN}/quota", summary="What a run may hold, and holds"),
    Route(rpc="SetQuota", verb="PUT", path=f"{_RUN}/quota", summary="Limit what a run may hold", body=Body.JSON),
    Route(rpc="ListTokens", verb="GET", path="/v1/tokens", summary="All tokens, without their secrets"),
    Route(
        rpc="CreateToken", verb="PUT", path="/v1/tokens/{name}", summary="Make a token known", body=Body.JSON,
        fields={"name": "token.name"},
    ),
    Route(rpc="RevokeToken", verb="DELETE", path="/v1/tokens/{name}", summary="Take a token back"),
)  # fmt: skip
"""Ordered by subject; each RPC has one."""
