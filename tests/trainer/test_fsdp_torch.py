"""Several ranks, among whom the weights are divided, make the update that one process makes."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from trainer.hf_models import llama_config, qwen2_config, write_model

from groupreplay import AsyncClient, RolloutGroup
from groupreplay_server.app import RunningServer
from groupreplay_tinylm import load_checkpoint
from groupreplay_trainer.policy_model import TinyLMPolicy
from groupreplay_trainer.ranks import Ranks, split_shares
from groupreplay_trainer.run_folder import RunFolder
from groupreplay_trainer.settings import TrainerSettings

pytestmark = pytest.mark.timeout(300)

TIMEOUT_S = 250.0
"""Of a run: starting Python with torch and transformers is most of it."""

RANKS = Path(__file__).parent / "ranks.py"
REQUEST: dict[str, Any] = {
    "options": {"dtype": "float32", "device": "cpu"},
    "minibatches": 2,
    "tokens_at_once": 30,
    "steps": 2,
    "resume": None,
    "lr": 0.003,
    "failing_rank": None,
}


def train(folder: Path, *, ranks: int, **request: Any) -> dict[str, Any]:
    """Train in so many processes of their own; return the report, and the weights under their names."""
    folder.mkdir(exist_ok=True)
    launched(str(RANKS), json.dumps(REQUEST | {"folder": str(folder)} | request), ranks=ranks)
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    assert report["ranks"] == ranks
    return report | {"weights": load_file(folder / "weights.st"), "proximal": load_file(folder / "proximal.st")}


def launched(*arguments: str, ranks: int) -> str:
    """Run a Python program, or its module after -m, to its end in so many processes; return its log."""
    ended = subprocess.run(
        launch(*arguments, ranks=ranks),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    return ended.stderr


def launch(*arguments: str, ranks: int) -> list[str]:
    """Return the command that runs a program in so many processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    if launcher and arguments[0] == "-m":
        # Without the two dashes torchrun takes --run for short for an option of its own.
        arguments = ("-m", "--", *arguments[1:])
    return [sys.executable, *launcher, *arguments]


