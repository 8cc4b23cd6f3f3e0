"""`groupreplay diagnose`."""

import json
import re

from cli.test_commands import run
from processes import ServerProcess
from samples import effective

from groupreplay import Client, TableConfig


def test_a_table_that_starves_says_why(server_process: ServerProcess, sync_client: Client) -> None:
    """In words, with status 3, naming what is missing and who produces."""
    sync_client.create_table(run="math", table="train", config=TableConfig())
    for group in effective("a", producer_id="gpu-1"):
        sync_client.insert(group, run="math", table="train")
    ran = run("diagnose", "--server", server_process.grpc_address, "--run", "math", "--table", "train")
    assert ran.returncode == 3, ran.stderr
    assert ran.stdout.splitlines()[0] == "table math/train, policy version 0: no batch is ready"
    assert "PROBLEM  table math/train needs 63 more fresh groups for a batch of 64" in ran.stdout
    assert re.search(r"alive  gpu-1: heard \d+ s ago, 1 groups, 1 effective, 0 refused", ran.stdout)


def test_a_ready_batch_is_status_0_and_json_is_for_programs(server_process: ServerProcess, sync_client: Client) -> None:
    """With --json everything that the service said is one object."""
    sync_client.create_table(run="math", table="train", config=TableConfig())
    for group in effective("a"):
        sync_client.insert(group, run="math", table="train")
    flags = [
        "--server",
        server_process.grpc_address,
        "--run",
        "math",
        "--table",
        "train",
        "--batch-size",
        "1",
        "--json",
    ]
    ran = run("diagnose", *flags)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert (found["ready"], found["table"]["fresh"], found["findings"][-1]["severity"]) == (True, 1, "info")


def test_a_service_that_is_not_there_is_status_1() -> None:
    """One line, without a traceback."""
    ran = run("diagnose", "--server", "127.0.0.1:1", "--timeout-s", "0.5")
    assert ran.returncode == 1
    assert ran.stderr.startswith("groupreplay diagnose: no answer from 127.0.0.1:1")
