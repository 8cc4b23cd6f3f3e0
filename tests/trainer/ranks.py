"""What one rank of a test does. Run by test_fsdp_torch under torchrun, or by itself as the only rank.

Trains a model that it is given on a batch that is always the same, and has the first rank write what came out.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from groupreplay import Batch, DeliveredGroup, GroupSource, RolloutGroup
from groupreplay.torch.collate import collate
from groupreplay_trainer.checkpoint import CheckpointFolder, Progress, TrainingState
from groupreplay_trainer.failures import NonFiniteError, TrainingMemoryError
from groupreplay_trainer.loss import LossConfig
from groupreplay_trainer.policy_model import ModelOptions, load_policy_model
from groupreplay_trainer.publish import WeightsFolder
from groupreplay_trainer.ranks import Ranks
from groupreplay_trainer.update import PolicyUpdater, UpdateSettings


def make_batch() -> Batch:
    """Return six groups of three rollouts of 1 to 9 response tokens, half of them replayed."""
    rng = np.random.default_rng(0)
    groups = []
    for index in range(6):
        lengths = rng.integers(1, 10, 3)
        total = int(lengths.sum())
        group = RolloutGroup(
            group_id=f"g{index}",
            prompt_id=f"p{index}",
            prompt_token_ids=np.array([5, 6, 7], np.int32),
            response_token_ids=rng.integers(2, 20, total).astype(np.int32),
            response_lengths=lengths.astype(np.int32),
            behaviour_logprobs=-rng.uniform(1.0, 4.0, total).astype(np.float32),
            rewards=np.array([1.0, 0.0, 0.5], np.float32),
            policy_version_min=3,
            policy_version_max=3,
        )
        source = GroupSource.REPLAY if index % 2 else GroupSource.FRESH
        groups.append(
            DeliveredGroup(
                group=group, source=source, staleness=index % 2, times_sampled=1, probability=1.0, redeliveries=0
            )
        )
    return Batch(
        lease_id="l",
        lease_deadline_ms=0,
        policy_version=3,
        batch_size=6,
        fresh=3,
        fresh_effective=3,
        refilled=3,
        shortfall=0,
        groups=tuple(groups),
    )


def train(request: dict[str, Any], ranks: Ranks) -> None:
    """Make the updates that a request asks for, from a checkpoint if it names one, and write what came out.

    The request: model, options, minibatches, tokens_at_once, steps, folder, resume (a step, or null), lr, failing_rank.
    """
    options = ModelOptions(**request["options"])
    model = load_policy_model(request["model"], options, ranks=ranks)
    reference = load_policy_model(request["model"], options, ranks=ranks)
    # With the usual epsilon the smallest gradients, which are rounding alone, make steps as large as any.
    optimizer = torch.optim.AdamW(model.parameters(), lr=request["lr"], eps=1e-3)
    generator = torch.Generator().manual_seed(0)
    folder = Path(request["folder"])
    checkpoints = CheckpointFolder(folder / "checkpoints")
    ranks.first(checkpoints.prepare)
    done = request["resume"] or 0
    if done:
        checkpoints.load(done).restore(model=model, optimizer=optimizer, generator=generator)
    settings = UpdateSettings(
        loss=LossConfig.robust(),
        temperature=0.9,
        minibatches=request["minibatches"],
        tokens_at_once=request["tokens_at_once"],
        max_grad_norm=0.5,
        entropy_coefficient=0.01,
        kl_coefficient=0.1,
    )

    def fail_if_asked() -> None:
        if request["failing_rank"] == ranks.rank:
            raise TrainingMemoryError("this rank has no memory left")

    updater = PolicyUpdater(
        model,
        optimizer,
        settings=settings,
        generator=generator,
        reference=reference,
        ranks=ranks,
        on_progress=fail_if_asked,
    )
    batch = collate(make_batch(), pad_token_id=model.pad_token_id)
    try:
        reports = [updater.update(batch) for _ in range(request["steps"])]
    except NonFiniteError as error:
        broken = error.kind.value
        kinds = ranks.exchange(lambda: broken)
        ranks.first(lambda: (folder / "kinds.json").write_text(json.dumps(kinds)))
        return
    progress = Progress(run="r", table="t", step=done + request["steps"], lease_id="l")
    state = TrainingState.capture(progress, model=model, optimizer=optimizer, generator=generator, ranks=ranks)
    ranks.first(lambda: checkpoints.save(state))
    weights = WeightsFolder(folder / "weights", keep=2, ranks=ranks)
    weights.prepare()
    weights.publish(model, run="r", version=progress.step)
    if ranks.is_first:
        save_file({name: tensor.detach().contiguous() for name, tensor in state.weights.items()}, folder / "weights.st")
        save_file({"logprobs": reports[-1].proximal.logprobs_BT}, folder / "proximal.st")
        last = [reports[-1].fresh.tokens, reports[-1].replay.tokens, reports[-1].fresh.capped]
        found = {
            "losses": [report.losses for report in reports],
            "grad_norms": [report.grad_norms for report in reports],
            "kl": [report.reference_kl for report in reports],
            "counts": last,
            "ranks": ranks.size,
        }
        (folder / "report.json").write_text(json.dumps(found))


def main() -> None:
    """Serve the request that is the only argument."""
    torch.set_num_threads(1)
    with Ranks.join() as ranks:
        train(json.loads(sys.argv[1]), ranks)


if __name__ == "__main__":
    main()
