"""`groupreplay snapshot`, `restore` and `export`."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from cli.in_process import IN_PROCESS, Run
from processes import ServerProcess, free_port, plain_environment
from samples import effective, ineffective, make_group

from groupreplay import Client, FinishReason, GroupFeedback, RolloutGroup, TableConfig
from groupreplay_admin import parquet
from groupreplay_admin.progress import ProgressLine, size

pytestmark = IN_PROCESS


def groups() -> list[RolloutGroup]:
    """Return groups with everything that has a column, and with nothing that may be left out."""
    return [
        make_group(
            "rich",
            rewards=(0.0, 0.5, 1.0),
            tokens=4,
            task="sums",
            producer_id="node-1",
            version=0,
            loss_mask=np.arange(12) % 3 > 0,
            finish_reasons=(FinishReason.STOP, FinishReason.LENGTH, FinishReason.ABORT),
            prompt_text="2 + 2 = ",
            response_texts=("4", "", "vier ß"),
            tags={"z": "last", "a": "first"},
            priority=2.5,
            created_at_ms=1_700_000_000_123,
        ),
        make_group("plain", created_at_ms=0),
        *ineffective("dropped", task="easy", created_at_ms=5),
        *effective("leased", created_at_ms=6),
        *effective("fresh", created_at_ms=7),
    ]


@pytest.fixture
def table(sync_client: Client) -> dict[str, Any]:
    """A table with groups in every place."""
    names: dict[str, Any] = {"run": "math", "table": "train"}
    sync_client.create_table(config=TableConfig(), **names)
    for group in groups():
        sync_client.insert(group, **names)
    batch = sync_client.next_batch(batch_size=2, **names)
    feedback = [GroupFeedback(group_id="plain", priority=7.0)]
    sync_client.commit(lease_id=batch.lease_id, step=1, feedback=feedback, **names)
    sync_client.next_batch(batch_size=2, **names)
    return names


PLACES = {"rich": "replay", "plain": "replay", "dropped": "leased", "leased": "leased", "fresh": "fresh"}
USES = {"rich": 1, "plain": 2, "dropped": 0, "leased": 1, "fresh": 0}


def test_a_table_goes_to_a_file_and_comes_back(
    command: Run, table: dict[str, Any], sync_client: Client, server_process: ServerProcess, tmp_path: Path
) -> None:
    """Two commands, each with a line that says what it did."""
    path, server = tmp_path / "train.snapshot", f"--server={server_process.grpc_address}"
    kept = command("snapshot", "math", "train", "--output", path, server)
    assert (kept.status, kept.errors) == (0, "0")
    assert f"{path}: 1 fresh, 2 leased and 2 replay groups, " in kept.output
    assert kept.output.endswith("of payload, policy version 0\n")
    made = command("restore", path, "--table", "again", server)
    assert made.status == 0
    assert made.output.startswith("math/again: 3 fresh, 0 leased and 2 replay groups, ")
    assert sync_client.describe_table(run="math", table="again").replay == 2
    elsewhere = command("restore", path, "--run", "other", server)
    assert elsewhere.output.startswith("other/train: 3 fresh")


def expected_rows() -> list[dict[str, Any]]:
    """Return the rows of the table, as Python values."""
    found = []
    for group in sorted(groups(), key=lambda each: list(PLACES.values()).index(PLACES[each.group_id])):
        kept = group.group_id != "dropped"
        for index, tokens in enumerate(group.response_slices()):
            mask = group.loss_mask[tokens].tolist() if group.loss_mask is not None else [True] * 3
            found.append(
                {
                    "group_id": group.group_id,
                    "prompt_id": group.prompt_id,
                    "task": group.task,
                    "producer_id": group.producer_id,
                    "place": PLACES[group.group_id],
                    "policy_version_min": group.policy_version_min,
                    "policy_version_max": group.policy_version_max,
                    "rollout": index,
                    "reward": float(group.rewards[index]),
                    "response_length": int(group.response_lengths[index]),
                    "finish_reason": group.finish_reasons[index].value if group.finish_reasons else None,
                    "prompt_token_ids": group.prompt_token_ids.tolist() if kept else None,
                    "response_token_ids": group.response_token_ids[tokens].tolist() if kept else None,
                    "behaviour_logprobs": group.behaviour_logprobs[tokens].tolist() if kept else None,
                    "loss_mask": mask if kept else None,
                    "prompt_text": group.prompt_text,
                    "response_text": group.response_texts[index] if group.response_texts else None,
                    "priority": {"rich": 2.5, "plain": 7.0}.get(group.group_id, 1.0),
                    "times_sampled": USES[group.group_id],
                    "tags": sorted(group.tags.items()),
                    "created_at": group.created_at_ms or None,
                }
            )
    return found


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a Parquet file, times in milliseconds."""
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    for row in rows:
        row["created_at"] = row["created_at"] and round(row["created_at"].timestamp() * 1000)
    return rows