def environment() -> dict[str, str]:
    """Return the environment of a rank: it finds what this process finds."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}


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


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second", "kind"), [(2, 1, "tied qwen2"), (1, 2, "tinylm")])
def test_a_checkpoint_does_not_depend_on_the_number_of_ranks(
    first: int, second: int, kind: str, tmp_path: Path
) -> None:
    """A step on two ranks and the next on one, or the other way round, is two steps on one: moments and order too."""
    model = "builtin:addition" if kind == "tinylm" else str(write_model(tmp_path / "start", qwen2_config()))
    one = train(tmp_path / "one", ranks=1, steps=2, model=model)
    train(tmp_path / "other", ranks=first, steps=1, model=model)
    resumed = train(tmp_path / "other", ranks=second, steps=1, resume=1, model=model)
    assert_same(last_step(resumed), last_step(one), tolerance=2e-5)


def last_step(report: dict[str, Any]) -> dict[str, Any]:
    """Return a report of the last step alone."""
    return report | {name: report[name][-1] for name in ("losses", "grad_norms", "kl")}


@pytest.mark.slow
def test_all_ranks_find_that_an_update_broke_the_policy(tmp_path: Path) -> None:
    """What is not finite on one of them ends the update of each in the same way, so that they undo it together."""
    request = REQUEST | {"model": "builtin:addition", "folder": str(tmp_path), "lr": 1e30}
    launched(str(RANKS), json.dumps(request), ranks=2)
    kinds = json.loads((tmp_path / "kinds.json").read_text())
    assert len(kinds) == 2
    assert len(set(kinds)) == 1


@pytest.mark.slow
def test_a_rank_that_fails_ends_the_others(tmp_path: Path) -> None:
    """They wait for its part of the weights, and would for ever."""
    request = REQUEST | {"model": "builtin:addition", "folder": str(tmp_path), "failing_rank": 1}
    command = launch(str(RANKS), json.dumps(request), ranks=2)
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert ended.returncode == 1
    assert "this rank has no memory left" in ended.stderr


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices, and torch finds fewer")
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 5e-2)])
def test_two_devices_make_the_update_of_one(dtype: str, tolerance: float, tmp_path: Path) -> None:
    """The same over NCCL, where bfloat16 rounds the residual stream too once weights are divided."""
    model = str(write_model(tmp_path / "start", llama_config()))
    options = {"dtype": dtype, "device": "cuda"}
    one = train(tmp_path / "one", ranks=1, model=model, options=options)
    two = train(tmp_path / "two", ranks=2, model=model, options=options)
    assert_same(two, one, tolerance=tolerance)


@pytest.fixture
def start(server: RunningServer, model: TinyLMPolicy, tmp_path: Path) -> Callable[..., list[str]]:
    """Return a function that makes the arguments of a trainer of a run."""
    model.save(tmp_path / "start.safetensors")

    def arguments(run: str, *, steps: int) -> list[str]:
        names = ["--server", server.grpc_address, "--run", run, "--run-dir", str(tmp_path / run), "--steps", str(steps)]
        more = ["--batch-size", "2", "--optimizer.minibatches", "2", "--optimizer.lr", "1e-3", "--report-s", "0.2"]
        return ["-m", "groupreplay_cli", "train", *names, *more, "--model.path", str(tmp_path / "start.safetensors")]

    return arguments


async def insert(client: AsyncClient, run: str, groups: Sequence[RolloutGroup]) -> None:
    """Insert groups into the table of a run, which is created."""
    config = TrainerSettings(batch_size=2).table_config()
    await client.create_table(run=run, table="rollouts", config=config)
    for group in groups:
        await client.insert(group, run=run, table="rollouts")


@pytest.mark.slow
async def test_a_run_may_change_its_number_of_ranks(
    client: AsyncClient,
    fresh_groups: Callable[[int], list[RolloutGroup]],
    start: Callable[..., list[str]],
    tmp_path: Path,
) -> None:
    """Two ranks take one batch, make one commit and publish once; a single process then goes on with their run."""
    for run in ("one", "two"):
        await insert(client, run, fresh_groups(6))
    await asyncio.to_thread(launched, *start("one", steps=3), ranks=1)
    log = await asyncio.to_thread(launched, *start("two", steps=2), ranks=2)
    assert log.count("all 2 steps are done") == 1
    await asyncio.to_thread(launched, *start("two", steps=3), ranks=1)
    assert (await client.get_policy(run="two")).version == 3
    lines = {}
    for run in ("one", "two"):
        for name in ("train.jsonl", "groups.jsonl"):
            records = [json.loads(line) for line in (tmp_path / run / name).read_text().splitlines()]
            lines[run, name] = [{key: it for key, it in record.items() if key[-2:] != "_s"} for record in records]
    assert lines["two", "groups.jsonl"] == lines["one", "groups.jsonl"]
    for found, expected in zip(lines["two", "train.jsonl"], lines["one", "train.jsonl"], strict=True):
        measured = [key for key, value in expected.items() if isinstance(value, float)]
        assert [found.pop(key) for key in measured] == pytest.approx([expected.pop(key) for key in measured], rel=1e-4)
        assert found == expected
    name = "policy-000003.safetensors"
    one, two = (dict(load_checkpoint(tmp_path / run / "weights" / name).state_dict()) for run in ("one", "two"))
    torch.testing.assert_close(two, one, atol=5e-5, rtol=1e-4)


@pytest.mark.slow
async def test_what_the_first_rank_refuses_ends_all(start: Callable[..., list[str]], tmp_path: Path) -> None:
    """A run folder that is taken is locked for the first rank alone; the others end with its error, and do not wait."""
    command = launch(*start("taken", steps=2), ranks=2)
    with RunFolder(tmp_path / "taken"):
        run = asyncio.to_thread(
            subprocess.run, command, env=environment(), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        ended = await run
    assert ended.returncode == 1
    assert ended.stderr.count("the trainer gives up: another trainer works in") == 2


@pytest.mark.slow
async def test_ranks_that_wait_for_a_batch_end_when_they_are_told(
    client: AsyncClient, start: Callable[..., list[str]], tmp_path: Path
) -> None:
    """SIGTERM to torchrun stops all ranks cleanly, and the lease that was asked for goes back."""
    log = tmp_path / "log"
    with log.open("w") as stderr:
        command = launch(*start("idle", steps=2), ranks=2)
        process = await asyncio.create_subprocess_exec(*command, env=environment(), stderr=stderr)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while "has waited" not in log.read_text():  # noqa: ASYNC110 - another process writes it
                await asyncio.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.wait(), 60)
    finally:
        if process.returncode is None:
            process.kill()
    assert log.read_text().count("stopped after step 0") == 1
    assert (await client.describe_table(run="idle", table="rollouts")).leases == 0


def test_shares_are_balanced_by_tokens_and_hold_every_row_once() -> None:
    """A long rollout goes alone while the short ones go together."""
    lengths = torch.tensor([100, 10, 20, 30, 40, 7])
    shares = split_shares(torch.tensor([5, 4, 3, 2, 1, 0]), lengths, count=2)
    assert [sorted(share.tolist()) for share in shares] == [[0, 5], [1, 2, 3, 4]]
    assert [share.tolist() for share in split_shares(torch.tensor([3]), lengths, count=3)] == [[3], [], []]


def test_a_process_by_itself_is_the_only_rank() -> None:
    """Without torchrun there is no process group, and sums are what they were."""
    with Ranks.join() as ranks:
        assert (ranks.rank, ranks.size, ranks.is_first) == (0, 1, True)
        assert ranks.first(lambda: 7) == 7
        assert (ranks.any(False), ranks.any(True)) == (False, True)
        values = torch.tensor([1.5])
        assert ranks.sum(values) is values
