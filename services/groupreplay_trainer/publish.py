"""Published weights: one file or folder per policy version, in a folder that the generators can read.

`policy-000012.safetensors` (a TinyLM) or `policy-000012` (a Hugging Face model, with its configuration and tokenizer)
holds policy version 12 in the format of the model's inference engines.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from torch import Tensor

from groupreplay import Policy
from groupreplay.weights import weights_sha256
from groupreplay_trainer.durable_file import remove, remove_leftovers
from groupreplay_trainer.policy_model import PolicyModel
from groupreplay_trainer.ranks import Ranks

MIN_KEEP: Final = 2
"""A generator may be reading the version before while the next one is announced."""

_ALONE: Final = Ranks()
_NAME = re.compile(r"policy-(\d{6,})(?:\.safetensors)?")


class WeightsFolder:
    """The folder that a trainer publishes into."""

    def __init__(self, folder: Path, *, keep: int, ranks: Ranks = _ALONE) -> None:
        """Use `folder`, which `prepare` creates, and keep the newest `keep` versions in it.

        All ranks must make each call; the first one alone reads and writes.

        Raises:
            ValueError: keep is below 2.
        """
        if keep < MIN_KEEP:
            raise ValueError(f"keep {keep} is below {MIN_KEEP}: generators still read the version before the newest")
        self._folder = folder
        self._keep = keep
        self._ranks = ranks

    def prepare(self) -> None:
        """Create the folder, and remove what a killed trainer left half-written."""
        self._ranks.first(self._prepare)

    def publish(self, model: PolicyModel, *, run: str, version: int) -> Policy:
        """Write the weights as policy `version`, drop the oldest, and return what to tell the service."""
        weights = self._ranks.whole(model.weights())
        return self._ranks.first(lambda: self._write(model, weights, run=run, version=version))

    def holds(self, policy: Policy) -> bool:
        """Return whether the weights that the service announces are here, byte for byte."""
        return self._ranks.first(lambda: self._find(policy))

    def _prepare(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self._folder, "policy-*")

    def _write(self, model: PolicyModel, weights: Mapping[str, Tensor], *, run: str, version: int) -> Policy:
        path = self._folder / f"policy-{version:06d}{model.published_suffix}"
        model.save(path, weights)
        for old, stale in self._versions():
            if old <= version - self._keep:
                remove(stale)
        uri = path.resolve().as_uri()
        return Policy(run=run, version=version, weights_uri=uri, weights_sha256=weights_sha256(path))

    def _find(self, policy: Policy) -> bool:
        found = [path for version, path in self._versions() if version == policy.version]
        return any(weights_sha256(path) == policy.weights_sha256 for path in found)

    def _versions(self) -> list[tuple[int, Path]]:
        matches = ((_NAME.fullmatch(path.name), path) for path in self._folder.iterdir())
        return [(int(match[1]), path) for match, path in matches if match]
