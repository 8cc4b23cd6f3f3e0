"""What each alert must fire on, and what it must let pass: series in promtool's notation, one sample a minute."""

from collections.abc import Mapping
from dataclasses import dataclass, field

Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One alert on some series."""

    alert: str
    what: str
    series: Mapping[str, str]
    fires: tuple[Labels, ...] = ()
    """Labels of the alerts that fire in the end, severity left out; none = silence."""
    minutes: int = 60
    severity: str = field(default="warning")


TABLE = {"run": "r", "table": "t"}
_T = 'run="r", table="t"'
_TWO = tuple(f'instance="{name}", pod="{name}-0", {_T}' for name in ("a", "b"))


def _both(name: str, values: str, labels: str = "") -> dict[str, str]:
    """Return a series of the table as two replicas of the service show it."""
    return {f"{name}{{{each}{labels}}}": values for each in _TWO}


def _inserted(effective: str, ineffective: str) -> dict[str, str]:
    name = "groupreplay_table_inserted_groups_total"
    return _both(name, effective, ', effective="true"') | _both(name, ineffective, ', effective="false"')


def _producers(alive: str, slow: str, dead: str) -> dict[str, str]:
    name = "groupreplay_table_producers"
    counts = {"alive": alive, "slow": slow, "dead": dead}
    return {
        series: value
        for health, values in counts.items()
        for series, value in _both(name, values, f', health="{health}"').items()
    }


def _staleness(fresh_rate: int, old_rate: int) -> dict[str, str]:
    """Return buckets of a histogram: so many groups a minute of staleness 0, so many of 21 to 34."""
    name, total = "groupreplay_delivered_staleness_versions_bucket", fresh_rate + old_rate
    below = {"0.0": fresh_rate, "10.0": fresh_rate, "21.0": fresh_rate, "34.0": total, "+Inf": total}
    return {f'{name}{{instance="a", {_T}, source="replay", le="{le}"}}': f"0+{rate}x60" for le, rate in below.items()}


def _calls(good: int, bad: int, reason: str) -> dict[str, str]:
    name = "groupreplay_call_seconds_count"
    return {
        f'{name}{{instance="a", method="Insert", reason="OK"}}': f"0+{good}x60",
        f'{name}{{instance="a", method="Commit", reason="{reason}"}}': f"0+{bad}x60",
    }


def _latency(method: str, slow: int) -> dict[str, str]:
    name = "groupreplay_call_seconds_bucket"
    below = {"0.1": 100, "2.5": 100, "5.0": 100 + slow, "+Inf": 100 + slow}
    return {
        f'{name}{{instance="a", method="{method}", reason="OK", le="{le}"}}': f"0+{rate}x60"
        for le, rate in below.items()
    }


def _redis(name: str, values: str) -> dict[str, str]:
    return {f'groupreplay_redis_{name}{{instance="{it}", node="redis:6379"}}': values for it in ("a", "b")}


def _trainer(name: str, values: str, labels: str = "") -> dict[str, str]:
    return {f'groupreplay_trainer_{name}{{instance="t"{labels}}}': values}


def _rewards(**failures_a_minute: int) -> dict[str, str]:
    """Return a generator of a hundred rollouts a minute, so many of which fail for each cause."""
    failures = "groupreplay_generator_reward_failures_total"
    return {'groupreplay_generator_rollouts_total{instance="g"}': "0+100x60"} | {
        f'{failures}{{instance="g", cause="{cause}"}}': f"0+{rate}x60" for cause, rate in failures_a_minute.items()
    }


def _certificate(days: int) -> dict[str, str]:
    """Return a certificate that both doors show, with so many days left at the start."""
    name = "groupreplay_certificate_left_seconds"
    return {f'{name}{{instance="a", door="{door}"}}': f"{days * 86400}-60x60" for door in ("grpc", "http")}


_NODE = {"node": "redis:6379"}
_UP = {'groupreplay_build_info{instance="a", version="1"}': "1x60"}

CASES = (
    Case(alert="GroupreplayDown", what="runs", series=_UP),
    Case(
        alert="GroupreplayDown",
        what="is gone",
        series={'groupreplay_build_info{instance="a", version="1"}': "1x10 _x50"},
        fires=({},),
        severity="critical",
    ),
    Case(alert="GroupreplayCertificateExpires", what="three weeks are left", series=_certificate(days=21)),
    Case(
        alert="GroupreplayCertificateExpires",
        what="it was renewed meanwhile",
        series={'groupreplay_certificate_left_seconds{instance="a", door="grpc"}': "86400x30 7776000x30"},
    ),
    Case(
        alert="GroupreplayCertificateExpires",
        what="it has ended",
        series=_certificate(days=0),
        fires=tuple({"instance": "a", "door": door} for door in ("grpc", "http")),
    ),
    Case(
        alert="GroupreplayErrorRateHigh",
        what="errors of callers are no faults",
        series=_calls(100, 50, "BATCH_NOT_READY"),
    ),
    Case(
        alert="GroupreplayErrorRateHigh",
        what="Redis is away now and then",
        series=_calls(100, 5, "STORE_UNAVAILABLE"),
        fires=({},),
        severity="critical",
    ),
    Case(alert="GroupreplayCallsSlow", what="calls that wait", series=_latency("NextBatch", 50)),
    Case(alert="GroupreplayCallsSlow", what="pushes that wait", series=_latency("Atropos.scored_data_list", 50)),
    Case(alert="GroupreplayCallsSlow", what="few are slow", series=_latency("Commit", 0)),
    Case(
        alert="GroupreplayCallsSlow",
        what="commits are slow",
        series=_latency("Commit", 50),
        fires=({"method": "Commit"},),
    ),
    Case(alert="GroupreplayProducersDead", what="all are alive", series=_producers("4x60", "0x60", "0x60")),
    Case(alert="GroupreplayProducersDead", what="it came back", series=_producers("4x60", "0x60", "0x30 1 0x29")),
    Case(
        alert="GroupreplayProducersDead",
        what="one of four is dead",
        series=_producers("3x60", "0x60", "1x60"),
        fires=(TABLE | {"health": "dead"},),
    ),
    Case(
        alert="GroupreplayNoProducers",
        what="nobody waits",
        series=_producers("0x60", "0x60", "0x60") | _both("groupreplay_table_waiting_calls", "0x60"),
    ),
    Case(
        alert="GroupreplayNoProducers",
        what="a slow one is one",
        series=_producers("0x60", "1x60", "3x60") | _both("groupreplay_table_waiting_calls", "1x60"),
    ),
    Case(
        alert="GroupreplayNoProducers",
        what="a trainer waits for nobody",
        series=_producers("0x60", "0x60", "0x60") | _both("groupreplay_table_waiting_calls", "1x60"),
        fires=(TABLE,),
        severity="critical",
    ),
    Case(
        alert="GroupreplayStarvation",
        what="batches come, each after a wait",
        series=_both("groupreplay_table_missing_groups", "16x60")
        | _both("groupreplay_table_batches_total", "0+1x60", ', kind="batch"'),
    ),
    Case(
        alert="GroupreplayStarvation",
        what="none for half an hour",
        series=_both("groupreplay_table_missing_groups", "16x60")
        | _both("groupreplay_table_batches_total", "0+1x10 10x50", ', kind="batch"'),
        fires=(TABLE,),
    ),
    Case(alert="GroupreplayEffectiveShareCollapsed", what="half are effective", series=_inserted("0+8x60", "0+8x60")),
    Case(alert="GroupreplayEffectiveShareCollapsed", what="nothing comes", series=_inserted("8x60", "8x60")),
    Case(
        alert="GroupreplayEffectiveShareCollapsed",
        what="one in twenty is effective",
        series=_inserted("0+1x60", "0+19x60"),
        fires=(TABLE,),
    ),
    Case(alert="GroupreplayStalenessHigh", what="a twentieth is old", series=_staleness(95, 5)),
    Case(alert="GroupreplayStalenessHigh", what="half is old", series=_staleness(50, 50), fires=(TABLE,), minutes=61),
    Case(
        alert="GroupreplayLeasesExpire",
        what="they are committed",
        series=_both("groupreplay_table_ended_leases_total", "0+1x60", ', how="committed"')
        | _both("groupreplay_table_ended_leases_total", "3x60", ', how="expired"'),
    ),
    Case(
        alert="GroupreplayLeasesExpire",
        what="one expired",
        series=_both("groupreplay_table_ended_leases_total", "0x50 1x10", ', how="expired"'),
        fires=(TABLE,),
    ),
    Case(
        alert="GroupreplayTableFull",
        what="there is room",
        series=_both("groupreplay_table_fresh_groups", "10x60")
        | _both("groupreplay_table_fresh_capacity_groups", "64x60"),
    ),
    Case(
        alert="GroupreplayTableFull",
        what="there is none",
        series=_both("groupreplay_table_fresh_groups", "64x60")
        | _both("groupreplay_table_fresh_capacity_groups", "64x60"),
        fires=(TABLE,),
    ),
    Case(
        alert="GroupreplayRedisDown",
        what="one replica cannot reach it",
        series={
            'groupreplay_redis_up{instance="a"}': "0x60",
            'groupreplay_redis_up{instance="b"}': "1x60",
        },
    ),
    Case(
        alert="GroupreplayRedisDown",
        what="none can",
        series={f'groupreplay_redis_up{{instance="{it}"}}': "0x60" for it in ("a", "b")},
        fires=({},),
        severity="critical",
    ),
    Case(
        alert="GroupreplayRedisMemoryHigh",
        what="no limit is set",
        series=_redis("memory_used_bytes", "900x60") | _redis("memory_max_bytes", "0x60"),
    ),
    Case(
        alert="GroupreplayRedisMemoryHigh",
        what="half is used",
        series=_redis("memory_used_bytes", "500x60") | _redis("memory_max_bytes", "1000x60"),
    ),
    Case(
        alert="GroupreplayRedisMemoryHigh",
        what="nine tenths are used",
        series=_redis("memory_used_bytes", "900x60") | _redis("memory_max_bytes", "1000x60"),
        fires=(_NODE,),
    ),
    Case(alert="GroupreplayRedisPersistenceFailing", what="it writes", series=_redis("persistence_ok", "1x60")),
    Case(
        alert="GroupreplayRedisPersistenceFailing",
        what="the disk is full",
        series=_redis("persistence_ok", "1x50 0x10"),
        fires=(_NODE,),
        severity="critical",
    ),
    Case(alert="GroupreplayRedisEvicts", what="long ago", series=_redis("evicted_keys_total", "7x60")),
    Case(
        alert="GroupreplayRedisEvicts",
        what="now",
        series=_redis("evicted_keys_total", "0x57 7x3"),
        fires=(_NODE,),
        severity="critical",
    ),
    Case(
        alert="GroupreplayTrainerStalled",
        what="steps end",
        series=_trainer("last_step_timestamp_seconds", "0+60x60"),
    ),
    Case(
        alert="GroupreplayTrainerStalled",
        what="none for an hour",
        series=_trainer("last_step_timestamp_seconds", "0x60"),
        fires=({"instance": "t"},),
    ),
    Case(
        alert="GroupreplayTrainerAlarm",
        what="it is off",
        series=_trainer("alarm", "0x60", ', name="ess"'),
    ),
    Case(
        alert="GroupreplayTrainerAlarm",
        what="it is on",
        series=_trainer("alarm", "0x50 1x10", ', name="ess"'),
        fires=({"instance": "t", "name": "ess"},),
    ),
    Case(
        alert="GroupreplayTrainerRejectsSteps",
        what="none",
        series=_trainer("rejected_steps_total", "2x60"),
    ),
    Case(
        alert="GroupreplayTrainerRejectsSteps",
        what="one",
        series=_trainer("rejected_steps_total", "0x50 1x10"),
        fires=({"instance": "t"},),
    ),
    Case(
        alert="GroupreplayRewardsFail",
        what="one in a hundred",
        series=_rewards(timeout=1),
    ),
    Case(
        alert="GroupreplayRewardsFail",
        what="one in ten, for two causes",
        series=_rewards(timeout=5, raised=5),
        fires=({"instance": "g"},),
    ),
)
