"""Protocol messages <-> the dataclasses of diagnosis and lineage."""

from groupreplay.convert import delivery_from_wire, meaning_of
from groupreplay.convert_tables import table_from_proto, table_to_proto
from groupreplay.errors import InternalError
from groupreplay.types import (
    Diagnosis,
    Finding,
    Lease,
    Lineage,
    Producer,
    ProducerHealth,
    Severity,
)
from groupreplay.v1 import replay_service_pb2 as pb

_SEVERITIES = {severity: pb.Severity.Value(severity.name) for severity in Severity}
_HEALTHS = {health: pb.ProducerHealth.Value(health.name) for health in ProducerHealth}
_SEVERITY_OF = {number: severity for severity, number in _SEVERITIES.items()}
_HEALTH_OF = {number: health for health, number in _HEALTHS.items()}
_PRODUCER_FIELDS = (
    "producer_id", "first_seen_ms", "last_seen_ms", "last_insert_ms", "inserted", "effective", "refused", "interval_s",
    "status",
)  # fmt: skip
_LEASE_FIELDS = ("lease_id", "holder", "deadline_ms", "groups", "fresh")


def diagnosis_to_proto(diagnosis: Diagnosis) -> pb.DiagnoseResponse:
    """Return the message of a diagnosis."""
    return pb.DiagnoseResponse(
        ready=diagnosis.ready,
        findings=[
            pb.Finding(severity=_SEVERITIES[finding.severity], code=finding.code, text=finding.text)
            for finding in diagnosis.findings
        ],
        producers=[
            pb.Producer(health=_HEALTHS[item.health], **{name: getattr(item, name) for name in _PRODUCER_FIELDS})
            for item in diagnosis.producers
        ],
        leases=[pb.Lease(**{name: getattr(lease, name) for name in _LEASE_FIELDS}) for lease in diagnosis.leases],
        table=table_to_proto(diagnosis.table),
    )


def diagnosis_from_proto(message: pb.DiagnoseResponse) -> Diagnosis:
    """Return a diagnosis."""
    return Diagnosis(
        ready=message.ready,
        findings=tuple(
            Finding(
                severity=meaning_of(_SEVERITY_OF, finding.severity, "severity", InternalError),
                code=finding.code,
                text=finding.text,
            )
            for finding in message.findings
        ),
        producers=tuple(
            Producer(
                health=meaning_of(_HEALTH_OF, item.health, "producer health", InternalError),
                **{name: getattr(item, name) for name in _PRODUCER_FIELDS},
            )
            for item in message.producers
        ),
        leases=tuple(Lease(**{name: getattr(item, name) for name in _LEASE_FIELDS}) for item in message.leases),
        table=table_from_proto(message.table),
    )


def lineage_from_proto(message: pb.GetLineageResponse) -> Lineage:
    """Return what a committed training step was given."""
    return Lineage(
        step=message.step,
        lease_id=message.batch.lease_id,
        holder=message.holder,
        policy_version=message.batch.policy_version,
        batch_size=message.batch.batch_size,
        seed=message.seed,
        committed_at_ms=message.committed_at_ms,
        groups=tuple(delivery_from_wire(group.group_id, group.delivery) for group in message.groups),
        undelivered_group_ids=tuple(message.undelivered_group_ids),
    )
