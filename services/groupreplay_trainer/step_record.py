"""What is written down about a finished step."""

from collections.abc import Mapping
from typing import Any

from groupreplay import Batch, GroupSource
from groupreplay.torch.collate import TrainingBatch
from groupreplay_trainer.checkpoint import TrainingCounters
from groupreplay_trainer.diagnostics import BatchMakeup, StepDiagnostics, TokenTally, replay_drift
from groupreplay_trainer.loss import token_mean
from groupreplay_trainer.update import UpdateReport


def diagnose(batch: Batch, rollouts: TrainingBatch | None, report: UpdateReport | None) -> StepDiagnostics:
    """Return the diagnostics of a step.

    Args:
        batch: as delivered.
        rollouts: the batch collated; None where it has no groups.
        report: of the update; None where none was made.
    """
    makeup = BatchMakeup.of(batch, rollouts)
    if report is None or rollouts is None:
        return StepDiagnostics(
            makeup=makeup,
            drift=None,
            fresh=TokenTally(),
            replay=TokenTally(),
            loss=None,
            entropy=None,
            grad_norm_mean=None,
            grad_norm_max=None,
            skipped_updates=0,
        )
    made = len(report.losses)
    return StepDiagnostics(
        makeup=makeup,
        drift=replay_drift(rollouts, report.proximal.logprobs_BT),
        fresh=report.fresh,
        replay=report.replay,
        loss=sum(report.losses) / made if made else None,
        entropy=float(token_mean(report.proximal.entropy_BT, rollouts.response_mask_BT)),
        grad_norm_mean=sum(report.grad_norms) / made if made else None,
        grad_norm_max=max(report.grad_norms, default=None),
        skipped_updates=report.skipped,
        reference_kl=report.reference_kl,
    )


def train_record(
    step: int,
    batch: Batch,
    *,
    diagnostics: StepDiagnostics,
    totals: TrainingCounters,
    updates: int,
    tokens: int,
    lr: float,
    rejected: bool,
    waiting_s: float,
    training_s: float,
    at_unix_s: float,
) -> dict[str, Any]:
    """Return the line of a step in train.jsonl.

    `policy_version` is the one that the batch was drawn at; the step makes version `step`. `total_*` are counts over
    the whole run, the others are of this step. The alarms that are on come to it as `alarms`.

    Args:
        step, batch: what was trained on.
        diagnostics: of the step.
        totals: of the run, this step included.
        updates: optimizer updates made.
        tokens: response tokens that the loss masks leave in.
        lr: learning rate of the step.
        rejected: whether the step was undone, and its groups are consumed without an update.
        waiting_s, training_s: what the step took, before its checkpoint.
        at_unix_s: when it ended, seconds since 1970.
    """
    return {
        "step": step,
        "policy_version": batch.policy_version,
        "lease_id": batch.lease_id,
        "at_unix_s": round(at_unix_s, 3),
        "waiting_s": round(waiting_s, 3),
        "training_s": round(training_s, 3),
        "tokens": tokens,
        "tokens_per_s": round(tokens / training_s, 1) if training_s > 0 else None,
        "lr": lr,
        "rejected": rejected,
        "groups": len(batch.groups),
        "rollouts": sum(len(item.group) for item in batch.groups),
        "fresh": batch.fresh,
        "fresh_effective": batch.fresh_effective,
        "refilled": batch.refilled,
        "shortfall": batch.shortfall,
        "updates": updates,
        "redelivered_group_ids": _ids(batch, GroupSource.FRESH, redelivered=True),
        **diagnostics.flat(),
        "total_groups": totals.groups,
        "total_rollouts": totals.rollouts,
        "total_fresh": totals.fresh,
        "total_refilled": totals.refilled,
        "total_updates": totals.updates,
        "total_empty_steps": totals.empty_steps,
        "total_rejected_steps": totals.rejected_steps,
    }


def group_record(step: int, batch: Batch) -> dict[str, Any]:
    """Return the line of a step in groups.jsonl: which groups it trained on."""
    return {
        "step": step,
        "fresh_group_ids": _ids(batch, GroupSource.FRESH),
        "replay_group_ids": _ids(batch, GroupSource.REPLAY),
    }


def summary(record: Mapping[str, Any]) -> str:
    """Return a line of train.jsonl in one short sentence for people."""
    parts = [
        f"step {record['step']}: {record['groups']} groups",
        f"{record['refilled']} of them replayed",
        f"waited {record['waiting_s']:.1f} s, trained {record['training_s']:.1f} s",
    ]
    names = {"reward_mean": "reward", "effective_ratio": "effective", "entropy": "entropy", "ess": "ESS", "kl_k3": "KL"}
    parts += [f"{label} {record[name]:.3g}" for name, label in names.items() if record[name] is not None]
    return ", ".join(parts)


def _ids(batch: Batch, source: GroupSource, *, redelivered: bool = False) -> list[str]:
    return [
        item.group.group_id
        for item in batch.groups
        if item.source is source and (item.redeliveries > 0 or not redelivered)
    ]
