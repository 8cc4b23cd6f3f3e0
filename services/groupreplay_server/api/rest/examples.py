"""Examples of every operation for the OpenAPI document: what is sent beside the path, and what comes back."""

from typing import Any

from google.protobuf.message import Message

from groupreplay import convert_tables
from groupreplay.table_config import TableConfig
from groupreplay.types import Policy, Quota, Table
from groupreplay.v1 import group_pb2, table_pb2
from groupreplay.v1 import replay_service_pb2 as pb
from groupreplay_server.api.rest.transcode import Json

PATH: dict[str, Json] = {
    "run": "math", "table": "train", "lease_id": "step-1", "producer_id": "generator-0", "step": 1,
    "name": "generator-0",
}  # fmt: skip
GROUP: dict[str, Json] = {
    "group_id": "g1", "prompt_id": "p1", "task": "addition", "producer_id": "generator-0", "policy_version_min": 3,
    "policy_version_max": 3, "rewards": [0.0, 1.0], "response_lengths": [1, 2], "finish_reasons": ["stop", "stop"],
    "created_at_ms": 1790000000000, "tags": {}, "priority": None, "prompt_token_ids": [5, 11, 6],
    "response_token_ids": [7, 1, 1], "behaviour_logprobs": [-0.1, -0.25, -0.01], "prompt_text": "5+6=",
    "response_texts": ["12", "11"], "columns": {},
}  # fmt: skip
DELIVERED_GROUP = GROUP | {"prompt_length": 3}
_PIECE = {
    "piece_id": "0", "group_size": 2, "min_rollouts": 1, "close_after_s": 60.0, "rollouts": GROUP | {
        "rewards": [1.0], "response_lengths": [2], "finish_reasons": ["stop"], "response_token_ids": [1, 1],
        "behaviour_logprobs": [-0.25, -0.01], "response_texts": ["11"],
    },
}  # fmt: skip
_POLICY = Policy(
    run="math", version=4, weights_uri="file:///weights/4", weights_sha256="", published_at_ms=1790000000000, label="4"
)
_HEADER = group_pb2.GroupHeader(
    group_id="g1", prompt_id="p1", policy_version_min=3, policy_version_max=3, rewards=[0, 1], response_lengths=[1, 2],
    prompt_length=3, payload_bytes=88,
)  # fmt: skip
_TABLE = convert_tables.table_to_proto(
    Table(
        run="math", table="train", config=TableConfig(), fresh=12, fresh_effective=7, replay=40, leased=8, leases=1,
        payload_bytes=5280, policy_version=4, last_insert_ms=1790000000000, missing=0, counters={"inserted": 60},
        task_counters={}, replay_version_min=1, replay_version_max=4,
    )
)  # fmt: skip
_BATCH = pb.BatchHeader(
    lease_id="step-1", lease_deadline_ms=1790000600000, policy_version=4, batch_size=1, groups=1, fresh=1,
    fresh_effective=1,
)  # fmt: skip
_DELIVERY = group_pb2.Delivery(
    source=group_pb2.FRESH, staleness=1, times_sampled=1, probability=1.0, importance_weight=1.0
)
_PB_POLICY = convert_tables.policy_to_proto(_POLICY)
_PB_QUOTA = convert_tables.quota_to_proto(Quota(max_groups=10_000, max_bytes=None, groups=60, bytes=5280))
_TOKEN = pb.Token(name="generator-0", scope=pb.PRODUCER, run="math", created_at_ms=1790000000000)
_RESULT = pb.InsertResult(group_id="g1", outcome=pb.INSERTED)
_PUSHED = pb.PushResult(group_id="g1", piece_id="0", outcome=pb.PIECE_PENDING, rollouts=1, group_size=2)
_MEMORY = table_pb2.DURABILITY_MEMORY

