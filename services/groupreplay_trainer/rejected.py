"""Batches of rejected steps, kept for a look: a JSON file for people, and the arrays beside it.

`rejected/step-000012.json` says what was not finite and describes each group; `rejected/step-000012.npz` has the
rollouts as the update saw them, so that the update can be made again elsewhere.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from groupreplay import Batch, DeliveredGroup
from groupreplay.torch.collate import TrainingBatch
from groupreplay_trainer.durable_file import sync_folder, write_durably
from groupreplay_trainer.failures import NonFiniteError
from groupreplay_trainer.settings import TrainerSettings

KEEP: Final = 20
"""Rejected batches kept, so that a run that rejects many does not fill the disk."""

_ARRAYS: Final = {
    "token_ids_BT": "prompt and response of each rollout, padded on the right",
    "response_mask_BT": "which tokens were trained on",
    "behaviour_logprobs_BT": "natural log, of the policy that sampled the token",
    "proximal_logprobs_BT": "natural log, of the policy at the start of the step",
    "advantages_B": "one for each rollout",
    "group_index_B": "position of the rollout's group in `groups`",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RejectedBatch:
    """A rejected batch, read back."""

    description: dict[str, Any]
    rollouts: TrainingBatch
    proximal_logprobs_BT: Tensor  # noqa: N815 - tensor shape as suffix


def write_rejected(
    folder: Path, step: int, batch: Batch, rollouts: TrainingBatch, error: NonFiniteError, *, settings: TrainerSettings
) -> Path:
    """Write the batch of a rejected step durably, the JSON file last, and return that file's path.

    Args:
        folder: created if it is not there.
        step, batch, rollouts: the step, what it was given, and the same collated.
        error: what was not finite.
        settings: those that matter for the update are written too.
    """
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)
    path = folder / f"step-{step:06d}.json"
    arrays = {field.name: np.asarray(getattr(rollouts, field.name)) for field in fields(rollouts)}
    arrays["proximal_logprobs_BT"] = error.proximal_logprobs_BT.numpy()
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    write_durably(path.with_suffix(".npz"), lambda file: file.write_bytes(content.getvalue()))
    description = _describe(step, batch, rollouts, error, settings)
    write_durably(path, lambda file: file.write_text(json.dumps(description, indent=2) + "\n"))
    for old in sorted(folder.glob("step-*.json"))[:-KEEP]:
        old.unlink(missing_ok=True)
        old.with_suffix(".npz").unlink(missing_ok=True)
    return path


def read_rejected(path: Path) -> RejectedBatch:
    """Return what `write_rejected` wrote.

    Args:
        path: of the JSON file; the arrays lie beside it.

    Raises:
        OSError, ValueError: a file is missing or damaged.
    """
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as file:
        tensors = {name: torch.from_numpy(file[name]) for name in file.files}
    proximal_logprobs_BT = tensors.pop("proximal_logprobs_BT")
    return RejectedBatch(
        description=json.loads(path.read_text()),
        rollouts=TrainingBatch(**tensors),
        proximal_logprobs_BT=proximal_logprobs_BT,
    )


def _describe(
    step: int, batch: Batch, rollouts: TrainingBatch, error: NonFiniteError, settings: TrainerSettings
) -> dict[str, Any]:
    return {
        "step": step,
        "what": str(error),
        "likely_causes": error.causes,
        "lease_id": batch.lease_id,
        "policy_version": batch.policy_version,
        "settings": {name: asdict(getattr(settings, name)) for name in ("optimizer", "loss")},
        "arrays": _ARRAYS,
        "groups": list(_groups(batch, rollouts, error.proximal_logprobs_BT)),
    }


def _groups(batch: Batch, rollouts: TrainingBatch, proximal_logprobs_BT: Tensor) -> Iterator[dict[str, Any]]:
    for index, delivered in enumerate(batch.groups):
        rows_B = rollouts.group_index_B == index
        mask_NT = rollouts.response_mask_BT[rows_B]
        proximal_N, behaviour_N = proximal_logprobs_BT[rows_B][mask_NT], rollouts.behaviour_logprobs_BT[rows_B][mask_NT]
        yield _provenance(delivered) | {
            "rewards": _json_numbers(rollouts.rewards_B[rows_B]),
            "advantages": _json_numbers(rollouts.advantages_B[rows_B]),
            "tokens": len(proximal_N),
            "tokens_without_finite_logprob": int((~torch.isfinite(proximal_N)).sum()),
            "largest_log_weight": _json_numbers((proximal_N - behaviour_N).abs().max()[None])[0]
            if len(proximal_N)
            else None,
        }


def _provenance(delivered: DeliveredGroup) -> dict[str, Any]:
    group = delivered.group
    return {
        "group_id": group.group_id,
        "prompt_id": group.prompt_id,
        "source": delivered.source.value,
        "staleness": delivered.staleness,
        "times_sampled": delivered.times_sampled,
        "policy_version_min": group.policy_version_min,
        "policy_version_max": group.policy_version_max,
    }


def _json_numbers(values_N: Tensor) -> list[float | str]:
    """Return numbers that JSON can hold: "nan" and "inf" as strings."""
    return [value if np.isfinite(value) else str(value) for value in values_N.tolist()]
