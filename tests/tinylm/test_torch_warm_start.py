"""The checkpoints that come with the package, and the script that makes them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from groupreplay_generator.engines import Sampling
from groupreplay_generator.engines.torch_engine import TorchEngine
from groupreplay_generator.tasks import create_task
from groupreplay_tinylm import builtin_checkpoint

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/make_checkpoints.py"


@pytest.mark.parametrize(
    ("task_name", "effective_share"),
    [("addition", (0.1, 0.35)), ("countdown3", (0.3, 0.75)), ("geometry-tiny", (0.5, 0.85))],
)
async def test_a_warm_start_succeeds_now_and_then_and_leaves_most_to_learn(
    task_name: str, effective_share: tuple[float, float]
) -> None:
    """There is a reward to learn from, and accuracy can still more than double."""
    task = create_task(task_name, seed=5)
    problems = [task.problem(index, "train") for index in range(256)]
    images = [problem.image for problem in problems if problem.image is not None]
    async with TorchEngine(builtin_checkpoint(task_name)) as engine:
        results = await engine.generate(
            [problem.prompt_text for problem in problems],
            images=images or None,
            rollouts_per_prompt=8,
            sampling=Sampling(max_response_tokens=task.max_response_tokens, seed=0),
        )
    rewards = np.array(
        [
            [task.score(problem, completion.text) for completion in result.completions]
            for problem, result in zip(problems, results, strict=True)
        ]
    )
    assert 0.02 < (rewards == 1).mean() < 0.25
    assert effective_share[0] < (rewards.std(axis=1) > 1e-6).mean() < effective_share[1]


@pytest.mark.slow
def test_the_script_makes_the_same_checkpoint_from_the_same_seed(tmp_path: Path) -> None:
    """To the byte, so that what is in the package can be made again."""
    made = []
    for name in ("first", "second"):
        flags = ["--task", "addition", "--steps", "2", "--output-dir", str(tmp_path / name)]
        subprocess.run([sys.executable, str(SCRIPT), *flags], check=True, timeout=100)
        made.append((tmp_path / name / "addition.safetensors").read_bytes())
    assert made[0] == made[1]