REQUESTS: dict[str, Json] = {
    "CreateTable": {"config": {"fill": "replay", "max_staleness": 4, "replay_capacity": 4096}},
    "UpdateTable": {"config": {"fill": "replay", "max_staleness": 8, "replay_capacity": 4096}},
    "ResetTable": {},
    "Insert": {"groups": [GROUP]},
    "InsertStream": GROUP,
    "GetGroups": {"group_ids": ["g1"], "log_ratios": True},
    "LocateGroups": {"group_ids": ["g1", "g2"]},
    "DeleteGroups": {"group_ids": ["g1"]},
    "UpdatePriorities": {"feedback": [{"group_id": "g1", "priority": 0.5, "kl": 0.02, "ess": 0.97}]},
    "PushRollouts": {"pieces": [_PIECE]},
    "PushRolloutsStream": _PIECE,
    "NextBatch": {"batch_size": 1, "lease_id": "step-1", "lease_s": 600.0, "holder": "trainer-0"},
    "Sample": {"batch_size": 1, "lease_id": "draw-1", "lease_s": 600.0},
    "ReadLease": {"group_ids": ["g1"]},
    "Commit": {"step": 1, "feedback": [{"group_id": "g1", "kl": 0.02, "ess": 0.97, "log_ratios": [0.01, -0.3, "NaN"]}]},
    "Release": {},
    "ExtendLease": {"lease_s": 600.0},
    "RequestAdmission": {"max_groups": 16, "admission_s": 120.0},
    "Beat": {"interval_s": 10.0, "status": "sampling 16 prompts"},
    "AdvancePolicy": {"policy": {"version": 4, "weights_uri": "file:///weights/4"}},
    "RewindPolicy": {
        "policy": {"version": 3, "weights_uri": "file:///weights/3"},
        "step": 30,
        "rewind_id": "restart-1",
    },
    "SetQuota": {"max_groups": 10000},
    "CreateToken": {
        "token": {"scope": "producer", "run": "math"},
        "secret_sha256": "n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg=",
    },
}
"""Bodies; of NDJSON, one line."""

QUERIES: dict[str, dict[str, Json]] = {
    "ListTables": {"run": "math"},
    "Diagnose": {"batch_size": 8},
    "GetTableHistory": {"after_step": 0, "limit": 100},
    "ListGroups": {"states": ["fresh", "replay"], "task": "addition", "effective": True, "limit": 50},
    "ResolvePolicy": {"label": "4"},
    "WatchPolicy": {"after_version": 3},
    "Restore": {"restore_id": "copy-1"},
}