def by_rollout(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort rows by group and rollout."""
    return sorted(rows, key=lambda row: (row["group_id"], row["rollout"]))


@pytest.mark.parametrize("source", ["table", "snapshot"])
def test_an_export_has_every_value_of_every_rollout(
    command: Run, table: dict[str, Any], server_process: ServerProcess, tmp_path: Path, source: str
) -> None:
    """From the service or from a file; nothing but the output is left in its folder."""
    path, kept, server = tmp_path / "out" / "t.parquet", tmp_path / "t", f"--server={server_process.grpc_address}"
    path.parent.mkdir()
    if source == "snapshot":
        assert command("snapshot", "math", "train", "--output", kept, server).status == 0
        ran = command("export", "--from-snapshot", kept, "--output", path)
    else:
        ran = command("export", "math", "train", "--output", path, server)
    assert (ran.status, ran.output) == (0, f"{path}: 11 rollouts\n")
    assert by_rollout(rows_of(path)) == by_rollout(expected_rows())
    assert pq.read_schema(path).metadata[b"groupreplay.table"] == b"train"
    assert list(path.parent.iterdir()) == [path]


def test_a_long_export_is_written_in_row_groups(
    command: Run,
    table: dict[str, Any],
    server_process: ServerProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No more than one of them is in memory; together they are the table."""
    monkeypatch.setattr(parquet, "ROW_GROUP_ROWS", 3)
    path = tmp_path / "t.parquet"
    ran = command("export", "math", "train", "--output", path, "--server", server_process.grpc_address)
    assert ran.status == 0
    assert pq.ParquetFile(path).num_row_groups == 3
    assert by_rollout(rows_of(path)) == by_rollout(expected_rows())


WRONG: list[tuple[list[str], str]] = [
    (
        ["snapshot", "math", "nothing", "--output", "OUT"],
        "snapshot: there is no table math/nothing; create it first",
    ),
    (["snapshot", "math", "train", "--output", "OUT/x/y"], "snapshot: [Errno 2] No such file or directory"),
    (["restore", "SNAPSHOT"], "restore: table math/train exists, and a restore makes a new one"),
    (["restore", "OUT"], "restore: [Errno 2] No such file or directory"),
    (["restore", "PLAIN"], "PLAIN is not a snapshot: it begins with"),
    (["restore", "SNAPSHOT", "--table", "a b"], "table 'a b' is not 1 to 128 characters"),
    (["export", "math", "nothing", "--output", "OUT"], "export: there is no table math/nothing"),
    (["export", "--from-snapshot", "PLAIN", "--output", "OUT"], "PLAIN is not a snapshot"),
    (["export", "--output", "OUT"], "name RUN and TABLE, or a file with --from-snapshot"),
    (["export", "math", "train", "--from-snapshot", "SNAPSHOT", "--output", "OUT"], "one of the two"),
]


def test_what_is_wrong_is_said_in_one_line(
    command: Run, table: dict[str, Any], server_process: ServerProcess, tmp_path: Path
) -> None:
    """No traceback, a status that is not 0, and no file."""
    server = f"--server={server_process.grpc_address}"
    command("snapshot", "math", "train", "--output", tmp_path / "SNAPSHOT", server)
    (tmp_path / "PLAIN").write_text("I am no snapshot")
    before = sorted(tmp_path.iterdir())
    for arguments, message in WRONG:
        words = [str(tmp_path / word) if word.startswith(("OUT", "SNAPSHOT", "PLAIN")) else word for word in arguments]
        ran = command(*words, server)
        assert ran.status != 0, arguments
        assert message in " ".join(ran.errors.split())
        assert "Traceback" not in ran.errors
        assert sorted(tmp_path.iterdir()) == before


def test_a_service_that_is_not_there_is_said(command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within seconds, not after the time that a transfer may take."""
    monkeypatch.setattr("groupreplay_admin.keeping.CONNECT_S", 0.2)
    address = f"127.0.0.1:{free_port()}"
    ran = command("snapshot", "math", "train", "--output", tmp_path / "t", "--server", address)
    assert ran.status == 1
    assert f"no answer from {address}" in ran.errors


def test_an_export_without_pyarrow_says_what_to_install() -> None:
    """The other commands do without it."""
    program = (
        "import sys; sys.modules['pyarrow'] = None; sys.argv[0] = 'groupreplay'\n"
        "from groupreplay_cli import main; main()"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, "export", "math", "train", "--output", "x"],
        capture_output=True, text=True, check=False, env=plain_environment(),
    )  # fmt: skip
    assert ran.returncode == 1
    assert "pip install 'groupreplay[export]'" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("name", ["snapshot", "restore", "export"])
def test_help_tells_what_it_does_and_every_setting(command: Run, name: str) -> None:
    """--help is enough to use it."""
    ran = command(name, "--help")
    assert ran.status == 0
    for word in ("--server", "--timeout-s", f"GROUPREPLAY_{name.upper()}_SERVER"):
        assert word in ran.output
    assert f"GROUPREPLAY_{name.upper()}_FILE" not in ran.output


def test_progress_is_one_line_of_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rewritten in place, with its end; nothing at all where errors go to a file."""
    for is_terminal, expected in ((True, "\rmath/train:  50 % of 2.0 MB\rmath/train: 100 % of 2.0 MB\n"), (False, "")):
        monkeypatch.setattr(sys.stderr, "isatty", lambda answer=is_terminal: answer, raising=False)
        with ProgressLine("math/train") as progress:
            for done in (1_000_000, 1_500_000, 2_000_000):
                progress(done, 2_000_000)
        assert capsys.readouterr().err == expected


def test_sizes_are_for_people() -> None:
    """Four digits at most."""
    assert [size(count) for count in (0, 999, 1000, 25_300_000, 3 * 10**9)] == [
        "0 bytes", "999 bytes", "1.0 kB", "25.3 MB", "3.0 GB",
    ]  # fmt: skip
