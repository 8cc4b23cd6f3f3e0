"""`groupreplay token`, and how every command logs in."""

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli.in_process import IN_PROCESS, Run
from processes import ServerProcess

pytestmark = IN_PROCESS
ADMIN_TOKEN = "0123456789abcdef" * 4


@pytest.fixture
def admin_file(tmp_path: Path) -> Path:
    """The file of the admin's token."""
    file = tmp_path / "admin.token"
    file.write_text(ADMIN_TOKEN + "\n")
    return file


@pytest.fixture
def server(redis_url: str, clean_redis: object, tmp_path: Path, admin_file: Path) -> Iterator[str]:
    """Address of a service that asks for tokens."""
    process = ServerProcess(tmp_path, redis_url, "--admin-token-file", str(admin_file))
    process.start()
    yield process.grpc_address
    process.terminate()


def test_a_token_is_made_used_listed_and_revoked(
    command: Run, server: str, admin_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token alone goes to standard output, so that a shell can keep it in a variable."""
    as_admin = ["--server", server, "--token-file", admin_file]
    made = command(
        "token", "create", "trainer-1", "--scope", "consumer", "--run", "math", "--expires-in", "30d", *as_admin
    )
    assert made.status == 0, made.errors
    secret = made.output.strip()
    assert secret.startswith("grt.trainer-1.")
    assert "made token trainer-1: consumer, run math, ends in 30d" in made.errors
    monkeypatch.setenv("GROUPREPLAY_TOKEN", secret)
    assert command("tables", "--server", server).status == 1  # there is no run math yet
    monkeypatch.delenv("GROUPREPLAY_TOKEN")
    listed = command("token", "list", *as_admin)
    assert listed.output.splitlines()[1].split()[:3] == ["trainer-1", "consumer", "math"]
    assert secret.rpartition(".")[2] not in listed.output
    revoked = command("token", "revoke", "trainer-1", *as_admin, "--json")
    assert json.loads(revoked.output)["name"] == "trainer-1"
    assert command("token", "list", *as_admin, "--json").output.strip() == "[]"
    refused = command("tables", "--server", server, "--token", secret)
    assert refused.status == 1
    assert "token 'trainer-1' is not known" in refused.errors


def test_a_secret_can_go_to_a_file_that_only_its_owner_reads(
    command: Run, server: str, admin_file: Path, tmp_path: Path
) -> None:
    """And not to the terminal; a file that is there is not overwritten, and then no token is made."""
    as_admin = ["--server", server, "--token-file", admin_file]
    file = tmp_path / "generator.token"
    made = command("token", "create", "g", "--scope", "producer", "--secret-file", file, "--json", *as_admin)
    assert json.loads(made.output)["secret_file"] == str(file)
    assert file.read_text().strip() not in made.output + made.errors
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert command("tables", "--server", server, "--token-file", file).status == 0
    again = command("token", "create", "h", "--scope", "producer", "--secret-file", file, *as_admin)
    assert (again.status, "File exists" in again.errors) == (1, True)
    names = [it["name"] for it in json.loads(command("token", "list", "--json", *as_admin).output)]
    assert names == ["g"]
    taken = command("token", "create", "g", "--scope", "admin", "--secret-file", tmp_path / "other", *as_admin)
    assert (taken.status, "there is a token 'g' already" in taken.errors) == (1, True)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["create", "x"], "needs --scope producer, consumer or admin"),
        (["create"], "takes the name of a token"),
        (["list", "x"], "takes no name"),
        (["create", "a/b", "--scope", "admin"], "token name 'a/b' is not 1 to 128 characters"),
        (["create", "x", "--scope", "admin", "--expires-in", "soon"], "'soon' is no number with s, m, h or d"),
        (["create", "x", "--scope", "everything"], "everything"),
        (["list", "--token", "a", "--token-file", "b"], "there are a token and a token_file"),
        (["list", "--cert-file", "c"], "cert_file needs its key_file"),
    ],
)
def test_a_wrong_call_is_status_2(command: Run, words: list[str], message: str) -> None:
    """Before anything is connected."""
    ended = command("token", *words, "--server", "127.0.0.1:1", "--timeout-s", "0.2")
    assert (ended.status, message in ended.output + ended.errors) == (2, True), ended


def test_the_variable_of_one_command_beats_that_of_all(
    command: Run, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GROUPREPLAY_TOKEN is for all commands; other variables without a command are still refused."""
    monkeypatch.setenv("GROUPREPLAY_TOKEN", "grt.nobody.x")
    assert "token 'nobody' is not known" in command("tables", "--server", server).errors
    monkeypatch.setenv("GROUPREPLAY_TABLES_TOKEN", ADMIN_TOKEN)
    assert command("tables", "--server", server).status == 0
    assert command("policy", "--server", server).status == 1
    monkeypatch.setenv("GROUPREPLAY_TOKEN_SCOPE", "admin")  # a setting of the command `token`
    assert command("tables", "--server", server).status == 0
    monkeypatch.setenv("GROUPREPLAY_SERVER", server)
    assert command("tables").status == 2


def test_an_unreadable_token_file_is_status_1(command: Run) -> None:
    """With its name."""
    ended = command("tables", "--token-file", "/no/such.token")
    assert (ended.status, "/no/such.token" in ended.errors) == (1, True)
