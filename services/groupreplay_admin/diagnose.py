"""`groupreplay diagnose`: why a batch is, or is not, ready."""

from collections.abc import Iterator
from dataclasses import dataclass

from cyclopts import Parameter

from groupreplay import Diagnosis, ProducerHealth, Severity
from groupreplay.groups import check_name, now_ms
from groupreplay_admin.connection import ServiceSettings, open_client
from groupreplay_admin.output import clean, to_json
from groupreplay_admin.statuses import Status

_MARKS = {Severity.PROBLEM: "PROBLEM", Severity.WARNING: "warning", Severity.INFO: "ok"}
_PRODUCERS_SHOWN = 20


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class DiagnoseSettings(ServiceSettings):
    """Which batch to look for.

    Raises:
        InvalidRequestError: a name has characters that the service refuses.
    """

    run: str = "default"
    """Training run."""
    table: str = "rollouts"
    """Table of the run."""
    batch_size: int = 64
    """Groups in the batch to look for; that of the trainer."""
    json: bool = False
    """Print everything as one JSON object, for programs."""

    def __post_init__(self) -> None:
        for name in ("run", "table"):
            check_name(getattr(self, name), name)


_DEFAULTS = DiagnoseSettings()


def diagnose(settings: DiagnoseSettings = _DEFAULTS) -> int:
    """Say in plain words why the next batch of a table is, or is not, ready.

    Missing groups, dead or slow producers, what was filtered, dropped, evicted or refused and of which task, leases
    and who holds them. Takes nothing and changes nothing. Exits with 0 when a batch is ready, 3 when not, 1 when the
    service cannot be asked.
    """
    with open_client(settings) as client:
        found = client.diagnose(run=settings.run, table=settings.table, batch_size=settings.batch_size)
    print(to_json(found) if settings.json else clean("\n".join(lines_of(found, now_ms()))))
    return Status.DONE if found.ready else Status.NOT_READY


def lines_of(found: Diagnosis, time_ms: int) -> Iterator[str]:
    """Yield the lines for people."""
    yield f"table {found.table.run}/{found.table.table}, policy version {found.table.policy_version}: " + (
        "a batch is ready" if found.ready else "no batch is ready"
    )
    for finding in found.findings:
        yield f"  {_MARKS[finding.severity]:<8} {finding.text}"
    if found.producers:
        yield f"producers ({len(found.producers)}):"
    order = [ProducerHealth.DEAD, ProducerHealth.SLOW, ProducerHealth.ALIVE]
    for producer in sorted(found.producers, key=lambda item: (order.index(item.health), item.producer_id))[
        :_PRODUCERS_SHOWN
    ]:
        heard_s = (time_ms - producer.last_seen_ms) / 1000
        status = f", {producer.status}" if producer.status else ""
        yield (
            f"  {producer.health.value:<6} {producer.producer_id}: heard {heard_s:.0f} s ago, {producer.inserted} "
            f"groups, {producer.effective} effective, {producer.refused} refused{status}"
        )
