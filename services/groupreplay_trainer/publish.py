"""Published weights: one file per policy version, in a folder that the generators can read.

`policy-000012.safetensors` holds policy version 12 in the format of the model's inference engines.
"""

import re
from pathlib import Path
from typing import Final

from groupreplay import Policy
from groupreplay.weights import weights_sha256
from groupreplay_trainer.durable_file import remove_leftovers
from groupreplay_trainer.policy_model import PolicyModel

MIN_KEEP: Final = 2
"""A generator may be reading the version before while the next one is announced."""

_FILE_NAME = re.compile(r"policy-(\d{6,})\.safetensors")


class WeightsFolder:
    """The folder that a trainer publishes into."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        """Use `folder`, which `prepare` creates, and keep the newest `keep` versions in it.

        Raises:
            ValueError: keep is below 2.
        """
        if keep < MIN_KEEP:
            raise ValueError(f"keep {keep} is below {MIN_KEEP}: generators still read the version before the newest")
        self._folder = folder
        self._keep = keep

    def prepare(self) -> None:
        """Create the folder, and remove what a killed trainer left half-written."""
        self._folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self._folder, "policy-*")

    def path(self, version: int) -> Path:
        """Return where the weights of a version lie."""
        return self._folder / f"policy-{version:06d}.safetensors"

    def publish(self, model: PolicyModel, *, run: str, version: int) -> Policy:
        """Write the weights as policy `version`, drop the oldest, and return what to tell the service."""
        path = self.path(version)
        model.save(path)
        for old in self._versions():
            if old <= version - self._keep:
                self.path(old).unlink(missing_ok=True)
        uri = path.resolve().as_uri()
        return Policy(run=run, version=version, weights_uri=uri, weights_sha256=weights_sha256(path))

    def holds(self, policy: Policy) -> bool:
        """Return whether the weights that the service announces are here, byte for byte."""
        path = self.path(policy.version)
        return path.exists() and weights_sha256(path) == policy.weights_sha256

    def _versions(self) -> list[int]:
        matches = (_FILE_NAME.fullmatch(path.name) for path in self._folder.iterdir())
        return [int(match[1]) for match in matches if match]
