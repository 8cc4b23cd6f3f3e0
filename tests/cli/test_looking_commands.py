"""`groupreplay tables`, `groups` and `policy`."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli.in_process import IN_PROCESS, Run
from processes import ServerProcess, plain_environment
from samples import effective, ineffective, make_group

from groupreplay import Client, FinishReason, GroupFeedback, Policy, RolloutGroup, TableConfig
from groupreplay_admin.counters import MEANINGS
from groupreplay_admin.output import age, short

pytestmark = IN_PROCESS
NAMES: dict[str, Any] = {"run": "math", "table": "train"}


@pytest.fixture
def where(sync_client: Client, server_process: ServerProcess) -> list[str]:
    """Flags that name a table with a and b in replay, c leased, `rich` and x fresh; policy version 1."""
    sync_client.create_table(config=TableConfig(), **NAMES)
    sync_client.create_table(run="math", table="empty")
    for group in effective("a", "b", task="sums"):
        sync_client.insert(group, **NAMES)
    batch = sync_client.next_batch(batch_size=2, **NAMES)
    sync_client.commit(lease_id=batch.lease_id, step=1, feedback=[GroupFeedback(group_id="a", kl=0.5)], **NAMES)
    sync_client.advance_policy(Policy(run="math", version=1, weights_uri="file:///w/1", label="one"))
    for group in (*effective("c", version=1), rich_group(), *ineffective("x", prompt_text="1 + 1")):
        sync_client.insert(group, **NAMES)
        if group.group_id == "c":
            sync_client.next_batch(batch_size=1, lease_id="step-2", **NAMES)
    return ["--server", server_process.grpc_address]


def rich_group() -> RolloutGroup:
    """Return a group with all that can be shown, and with a text that would colour a terminal."""
    return make_group(
        "rich",
        rewards=(0.0, 0.5, 1.0),
        tokens=4,
        task="sums",
        producer_id="gpu-1",
        version=0,
        policy_version_max=1,
        version_spans=np.array([[0, 0], [6, 1]], np.int32),
        loss_mask=np.arange(12) != 4,
        finish_reasons=(FinishReason.STOP, FinishReason.LENGTH, FinishReason.ABORT),
        prompt_text="2 + 2 = ",
        response_texts=("4\x1b[31m", "", "vier ß" * 300),
        tags={"level": "3"},
    )


def in_table(*more: str) -> list[str]:
    """Return the flags of the table, and more."""
    return ["--run", "math", "--table", "train", *more]


def test_tables_are_listed_and_one_is_shown_with_what_its_limits_and_counters_mean(
    command: Run, where: list[str]
) -> None:
    """All tables, those of one run, or all of one table."""
    listed = command("tables", *where)
    assert listed.status == 0
    assert re.search(r"^math/train +1 +2 +1 +1 +2 ", listed.output, re.MULTILINE)
    assert "math/empty" in listed.output
    shown = command("tables", "math", "train", *where).output
    assert "2 fresh (1 effective), 1 leased (1 leases), 2 in replay of policy versions 0 to 0" in shown
    assert re.search(r"^replay_capacity +1024 +Replay groups kept; beyond", shown, re.MULTILINE)
    assert re.search(r"^max_staleness +unlimited ", shown, re.MULTILINE)
    assert re.search(r"^inserted +5 +groups accepted", shown, re.MULTILINE)
    assert re.search(r"^inserted_effective:sums +3", shown, re.MULTILINE)


def test_tables_as_json(command: Run, where: list[str]) -> None:
    """A list, or one object."""
    listed = json.loads(command("tables", "math", "--json", *where).output)
    assert [(it["run"], it["table"], it["fresh"]) for it in listed] == [("math", "empty", 0), ("math", "train", 2)]
    one = json.loads(command("tables", "math", "train", "--json", *where).output)
    assert (one["config"]["fill"], one["counters"]["inserted"], one["replay_version_max"]) == ("replay", 5, 0)


def test_every_counter_has_a_meaning() -> None:
    """Those that the reference lists, and no others."""
    page = (Path(__file__).resolve().parents[2] / "docs/reference/counters.md").read_text()
    rows = re.findall(r"^\| (`.*?`) \| ", page, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`([^`]+)`", row)} == MEANINGS.keys()


def test_groups_are_listed_with_filters_and_in_pages(command: Run, where: list[str]) -> None:
    """A line for each group, and where to go on."""
    everything = command("groups", *in_table(*where))
    assert everything.status == 0
    assert [line.split()[0] for line in everything.output.splitlines()[1:]] == ["x", "rich", "c", "b", "a"]
    assert re.search(r"^rich +fresh +sums +\ds +0-1 +1 +0 +3: 0.5 in 0..1 +12 ", everything.output, re.MULTILINE)
    assert re.search(r"^x .* not kept$", everything.output, re.MULTILINE)
    first = command("groups", "list", "--limit", "2", *in_table(*where)).output
    cursor = first.splitlines()[-1].removeprefix("more: --cursor ")
    rest = command("groups", "--cursor", cursor, *in_table(*where)).output
    assert [line.split()[0] for line in rest.splitlines()[1:]] == ["c", "b", "a"]
    assert "no groups" in command("groups", "--task", "chess", *in_table(*where)).output


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--state", "replay"], ["b", "a"]),
        (["--task", "sums", "--state", "fresh"], ["rich"]),
        (["--no-effective"], ["x"]),
        (["--policy-version-from", "1"], ["c"]),
        (["--prompt-id", "prompt-of-b"], ["b"]),
    ],
)
def test_listed_groups_as_json(command: Run, where: list[str], flags: list[str], expected: list[str]) -> None:
    """One object with the groups and where to go on."""
    found = json.loads(command("groups", "--json", *flags, *in_table(*where)).output)
    assert [group["group_id"] for group in found["groups"]] == expected
    assert found["next_cursor"] == ""


def test_one_group_is_shown_with_each_response_and_its_reward(command: Run, where: list[str]) -> None:
    """Lengths, finish reasons, versions and log probabilities of each; nothing in a text steers the terminal."""
    shown = command("groups", "show", "rich", *in_table(*where)).output
    assert "rich  fresh, staleness 1, delivered 0 times" in shown
    assert "producer gpu-1, policy versions 0 to 1" in shown
    assert "3 rollouts, reward mean 0.5, std 0.4082" in shown
    assert "tags level=3" in shown
    assert "  2 + 2 = " in shown
    assert "response 0  reward 0  4 tokens, stop, versions 0 to 0, logprob mean -0.500, min -0.500\n" in shown
    second = "4 tokens, length, versions 0 to 1, logprob mean -0.500, min -0.500, 3 trained on\n  (empty)"
    assert f"response 1  reward 0.5  {second}" in shown
    assert "\n  4\\x1b[31m" in shown
    assert "\x1b" not in shown
    assert "(1800 characters; --full)" in shown
    assert "(1800 characters; --full)" not in command("groups", "show", "rich", "--full", *in_table(*where)).output


def test_a_group_without_payload_is_shown_as_far_as_it_is_known(command: Run, where: list[str]) -> None:
    """Its rewards are there, its tokens are not."""
    shown = command("groups", "show", "x", *in_table(*where)).output
    assert "(no payload kept: the group has no reward variance; keep_ineffective_payload keeps such ones)" in shown
    assert "response 1  reward 1  3 tokens\n" in shown


def test_one_group_as_json(command: Run, where: list[str]) -> None:
    """With its tokens and texts."""
    found = json.loads(command("groups", "show", "rich", "--json", *in_table(*where)).output)
    assert (found["state"], found["prompt_text"], found["prompt_token_ids"]) == ("fresh", "2 + 2 = ", [1, 2])
    middle = found["rollouts"][1]
    assert (middle["reward"], middle["token_ids"], middle["trained_tokens"]) == (0.5, [4, 5, 6, 7], 3)
    assert (middle["policy_version_min"], middle["policy_version_max"], middle["text"]) == (0, 1, "")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["groups", "show", "nobody", *in_table()], 1, "table math/train holds no group nobody"),
        (["groups", "show", *in_table()], 2, "`groups show GROUP_ID` shows one group"),
        (["groups", "list", "rich", *in_table()], 2, "`groups list` takes no name"),
        (["groups", "--limit", "0"], 2, "limit 0 must be at least 1"),
        (["groups", "--run", "math", "--table", "other"], 1, "there is no table math/other"),
        (["groups", "--state", "gone"], 2, ""),
        (["groups", "--colour", "red"], 2, ""),
        (["tables", "nowhere"], 1, "there is no run nowhere"),
        (["tables", "a/b"], 2, "run 'a/b' is not 1 to 128 characters"),
        (["policy", "--run", "nowhere"], 1, "there is no run nowhere"),
    ],
)
def test_what_cannot_be_shown_says_why(
    command: Run, where: list[str], arguments: list[str], status: int, message: str
) -> None:
    """Status 1 where the service has no such thing, 2 where the call is wrong; a line, no traceback."""
    ended = command(*arguments, *where)
    assert ended.status == status
    assert message in ended.errors
    assert "Traceback" not in ended.errors
    assert ended.output == ""


def test_the_policy_of_a_run_is_shown(command: Run, where: list[str]) -> None:
    """Its version, label and weights."""
    shown = command("policy", "--run", "math", *where).output
    assert re.fullmatch(r"math: policy version 1, published \ds ago, label one, weights file:///w/1\n", shown)
    found = json.loads(command("policy", "show", "--run", "math", "--json", *where).output)
    assert (found["version"], found["label"], found["rewinds"]) == (1, "one", 0)


def test_a_watched_policy_is_printed_at_each_change(where: list[str], sync_client: Client) -> None:
    """A line for each, until Ctrl-C, which is no failure."""
    watching = subprocess.Popen(
        [sys.executable, "-m", "groupreplay_cli", "policy", "watch", "--run", "math", "--json", *where],
        stdout=subprocess.PIPE,
        text=True,
        env=plain_environment(),
    )
    assert watching.stdout is not None
    assert json.loads(watching.stdout.readline())["version"] == 1
    sync_client.advance_policy(Policy(run="math", version=2))
    assert json.loads(watching.stdout.readline())["version"] == 2
    watching.send_signal(signal.SIGINT)
    assert watching.wait(timeout=20) == 0
    watching.stdout.close()


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0, "0"), (7, "7"), (0.25, "0.25"), (1.0 / 3, "0.33"), (999, "999"), (1000, "1.0k"), (99_949, "99.9k"),
     (123_456, "123k"), (999_600, "1.0M"), (4.5e9, "4.5G")],
)  # fmt: skip
def test_numbers_fit_narrow_columns(number: float, shown: str) -> None:
    """At most five characters."""
    assert short(number) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(-1, "0s"), (119, "119s"), (120, "2m"), (7200, "2h"), (9e5, "10d")])
def test_ages_fit_narrow_columns(seconds: float, shown: str) -> None:
    """Also those of clocks that disagree."""
    assert age(seconds) == shown


def test_results_of_keeping_commands_as_json(command: Run, where: list[str], tmp_path: Path) -> None:
    """The file, and what it holds."""
    path: Any = tmp_path / "train.snapshot"
    kept = json.loads(command("snapshot", "math", "train", "--output", path, "--json", *where).output)
    assert (kept["file"], kept["table"]["replay"]) == (str(path), 2)
    made = json.loads(command("restore", path, "--table", "again", "--json", *where).output)
    assert (made["file"], made["table"]["table"]) == (str(path), "again")
    rows = tmp_path / "rows.parquet"
    exported = json.loads(command("export", "--from-snapshot", path, "--output", rows, "--json").output)
    assert exported == {"file": str(rows), "rollouts": 2 * 4 + 3}
