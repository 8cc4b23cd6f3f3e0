"""`groupreplay serve`."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from processes import plain_environment

from groupreplay_cli import main

# The command line is what the test sets as sys.argv.
pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    status: int
    output: str


Serve = Callable[..., Ended]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Serve:
    """Run `groupreplay serve` in this process; it is expected to end by itself."""
    for name in set(os.environ) - plain_environment().keys():
        monkeypatch.delenv(name)

    def run(*arguments: str, **environment: str) -> Ended:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        ports = ["--grpc-listen=127.0.0.1:0", "--http-listen=127.0.0.1:0"]
        named = [port for port in ports if port.partition("=")[0] not in arguments and not environment]
        data_dir = f"--data-dir={tmp_path / 'data'}"
        monkeypatch.setattr(sys, "argv", ["groupreplay", "serve", data_dir, *named, *arguments])
        with pytest.raises(SystemExit) as raised:
            main()
        captured = capsys.readouterr()
        code = raised.value.code
        return Ended(code if isinstance(code, int) else 1, captured.out + captured.err)

    return run


def test_help_lists_every_setting_with_its_meaning(serve: Serve) -> None:
    """--help is enough to run it."""
    ran = serve("--help")
    assert ran.status == 0
    for text in ("--grpc-listen", "--http-listen", "--redis-url", "--data-dir", "--redis-appendfsync", "--drain-s",
                 "--ready-file", "--log-level", "GROUPREPLAY_SERVE_REDIS_URL", "127.0.0.1:50051"):  # fmt: skip
        assert text in ran.output


def test_a_grpc_port_in_use_is_said_in_one_line(tmp_path: Path) -> None:
    """Exit status 1, the address, and the flag that changes it; the private Redis is stopped again."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        command = [
            sys.executable,
            "-m",
            "groupreplay_cli",
            "serve",
            "--data-dir",
            str(tmp_path),
            "--grpc-listen",
            address,
        ]
        ran = subprocess.run(command, env=plain_environment(), capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 1
    message = f"groupreplay serve: gRPC cannot listen on {address}: another process has the port"
    assert message in ran.stderr
    assert "--grpc-listen" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert "ready to exit, bye bye" in (tmp_path / "redis.log").read_text()


def test_an_http_port_in_use_is_said_in_one_line(serve: Serve) -> None:
    """The same, with its own flag."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        ran = serve("--http-listen", address)
    assert ran.status == 1
    assert f"HTTP cannot listen on {address}: Address already in use" in ran.output
    assert "--http-listen" in ran.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--http-listen", "nonsense"), "HTTP cannot listen on nonsense: it is not host:port"),
        (("--http-listen", "127.0.0.1:99999"), "HTTP cannot listen on 127.0.0.1:99999: it is not host:port"),
        (("--grpc-listen", "nonsense:port"), "gRPC cannot listen on nonsense:port"),
        (
            ("--redis-url", "http://localhost"),
            "the URL of Redis cannot be used: http://localhost does not start with redis://",
        ),
        (("--drain-s", "soon"), "soon"),
        (("--log-level", "loud"), "loud"),
        (("--no-such-flag",), "no-such-flag"),
    ],
)
def test_a_wrong_setting_is_named(serve: Serve, arguments: tuple[str, ...], message: str) -> None:
    """No traceback: the value that is wrong, and a status that is not 0."""
    ran = serve(*arguments)
    assert ran.status != 0
    assert message in ran.output


def test_settings_come_from_the_environment_too(serve: Serve) -> None:
    """GROUPREPLAY_SERVE_ and the flag's name."""
    ran = serve("--grpc-listen=127.0.0.1:0", GROUPREPLAY_SERVE_HTTP_LISTEN="from-the-environment")
    assert "HTTP cannot listen on from-the-environment" in ran.output


def test_a_misspelt_variable_is_refused(serve: Serve, tmp_path: Path) -> None:
    """It would be ignored silently otherwise; those of other subcommands are not this one's business."""
    ran = serve(GROUPREPLAY_SERVE_REDIS_ULR="redis://x", GROUPREPLAY_TRAIN_ANYTHING="1")
    assert ran.status == 2
    assert (
        "unknown setting GROUPREPLAY_SERVE_REDIS_ULR in the environment; `groupreplay serve --help` lists" in ran.output
    )
    assert "ANYTHING" not in ran.output
    assert not (tmp_path / "data").exists()


def test_a_data_folder_that_cannot_be_made_is_named(serve: Serve, tmp_path: Path) -> None:
    """A file in its place, for instance."""
    (tmp_path / "data").write_text("I am a file")
    ran = serve()
    assert ran.status == 1
    assert str(tmp_path / "data") in ran.output
