"""What the Grafana dashboard shows, row by row; scripts/generate_dashboard.py makes the file of it."""

from collections.abc import Sequence
from dataclasses import dataclass

_TABLE = 'run=~"$run", table=~"$table"'
_RATE = "[$__rate_interval]"


@dataclass(frozen=True, slots=True)
class Query:
    """A line, or lines, of a panel."""

    expression: str
    legend: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One picture; six of width 4 or three of width 8 fill a row."""

    title: str
    meaning: str
    queries: Sequence[Query]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    stacked: bool = False
    high: float | None = None
    """Beyond it the value is red."""


def _best(name: str, labels: str = "") -> str:
    """Return a gauge of a table, which each replica of the service shows."""
    return f"max without (instance, pod) (groupreplay_{name}{{{_TABLE}{labels}}})"


def _rate(name: str, labels: str = "", *, per: str = _RATE) -> str:
    """Return the rate of a counter of a table."""
    return f"max without (instance, pod) (rate(groupreplay_{name}_total{{{_TABLE}{labels}}}{per}))"


def _quantile(quantile: str, histogram: str, by: str, labels: str = "") -> str:
    return f"histogram_quantile({quantile}, sum by (le, {by}) (rate({histogram}_bucket{{{labels}}}{_RATE})))"


def _line(expression: str, what: str = "") -> Query:
    """Return a query of which each table has a line."""
    return Query(expression, f"{{{{run}}}}/{{{{table}}}} {what}".rstrip())


_ALIVE = _best("table_producers", ', health=~"alive|slow"')
NOW = "Now"

ROWS: dict[str, Sequence[Panel]] = {
    NOW: (
        Panel(
            title="Replicas",
            meaning="Of the service, that answer",
            queries=[Query("count(groupreplay_build_info)", "")],
            kind="stat",
            width=4,
        ),
        Panel(
            title="Redis up",
            meaning="Share of replicas that reach Redis",
            queries=[Query("avg(groupreplay_redis_up)", "")],
            kind="stat",
            unit="percentunit",
            width=4,
        ),
        Panel(
            title="Alerts",
            meaning="That fire now",
            queries=[Query('count(ALERTS{alertname=~"Groupreplay.*", alertstate="firing"}) or vector(0)', "")],
            kind="stat",
            width=4,
            high=1,
        ),
        Panel(
            title="Batches a minute",
            meaning="Handed out to trainers",
            queries=[Query(f"60 * sum({_rate('table_batches', per='[5m]')})", "")],
            kind="stat",
            width=4,
        ),
        Panel(
            title="Producers alive",
            meaning="Slow ones included",
            queries=[Query(f"sum({_ALIVE})", "")],
            kind="stat",
            width=4,
        ),
        Panel(
            title="Calls that fail",
            meaning="For faults of the service or of Redis, last five minutes",
            queries=[Query("max(groupreplay:call_faults:ratio_rate5m) or vector(0)", "")],
            kind="stat",
            unit="percentunit",
            width=4,
            high=0.02,
        ),
    ),
    "Batches": (
        Panel(
            title="Groups in the table",
            meaning="Fresh ones wait for NextBatch, leased ones are trained on, replay waits to be used again",
            queries=[
                _line(_best("table_fresh_groups"), "fresh"),
                _line(_best("table_leased_groups"), "leased"),
                _line(_best("table_replay_groups"), "replay"),
            ],
        ),
        Panel(
            title="Groups delivered",
            meaning="A second, by source; replay is what ineffective slots were refilled with",
            queries=[_line(_rate("table_delivered_groups"), "{{source}}")],
            stacked=True,
        ),
        Panel(
            title="Waiting",
            meaning="Groups that waiting NextBatch calls lack, and slots of batches that stayed empty a second",
            queries=[
                _line(_best("table_missing_groups"), "missing"),
                _line(_best("table_waiting_calls"), "calls that wait"),
                _line(_rate("table_shortfall_slots"), "shortfall a second"),
            ],
        ),
        Panel(
            title="Inserts",
            meaning="Groups a second, by whether their rewards differ",
            queries=[_line(_rate("table_inserted_groups"), "effective={{effective}}")],
            stacked=True,
        ),
        Panel(
            title="Groups refused, and gone",
            meaning="A second, by reason. Stale ones came too late or waited too long",
            queries=[
                _line(f"{_rate('table_refused_groups')} > 0", "refused: {{reason}}"),
                _line(f"{_rate('table_gone_groups')} > 0", "gone: {{reason}}"),
            ],
        ),
        Panel(
            title="Leases",
            meaning="Ended a second, by how; and groups handed out a second time",
            queries=[
                _line(_rate("table_ended_leases"), "{{how}}"),
                _line(_rate("table_redelivered_groups"), "redelivered"),
            ],
        ),
    ),
    "What is learnt from": (
        Panel(
            title="Effective share",
            meaning="Of new groups, those whose rewards differ; the others teach nothing",
            queries=[_line(f"groupreplay:table_effective_share:ratio_rate15m{{{_TABLE}}}")],
            unit="percentunit",
        ),
        Panel(
            title="Effective share by task",
            meaning="Over an hour",
            queries=[_line(f"groupreplay:task_effective_share:ratio_rate1h{{{_TABLE}}}", "{{task}}")],
            unit="percentunit",
        ),
        Panel(
            title="Replay share",
            meaning="Of delivered groups. Runs collapse in a spiral of more and older replay",
            queries=[_line(f"groupreplay:table_replay_share:ratio_rate15m{{{_TABLE}}}")],
            unit="percentunit",
        ),
        Panel(
            title="Staleness of delivered groups",
            meaning="Policy versions between the run's and the group's oldest",
            queries=[
                _line(_quantile(q, "groupreplay_delivered_staleness_versions", "run, table", _TABLE), f"p{percent}")
                for q, percent in (("0.5", 50), ("0.9", 90))
            ]
            + [_line(_best("table_replay_staleness_max_versions"), "oldest in replay")],
        ),
        Panel(
            title="Policy version",
            meaning="Of the run, and what generators sample with",
            queries=[
                Query('max by (run) (groupreplay_policy_version{run=~"$run"})', "{{run}}"),
                Query("groupreplay_generator_policy_version", "{{instance}}"),
            ],
        ),
        Panel(
            title="Stale groups by task",
            meaning="Dropped a second. A share that differs by task biases the data",
            queries=[_line(_rate("task_stale_groups"), "{{task}}")],
        ),
    ),
    "Generators": (
        Panel(
            title="Producers",
            meaning="By health; dead ones count for an hour",
            queries=[_line(_best("table_producers"), "{{health}}")],
            stacked=True,
        ),
        Panel(
            title="Stages of a go",
            meaning="90th percentile. Admission is waiting until groups are wanted",
            queries=[Query(_quantile("0.9", "groupreplay_generator_stage_seconds", "stage"), "{{stage}}")],
            unit="s",
        ),
        Panel(
            title="Response tokens",
            meaning="A second",
            queries=[Query(f"rate(groupreplay_generator_response_tokens_total{_RATE})", "{{instance}}")],
        ),
        Panel(
            title="Mean reward",
            meaning="Of the groups inserted last",
            queries=[Query("groupreplay_generator_reward_mean", "{{instance}}")],
        ),
        Panel(
            title="Rewards that failed",
            meaning="A second, by cause",
            queries=[Query(f"rate(groupreplay_generator_reward_failures_total{_RATE})", "{{instance}} {{cause}}")],
        ),
        Panel(
            title="Groups by outcome",
            meaning="A second, as the generators see it",
            queries=[Query(f"rate(groupreplay_generator_groups_total{_RATE})", "{{instance}} {{outcome}}")],
        ),
    ),
    "Trainer": (
        Panel(
            title="Waiting and training",
            meaning="Seconds of each second. A trainer that mostly waits needs more generators",
            queries=[
                Query(f"rate(groupreplay_trainer_waiting_seconds_sum{_RATE})", "{{instance}} waits"),
                Query(f"rate(groupreplay_trainer_training_seconds_sum{_RATE})", "{{instance}} trains"),
                Query(f"rate(groupreplay_trainer_publishing_seconds_sum{_RATE})", "{{instance}} publishes"),
            ],
            unit="percentunit",
            stacked=True,
        ),
        Panel(
            title="Reward",
            meaning="Mean of delivered fresh groups",
            queries=[Query("groupreplay_trainer_reward_mean", "{{instance}}")],
        ),
        Panel(
            title="Off-policy",
            meaning="Effective sample size of replayed tokens, and KL in nats",
            queries=[
                Query("groupreplay_trainer_ess", "{{instance}} ESS"),
                Query("groupreplay_trainer_kl_k3_nats", "{{instance}} KL"),
            ],
        ),
        Panel(
            title="Entropy",
            meaning="Of the policy at the trained tokens, nats",
            queries=[Query("groupreplay_trainer_entropy_nats", "{{instance}}")],
        ),
        Panel(
            title="Gradient norm",
            meaning="Before clipping",
            queries=[Query("groupreplay_trainer_grad_norm_mean", "{{instance}}")],
        ),
        Panel(
            title="Alarms",
            meaning="1 while the run is beyond a line",
            queries=[Query("groupreplay_trainer_alarm", "{{instance}} {{name}}")],
        ),
    ),
    "Service": (
        Panel(
            title="Calls",
            meaning="A second, by method",
            queries=[Query(f"sum by (method) (rate(groupreplay_call_seconds_count{_RATE}))", "{{method}}")],
        ),
        Panel(
            title="Errors by reason",
            meaning="A second. BATCH_NOT_READY, TABLE_FULL and RATE_LIMITED are the pace of normal work",
            queries=[
                Query(
                    f'sum by (method, reason) (rate(groupreplay_call_seconds_count{{reason!="OK"}}{_RATE}))',
                    "{{method}} {{reason}}",
                )
            ],
        ),
        Panel(
            title="Latency, 99th percentile",
            meaning="Of calls that do not wait for groups",
            queries=[Query("groupreplay:call_seconds:p99_rate5m", "{{method}}")],
            unit="s",
        ),
        Panel(
            title="Calls that run or wait",
            meaning="By method",
            queries=[Query("sum by (method) (groupreplay_calls_running) > 0", "{{method}}")],
        ),
        Panel(
            title="Payload",
            meaning="Bytes a second, in and out",
            queries=[Query(f"sum by (direction) (rate(groupreplay_payload_bytes_total{_RATE}))", "{{direction}}")],
            unit="Bps",
        ),
        Panel(
            title="Processor",
            meaning="Cores of each process",
            queries=[
                Query(
                    f"rate(process_cpu_seconds_total{_RATE}) and on (instance) groupreplay_build_info", "{{instance}}"
                )
            ],
        ),
        Panel(
            title="Certificates",
            meaning="Until the first of those that a door shows ends; none without TLS",
            queries=[Query("min by (instance) (groupreplay_certificate_left_seconds)", "{{instance}}")],
            unit="s",
        ),
    ),
    "Redis": (
        Panel(
            title="Memory",
            meaning="Used, and the limit where there is one",
            queries=[
                Query("max by (node) (groupreplay_redis_memory_used_bytes)", "{{node}} used"),
                Query("max by (node) (groupreplay_redis_memory_max_bytes) > 0", "{{node}} limit"),
            ],
            unit="bytes",
        ),
        Panel(
            title="Bytes by table",
            meaning="Payloads; lineage and headers come on top",
            queries=[_line(_best("table_payload_bytes"))],
            unit="bytes",
            stacked=True,
        ),
        Panel(
            title="Round trip, and commands under way",
            meaning="Of a ping, and per replica of the service",
            queries=[
                Query("groupreplay_redis_ping_seconds * 1000", "{{instance}} {{node}} ms"),
                Query("groupreplay_redis_commands_running", "{{instance}} {{node}} commands"),
            ],
        ),
    ),
}
