"""Several ranks, among whom the weights are divided, make the update that one process makes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from trainer.hf_models import llama_config, qwen2_config, write_model

RANKS = Path(__file__).parent / "ranks.py"


def train(folder: Path, *, ranks: int, **request: Any) -> dict[str, Any]:
    """Train in so many processes of their own; return the report, and the weights under their names."""
    folder.mkdir(exist_ok=True)
    values: dict[str, Any] = {
        "options": {"dtype": "float32", "device": "cpu"},
        "minibatches": 2,
        "tokens_at_once": 30,
        "steps": 2,
        "resume": None,
        "folder": str(folder),
    }
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *launcher, str(RANKS), json.dumps(values | request)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110, check=False)
    assert ended.returncode == 0, ended.stderr[-4000:]
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    assert report["ranks"] == ranks
    return report | {"weights": load_file(folder / "weights.st"), "proximal": load_file(folder / "proximal.st")}


def assert_same(found: dict[str, Any], expected: dict[str, Any], *, tolerance: float) -> None:
    """Fail unless losses, norms, KL, weights and scores agree to `tolerance`, absolute and relative; counts exactly."""
    assert found["counts"] == expected["counts"]
    for name in ("losses", "grad_norms", "kl", "weights", "proximal"):
        torch.testing.assert_close(_tensors(found[name]), _tensors(expected[name]), atol=tolerance, rtol=tolerance)


def _tensors(values: Any) -> Any:
    return values if isinstance(values, dict) else torch.tensor(values, dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tinylm", "llama", "tied qwen2, packed, recomputed"])
def test_two_ranks_make_the_update_of_one(kind: str, tmp_path: Path) -> None:
    """Losses, gradient norms, weights and scores agree to 2e-5 after four updates, though shares differ in length."""
    request: dict[str, Any] = {"model": "builtin:addition"}
    if kind != "tinylm":
        config = llama_config() if kind == "llama" else qwen2_config()
        request["model"] = str(write_model(tmp_path / "start", config))
    if "packed" in kind:
        more = {"packing": "packed", "activation_checkpointing": True}
        request["options"] = {"dtype": "float32", "device": "cpu"} | more
    one = train(tmp_path / "one", ranks=1, **request)
    two = train(tmp_path / "two", ranks=2, **request)
    assert_same(two, one, tolerance=2e-5)
    suffix = ".safetensors" if kind == "tinylm" else "/model.safetensors"
    published = [load_file(tmp_path / name / "weights" / f"policy-000002{suffix}") for name in ("one", "two")]
    torch.testing.assert_close(published[1], published[0], atol=2e-5, rtol=2e-5)
