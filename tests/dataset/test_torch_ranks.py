"""A trainer of several ranks is one trainer to the service."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dataset.conftest import Bench
from samples import ids

WORLD_SIZE = 2
Line = dict[str, Any]


@pytest.fixture
def lines(bench: Bench, tmp_path: Path) -> list[list[Line]]:
    """Run two ranks on a table of 26 groups; return what each of them printed."""
    bench.insert(26)
    program = Path(__file__).with_name("rank.py")
    ranks = [
        subprocess.Popen(
            [sys.executable, program, bench.address, bench.run, tmp_path, str(rank), str(WORLD_SIZE)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(WORLD_SIZE)
    ]
    try:
        printed = [rank.communicate(timeout=90)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * WORLD_SIZE
    return [[json.loads(line) for line in text.splitlines()] for text in printed]


def only(lines: Sequence[Line], what: str) -> list[Line]:
    """Return the lines of one kind."""
    return [line for line in lines if line["what"] == what]


def test_ranks_divide_every_batch_and_commit_it_once(bench: Bench, lines: list[list[Line]]) -> None:
    """Each reads whole groups of its own, about as many tokens as the other, and knows of all; errors reach both."""
    both = [only(rank, "trained") for rank in lines]
    assert [[line["step"] for line in rank] for rank in both] == [[1, 2, 3, 4]] * WORLD_SIZE
    for first, second in zip(*both, strict=True):
        assert first["all"] == second["all"]
        assert sorted(first["mine"] + second["mine"]) == first["all"]
        assert min(len(first["mine"]), len(second["mine"])) >= 1
        assert abs(first["tokens"] - second["tokens"]) <= 12  # a group's, at most
        assert first["tokens"] + second["tokens"] == first["response_tokens"] + 5 * 2 * 2
        assert first["repeated"] is second["repeated"] is False
    assert [name for line in both[0] for name in line["all"]] == [f"g{index:03d}" for index in range(20)]
    _check_early_end([only(rank, "left") for rank in lines])
    _check_small_batches([only(rank, "small") for rank in lines])
    for rank in lines:
        assert "has 0 of the 1 fresh groups" in only(rank, "error")[0]["text"]
        assert "num_workers 1 with other ranks" in only(rank, "refused")[0]["text"]
    table = bench.describe()
    assert (table.fresh, table.leases, table.replay) == (0, 0, 26)
    assert table.counters["leases_committed"] == 4 + 6
    assert table.counters["leases_released"] == 1  # the batch ahead of it never came: one group was left
    _check_feedback(bench)


def _check_early_end(left: list[list[Line]]) -> None:
    assert [line["step"] for rank in left for line in rank] == [5, 5]
    assert sorted(left[0][0]["mine"] + left[1][0]["mine"]) == [f"g{index:03d}" for index in range(20, 25)]


def _check_small_batches(small: list[list[Line]]) -> None:
    """Batches of one group: it falls to one rank, and the other has none."""
    assert [[line["step"] for line in rank] for rank in small] == [[5, 6, 7, 8, 9, 10]] * WORLD_SIZE
    for first, second in zip(*small, strict=True):
        assert (first["mine"], second["mine"]) == (first["all"], [])
        assert (first["rows"], second["rows"]) == (True, False)


def _check_feedback(bench: Bench) -> None:
    """Both ranks said that their groups of the first four steps are 0.25 away: a limit below shuts out all 20."""
    config = replace(bench.describe().config, max_kl=0.1)
    bench.client.update_table(**bench.names, config=config)
    bench.insert(26, rewards=(1.0, 1.0))
    batch = bench.client.next_batch(**bench.names, batch_size=26)
    assert sorted(ids(batch)) == [f"g{index:03d}" for index in range(20, 26)]