ANSWERS: dict[str, Message] = {
    "GetServerInfo": pb.GetServerInfoResponse(
        version="0.1.0", time_ms=1790000000000, started_at_ms=1789990000000, redis_url="redis://redis:6379/0",
        redis=[pb.RedisServer(address="redis:6379", software="redis", version="7.4.1", says_all=True)],
        durability_min_replicas=1,
    ),
    "ListTables": pb.ListTablesResponse(tables=[_TABLE]),
    "DescribeTable": pb.DescribeTableResponse(table=_TABLE),
    "CreateTable": pb.CreateTableResponse(table=_TABLE, created=True),
    "UpdateTable": pb.UpdateTableResponse(table=_TABLE),
    "ResetTable": pb.ResetTableResponse(removed=60),
    "Diagnose": pb.DiagnoseResponse(
        ready=False,
        findings=[pb.Finding(severity=pb.PROBLEM, code="missing_groups", text="table math/train needs 3 more groups")],
        table=_TABLE,
    ),
    "ListGroups": pb.ListGroupsResponse(
        groups=[pb.ListedGroup(header=_HEADER, state=table_pb2.GROUP_FRESH, effective=True, staleness=1, priority=1.0)],
        next_cursor="fresh:12:",
    ),
    "Insert": pb.InsertResponse(results=[_RESULT], durability=_MEMORY),
    "LocateGroups": pb.LocateGroupsResponse(states=[table_pb2.GROUP_FRESH, table_pb2.GROUP_UNKNOWN]),
    "DeleteGroups": pb.DeleteGroupsResponse(deleted=1),
    "UpdatePriorities": pb.UpdatePrioritiesResponse(unknown_group_ids=[]),
    "PushRollouts": pb.PushRolloutsResponse(results=[_PUSHED], durability=_MEMORY),
    "Commit": pb.CommitResponse(already_committed=False, durability=_MEMORY),
    "Release": pb.ReleaseResponse(returned=1),
    "ExtendLease": pb.ExtendLeaseResponse(lease_deadline_ms=1790000600000),
    "RequestAdmission": pb.RequestAdmissionResponse(groups=16, policy=_PB_POLICY),
    "Beat": pb.BeatResponse(policy=_PB_POLICY),
    "GetLineage": pb.GetLineageResponse(
        step=1, batch=_BATCH, holder="trainer-0", seed="073e15172dda6cec04ec7588f9f2c10c",
        committed_at_ms=1790000000000, groups=[pb.LineageGroup(group_id="g1", delivery=_DELIVERY)],
    ),
    "GetTableHistory": pb.GetTableHistoryResponse(
        steps=[
            pb.StepSummary(
                step=1, committed_at_ms=1790000000000, policy_version=3, batch_size=8, fresh=8, fresh_effective=5,
                groups=8, refilled=3, staleness_mean=0.75, staleness_max=2, reward_mean=0.4, replay_reward_mean=0.5,
                kl_mean=0.01, ess_mean=0.95,
            )
        ],
        newest_step=1, taken_at_ms=1790000000500,
        fresh=pb.GroupDistribution(),
        replay=pb.GroupDistribution(
            groups=5, looked_at=5, staleness=pb.Histogram(edges=[0, 1, 2], counts=[3, 2]),
            priority=pb.Histogram(edges=[1, 1], counts=[5]),
        ),
    ),
    "Restore": pb.RestoreResponse(table=_TABLE),
    "GetPolicy": pb.GetPolicyResponse(policy=_PB_POLICY),
    "AdvancePolicy": pb.AdvancePolicyResponse(policy=_PB_POLICY),
    "RewindPolicy": pb.RewindPolicyResponse(policy=_PB_POLICY),
    "ResolvePolicy": pb.ResolvePolicyResponse(version=4),
    "GetQuota": pb.GetQuotaResponse(quota=_PB_QUOTA),
    "SetQuota": pb.SetQuotaResponse(quota=_PB_QUOTA),
    "CreateToken": pb.CreateTokenResponse(token=_TOKEN),
    "ListTokens": pb.ListTokensResponse(tokens=[_TOKEN]),
    "RevokeToken": pb.RevokeTokenResponse(token=_TOKEN),
}  # fmt: skip

LINES: dict[str, list[dict[str, Any]]] = {
    "InsertStream": [{"result": _RESULT, "durability": "memory"}],
    "PushRolloutsStream": [{"result": _PUSHED, "durability": "memory"}],
    **{
        rpc: [{"batch": _BATCH}, {"group": DELIVERED_GROUP, "delivery": _DELIVERY}]
        for rpc in ("NextBatch", "Sample", "ReplayStep")
    },
    "ReadLease": [{"group": DELIVERED_GROUP, "delivery": _DELIVERY}],
    "GetGroups": [{"group": DELIVERED_GROUP, "delivery": group_pb2.Delivery(staleness=1, times_sampled=1)}],
    "WatchPolicy": [{"policy": _PB_POLICY}],
    "Snapshot": [
        {"header": pb.SnapshotHeader(table=_TABLE, policy=_PB_POLICY, taken_at_ms=1790000000000, policy_version_max=4)},
        {"groups": []},
        {"end": pb.SnapshotEnd(groups=60, payload_bytes=5280)},
    ],
}
"""What comes before the closing line."""
