"""Training state: one safetensors file per step, so that a trainer that dies continues where it was.

The file `step-000012.safetensors` holds the weights (`model.*`), the optimizer's moments (`optimizer.<parameter>.*`)
and the state of the random generator as tensors, everything else as JSON in the metadata, with a SHA-256 over all
of it. No pickle: reading a checkpoint runs no code.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from groupreplay import Batch, GroupFeedback
from groupreplay_trainer.durable_file import remove_leftovers, sync_folder, write_durably
from groupreplay_trainer.policy_model import PolicyModel
from groupreplay_trainer.ranks import Ranks, divided_like

FORMAT: Final = "groupreplay.training.v1"
KEEP: Final = 2
"""Checkpoints kept: the newest, and the one before, for when the newest step's groups went to somebody else."""

_FILE_NAME = re.compile(r"step-(\d{6,})\.safetensors")
_ALONE: Final = Ranks()
_log = logging.getLogger(__name__)


class TrainingStateError(ValueError):
    """A file is not a complete training state that this version can read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingCounters:
    """What all finished steps add up to."""

    groups: int = 0
    """Groups trained on."""
    fresh: int = 0
    """Fresh groups consumed, ineffective ones included."""
    fresh_effective: int = 0
    refilled: int = 0
    shortfall: int = 0
    rollouts: int = 0
    """Rollouts trained on."""
    updates: int = 0
    """Optimizer updates made."""
    empty_steps: int = 0
    """Steps whose batch held no group, which changed no weight."""
    rejected_steps: int = 0
    """Steps whose groups were consumed without an update, because a number was not finite."""

    def plus(self, batch: Batch, *, updates: int, rejected: bool = False) -> Self:
        """Return the counters after a step on `batch`, which trained on it unless it was rejected."""
        trained = () if rejected else batch.groups
        return type(self)(
            groups=self.groups + len(trained),
            fresh=self.fresh + batch.fresh,
            fresh_effective=self.fresh_effective + batch.fresh_effective,
            refilled=self.refilled + batch.refilled,
            shortfall=self.shortfall + batch.shortfall,
            rollouts=self.rollouts + sum(len(delivered.group) for delivered in trained),
            updates=self.updates + updates,
            empty_steps=self.empty_steps + (not batch.groups),
            rejected_steps=self.rejected_steps + rejected,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a training run stands after a step."""

    run: str
    table: str
    step: int
    """Finished steps; the weights are policy version `step`. 0 = the weights the run starts from."""
    lease_id: str
    """The lease whose groups this step trained on; empty at step 0."""
    counters: TrainingCounters = field(default_factory=TrainingCounters)
    log_lengths: Mapping[str, int] = field(default_factory=dict)
    """Bytes of each log file up to and including this step's lines."""
    feedback: Sequence[GroupFeedback] = ()
    """What this step found out about its groups, for the commit: it may be made after a restart, then without the log
    ratios of tokens, which are no part of a checkpoint."""
    rejected_in_a_row: int = 0
    """Rejected steps up to and including this one; 0 if it was not rejected."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingState:
    """A whole training state, on the CPU."""

    progress: Progress
    weights: Mapping[str, Tensor]
    optimizer: Mapping[int, Mapping[str, Tensor]]
    """Parameter number -> name of the moment -> its value."""
    generator: Tensor
    """State of the random generator that shuffles minibatches, uint8."""

    @classmethod
    def capture(
        cls,
        progress: Progress,
        *,
        model: PolicyModel,
        optimizer: Optimizer,
        generator: torch.Generator,
        ranks: Ranks = _ALONE,
    ) -> Self:
        """Return the state that `restore` brings back. Its tensors are the live ones: save it before training on.

        Where weights are divided among ranks all must come here, and the state is whole on the first: it does not
        depend on how many there are.
        """
        moments = optimizer.state_dict()["state"]
        return cls(
            progress=progress,
            weights=ranks.whole(model.weights()),
            optimizer={number: ranks.whole(moments[number]) for number in sorted(moments)},
            generator=generator.get_state(),
        )

    def restore(self, *, model: PolicyModel, optimizer: Optimizer, generator: torch.Generator) -> None:
        """Set model, optimizer and generator to this state.

        Learning rate and weight decay stay the optimizer's own, so that a restart may change them.

        Raises:
            ValueError: the weights or moments belong to another model.
        """
        model.load_weights(self.weights)
        parameters = model.parameters()
        state = {
            number: {name: divided_like(parameters[number], moment) for name, moment in moments.items()}
            for number, moments in self.optimizer.items()
        }
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        generator.set_state(self.generator)


class CheckpointFolder:
    """The training states of one run folder, newest step last."""

    def __init__(self, folder: Path) -> None:
        """Use `folder`, which `prepare` creates."""
        self._folder = folder

    def prepare(self) -> None:
        """Create the folder, and remove what a killed trainer left half-written."""
        self._folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self._folder, "step-*")

    def path(self, step: int) -> Path:
        """Return where the state after `step` lies."""
        return self._folder / f"step-{step:06d}.safetensors"

    def save(self, state: TrainingState) -> None:
        """Write a state; once this returns it survives a power cut, and older states than the last two are removed."""
        write_durably(self.path(state.progress.step), lambda path: _write(state, path))
        for step in self._steps()[:-KEEP]:
            self.path(step).unlink(missing_ok=True)

    def load(self, step: int) -> TrainingState:
        """Return the state after `step`.

        Raises:
            TrainingStateError: it is missing, torn or foreign; the message names the file.
        """
        return _decode(self.path(step))

    def load_newest(self) -> TrainingState | None:
        """Return the newest state that can be read, None where there is none; skip the others and say which."""
        for step in reversed(self._steps()):
            try:
                return self.load(step)
            except TrainingStateError as error:
                _log.error("skipping the checkpoint of step %d: %s", step, error)
        return None

    def drop(self, step: int) -> None:
        """Remove the state after `step`, durably."""
        self.path(step).unlink(missing_ok=True)
        sync_folder(self._folder)

    def _steps(self) -> list[int]:
        matches = (_FILE_NAME.fullmatch(path.name) for path in self._folder.iterdir())
        return sorted(int(match[1]) for match in matches if match)


def _write(state: TrainingState, path: Path) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in state.weights.items()}
    for number, moments in state.optimizer.items():
        tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in moments.items()}
    tensors["generator"] = state.generator
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    progress = json.dumps(_fields_of(state.progress))
    metadata = {"format": FORMAT, "progress": progress, "sha256": _digest(progress, tensors)}
    save_file(tensors, path, metadata=metadata)


def _decode(path: Path) -> TrainingState:
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise TrainingStateError(f"{path} cannot be read: {error}") from error
    if metadata.get("format") != FORMAT:
        raise TrainingStateError(f"{path} is not a training state: format {metadata.get('format')!r}, not {FORMAT!r}")
    if metadata.get("sha256") != _digest(metadata.get("progress", ""), tensors):
        raise TrainingStateError(f"{path} is damaged: its contents do not have the SHA-256 it was written with")
    optimizer: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, number, moment = name.split(".", 2)
            optimizer.setdefault(int(number), {})[moment] = tensor
    return TrainingState(
        progress=_progress(json.loads(metadata["progress"])),
        weights={name.removeprefix("model."): it for name, it in tensors.items() if name.startswith("model.")},
        optimizer=optimizer,
        generator=tensors["generator"],
    )


def _fields_of(progress: Progress) -> dict[str, Any]:
    found = asdict(progress)
    for item in found["feedback"]:
        del item["log_ratios"]  # megabytes for people to look at
    return found


def _progress(fields: dict[str, Any]) -> Progress:
    feedback = tuple(GroupFeedback(**item) for item in fields.get("feedback", ()))
    return Progress(**{**fields, "counters": TrainingCounters(**fields["counters"]), "feedback": feedback})


def _digest(progress: str, tensors: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 of everything: safetensors itself notices a short file, but not a wrong one."""
    digest = hashlib.sha256(progress.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
