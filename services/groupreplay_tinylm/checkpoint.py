"""TinyLM checkpoints: one safetensors file that holds the weights, with the configuration in its metadata."""

import json
import os
import tempfile
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from groupreplay_tinylm.model import TinyLM, TinyLMConfig
from groupreplay_tinylm.vision import VisionConfig

FORMAT: Final = "groupreplay.tinylm.v1"

_BUILTIN_FILES: Final = {
    "addition": "addition.safetensors",
    "countdown": "countdown.safetensors",
    "countdown3": "countdown.safetensors",
    "countdown4": "countdown.safetensors",
    "geometry-tiny": "geometry-tiny.safetensors",
}


class CheckpointError(ValueError):
    """A file is not a checkpoint that this version can read."""


def save_checkpoint(path: Path | str, model: TinyLM, *, dtype: torch.dtype = torch.float32) -> None:
    """Write `model` to `path` so that a reader sees the old file or the whole new one, also after a power cut.

    Args:
        path: replaced if it exists; its folder must exist.
        model: left as it is.
        dtype: how the weights are stored; float16 halves the file and rounds them.
    """
    path = Path(path)
    tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in model.state_dict().items()}
    # What a model does not have is left out, so that a text model's file stays readable by versions without vision.
    config = {name: value for name, value in asdict(model.config).items() if value is not None}
    # One entry only: safetensors writes several in no fixed order, and the same weights must give the same bytes.
    content = save(tensors, metadata={FORMAT: json.dumps(config)})
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def load_checkpoint(path: Path | str) -> TinyLM:
    """Return the model stored at `path`, in float32 on the CPU and in evaluation mode.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is not a TinyLM checkpoint, or its weights do not fit its configuration.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}") from error
    model = TinyLM(_config_from(path, metadata))
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"the weights in {path} do not fit its configuration {model.config}: {error}") from error
    return model.eval()


def builtin_checkpoint(task_name: str) -> Path:
    """Return the path of the warm-started checkpoint that comes with this package for the task `task_name`.

    Raises:
        ValueError: no checkpoint comes with that task.
    """
    if task_name not in _BUILTIN_FILES:
        known = ", ".join(sorted(_BUILTIN_FILES))
        raise ValueError(f"no built-in checkpoint for the task {task_name!r}; there is one for: {known}")
    return Path(str(resources.files("groupreplay_tinylm"))) / "checkpoints" / _BUILTIN_FILES[task_name]


def _config_from(path: Path, metadata: dict[str, str]) -> TinyLMConfig:
    if FORMAT not in metadata:
        raise CheckpointError(
            f"{path} is not a TinyLM checkpoint: it has no metadata {FORMAT!r}, but {sorted(metadata)}"
        )
    try:
        config = json.loads(metadata[FORMAT])
        vision = config.pop("vision", None)
        return TinyLMConfig(**config, vision=None if vision is None else VisionConfig(**vision))
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"the configuration of {path} cannot be read: {error}") from error


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable: it is an entry of the folder, not of the file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
