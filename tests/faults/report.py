"""The outcome of a campaign as a table for people and as a file for programs."""

import json
from pathlib import Path

from faults.campaign import Outcome


def rows(outcome: Outcome) -> list[tuple[str, str]]:
    """Return what happened, line by line."""
    verdict, plan = outcome.verdict, outcome.plan
    slowest = max(outcome.calls(), key=lambda call: call["took_s"], default={"took_s": 0.0, "what": "none"})
    return [
        ("deployment", plan.deployment),
        ("seed", str(plan.seed)),
        ("kills", f"{sum(outcome.kills.values())}"),
        *((f"  {kind}", str(count)) for kind, count in sorted(outcome.kills.items())),
        ("seconds", f"{outcome.seconds:.0f}"),
        ("groups acknowledged", str(outcome.acknowledged())),
        ("steps committed", str(outcome.committed())),
        ("  of them by groupreplay train", str(outcome.learner_steps)),
        ("steps undone, their lease had ended", str(len(outcome.trainings("undone")))),
        ("groups redelivered", str(sum(record["redelivered"] for record in outcome.trainings("trained")))),
        ("replies lost on the way", str(outcome.answers_lost)),
        ("calls made again", str(sum(call["retries"] for call in outcome.calls()))),
        ("inserts found to be duplicates", str(outcome.duplicates)),
        ("payloads left for the sweeper", str(verdict.orphans)),
        ("longest call of a client, seconds", f"{slowest['took_s']:.1f} ({slowest['what']})"),
        ("acknowledged groups lost", str(len(verdict.lost))),
        ("committed twice", str(len(verdict.committed_twice))),
        ("disagreements", str(len(verdict.disagreements))),
    ]


def table(outcome: Outcome) -> str:
    """Return a table, and what is wrong below it."""
    lines = [f"  {name:38} {value}" for name, value in rows(outcome)]
    verdict = outcome.verdict
    for title, found in (
        ("lost", verdict.lost),
        ("committed twice", verdict.committed_twice),
        ("disagreement", verdict.disagreements),
    ):
        lines += [f"  {title}: {item}" for item in found[:20]]
    return "\n".join(lines)


def write_summary(outcome: Outcome, path: Path) -> None:
    """Write the figures as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(
            {
                "kills": sum(outcome.kills.values()),
                "acknowledged": outcome.acknowledged(),
                "lost": len(outcome.verdict.lost),
                "committed_twice": len(outcome.verdict.committed_twice),
                "seed": outcome.plan.seed,
                "deployment": outcome.plan.deployment,
                "kills_by_victim": outcome.kills,
                "committed_steps": outcome.committed(),
                "undone_steps": len(outcome.trainings("undone")),
                "redelivered": sum(record["redelivered"] for record in outcome.trainings("trained")),
                "retries": sum(call["retries"] for call in outcome.calls()),
                "lost_replies": outcome.answers_lost,
                "duplicates": outcome.duplicates,
                "orphans": outcome.verdict.orphans,
                "disagreements": len(outcome.verdict.disagreements),
                "longest_call_s": round(max((call["took_s"] for call in outcome.calls()), default=0.0), 3),
                "seconds": round(outcome.seconds, 1),
            },
            indent=2,
        )
        + "\n"
    )
