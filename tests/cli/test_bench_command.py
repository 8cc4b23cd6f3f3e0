"""`groupreplay bench` on a service that somebody else uses too."""

import json
import signal
import subprocess
import sys
from pathlib import Path

from cli.in_process import IN_PROCESS, Run
from processes import ServerProcess, plain_environment, wait_until

from groupreplay import Client, Fill, Rollout, RolloutGroup, TableConfig

pytestmark = IN_PROCESS
QUICK = ("--seconds", "0.3", "--producers", "2", "--batch-size", "4")


def test_bench_measures_and_leaves_nothing(command: Run, server_process: ServerProcess, sync_client: Client) -> None:
    """There is a measurement of each call and shape; the groups are gone afterwards, those of others are not."""
    rollouts = [Rollout(token_ids=[1], behaviour_logprobs=[-0.5], reward=reward) for reward in (0.0, 1.0)]
    group = RolloutGroup.from_rollouts(rollouts, group_id="g", prompt_id="p", prompt_token_ids=[3], policy_version=0)
    sync_client.create_table(run="math", table="train")
    sync_client.insert(group, run="math", table="train")
    ended = command("bench", "--server", server_process.grpc_address, "--shapes", "S", "tiny", "--json", *QUICK)
    assert ended.status == 0, ended.errors
    found = json.loads(ended.output)
    assert [(it["shape"], it["call"].split(",")[0].split(" of")[0], it["clients"]) for it in found] == [
        (shape, call, clients)
        for shape in ("S", "tiny")
        for call, clients in (("insert", 1), ("insert", 2), ("next_batch", 1))
    ]
    for it in found:
        assert min(it["groups"], it["groups_per_s"], it["mb_per_s"]) > 0
    assert found[0]["p50_ms"] <= found[0]["p99_ms"] <= found[0]["p999_ms"]
    left = {(it.run, it.table): it.fresh + it.leased + it.replay for it in sync_client.list_tables()}
    assert left == {("groupreplay-bench", "S"): 0, ("groupreplay-bench", "tiny"): 0, ("math", "train"): 1}


def test_bench_shows_a_table(command: Run, server_process: ServerProcess) -> None:
    """Without --json there is a line for people for each measurement; it can be run again."""
    for _ in range(2):
        ended = command("bench", "--server", server_process.grpc_address, "--shapes", "tiny", *QUICK)
        assert ended.status == 0, ended.errors
        assert [line.split()[0] for line in ended.output.splitlines()] == ["shape", "tiny", "tiny", "tiny"]


def test_bench_keeps_away_from_tables_with_groups(
    command: Run, server_process: ServerProcess, sync_client: Client
) -> None:
    """A run that holds something is somebody's: nothing is measured and nothing removed."""
    assert command("bench", "--server", server_process.grpc_address, "--shapes", "tiny", *QUICK).status == 0
    rollouts = [Rollout(token_ids=[1], behaviour_logprobs=[-0.5], reward=reward) for reward in (0.0, 1.0)]
    group = RolloutGroup.from_rollouts(rollouts, group_id="g", prompt_id="p", prompt_token_ids=[3], policy_version=0)
    sync_client.insert(group, run="groupreplay-bench", table="tiny")
    ended = command("bench", "--server", server_process.grpc_address, "--shapes", "tiny", *QUICK)
    assert ended.status == 2
    assert "holds 1 groups: another benchmark runs" in ended.errors
    assert sync_client.describe_table(run="groupreplay-bench", table="tiny").fresh == 1


def test_bench_that_is_told_to_stop_empties_its_tables(server_process: ServerProcess, sync_client: Client) -> None:
    """SIGTERM in the middle of a measurement ends the clients first, and then the groups go."""
    where = {"run": "groupreplay-bench", "table": "tiny"}
    sync_client.create_table(**where, config=TableConfig(fill=Fill.KEEP, fresh_capacity=2**22))
    bench = subprocess.Popen(
        [
            sys.executable, "-m", "groupreplay_cli", "bench", "--server", server_process.grpc_address, "--shapes",
            "tiny", "--seconds", "600", "--producers", "2",
        ],
        env=plain_environment(),
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    wait_until(lambda: sync_client.describe_table(**where).fresh > 10, "groups come")
    bench.send_signal(signal.SIGTERM)
    _, errors = bench.communicate(timeout=60)
    assert (bench.returncode, errors) == (1, "groupreplay bench: interrupted; its tables are empty again\n")
    assert sync_client.describe_table(**where).fresh == 0


def test_bench_logs_in(command: Run, redis_url: str, clean_redis: object, tmp_path: Path) -> None:
    """Its client processes show the token too."""
    token_file = tmp_path / "admin.token"
    token_file.write_text("0123456789abcdef" * 4)
    service = ServerProcess(tmp_path, redis_url, "--admin-token-file", str(token_file))
    service.start()
    try:
        arguments = ("bench", "--server", service.grpc_address, "--shapes", "tiny", *QUICK)
        ended = command(*arguments, "--token-file", token_file)
        assert ended.status == 0, ended.errors
        assert "shows no token" in command(*arguments).errors
    finally:
        service.terminate()


def test_bench_refuses_what_it_does_not_know(command: Run) -> None:
    """A wrong shape or number ends with status 2 before anything is done."""
    ended = command("bench", "--shapes", "XL")
    assert ended.status == 2
    assert "--shapes XL: there are S M D L A tiny" in ended.errors
    assert command("bench", "--seconds", "0").status == 2


def test_bench_without_a_service_says_so(command: Run) -> None:
    """A service that does not answer is an error of a line, with status 1."""
    ended = command("bench", "--server", "127.0.0.1:1", "--timeout-s", "0.5", "--shapes", "tiny")
    assert ended.status == 1
    assert "127.0.0.1:1" in ended.errors
