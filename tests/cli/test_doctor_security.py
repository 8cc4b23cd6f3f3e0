"""What `groupreplay doctor` says of certificates and tokens."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority, Certificate
from cli.in_process import IN_PROCESS, Run
from processes import ServerProcess

from groupreplay import Client, NewToken, Scope, Token
from groupreplay.certificate_dates import certificate_ends_ms
from groupreplay.groups import now_ms
from groupreplay_admin.checks import Verdict, check_open, check_tokens

pytestmark = IN_PROCESS
ADMIN_TOKEN = "0123456789abcdef" * 4
DAY_MS = 86_400_000


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """A certificate authority of the test."""
    return Authority(tmp_path)


@pytest.fixture
def served(authority: Authority) -> Certificate:
    """The certificate of the service, good for two days."""
    return authority.sign("service")


@pytest.fixture
def process(redis_url: str, clean_redis: object, tmp_path: Path, served: Certificate) -> Iterator[ServerProcess]:
    """A service with TLS and tokens."""
    (tmp_path / "admin.token").write_text(ADMIN_TOKEN)
    options = ["--tls-cert-file", served.cert_file, "--tls-key-file", served.key_file]
    options += ["--admin-token-file", tmp_path / "admin.token"]
    service = ServerProcess(tmp_path, redis_url, *map(str, options))
    service.start()
    yield service
    service.terminate()


def checks(output: str) -> dict[str, dict[str, Any]]:
    """Return what doctor printed as JSON, by name; the last of each."""
    return {check["name"]: check for check in json.loads(output)}


def test_a_certificate_that_ends_soon_and_tokens_that_have_ended_are_told(
    command: Run, process: ServerProcess, authority: Authority
) -> None:
    """Over TLS, with the token of an admin."""
    with Client(process.grpc_address, token=ADMIN_TOKEN, ca_file=authority.ca_file, timeout_s=10) as client:
        token = Token(name="brief", scope=Scope.PRODUCER, expires_at_ms=now_ms() + DAY_MS)
        client.create_token(NewToken.generate(token))
    flags = ["--server", process.grpc_address, "--http", process.http_address, "--ca-file", authority.ca_file]
    ended = command("doctor", *flags, "--token", ADMIN_TOKEN, "--json")
    assert ended.status == 3, ended.errors
    found = checks(ended.output)
    assert found["certificate"]["verdict"] == "problem"
    assert f"the certificate of {process.grpc_address} ends in 2 days" in found["certificate"]["found"]
    assert "1 tokens; 0 have expired, 1 end within 7 days: brief" in found["tokens"]["found"]
    assert found["http"]["verdict"] == "ok"


def test_without_a_good_token_or_authority_doctor_says_what_it_needs(
    command: Run, process: ServerProcess, authority: Authority, tmp_path: Path
) -> None:
    """Rather than that the service is away."""
    flags = ["--server", process.grpc_address, "--http", "none", "--timeout-s", "3"]
    ended = command("doctor", *flags, "--ca-file", authority.ca_file)
    assert "-> pass --token-file with a token of scope admin" in ended.output
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other")
    stranger = command("doctor", *flags, "--ca-file", other.ca_file, "--token", ADMIN_TOKEN)
    assert "certificate verify failed" in stranger.output
    assert "-> see that --ca-file has signed it" in stranger.output


def test_files_are_looked_at_before_a_service_uses_them(
    command: Run, authority: Authority, served: Certificate, tmp_path: Path
) -> None:
    """How long the certificate is good, and whether the key fits."""
    look = ["doctor", "--server", "none", "--json"]
    good = checks(command(*look, "--tls-cert-file", served.cert_file, "--tls-key-file", served.key_file).output)
    assert "ends in 2 days" in good["certificate"]["found"]
    assert good["certificate_key"]["verdict"] == "ok"
    other = authority.sign("other")
    ended = command(*look, "--tls-cert-file", served.cert_file, "--tls-key-file", other.key_file)
    assert (ended.status, checks(ended.output)["certificate_key"]["verdict"]) == (3, "problem")
    for content in (b"", b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n", b"\xff\xfe"):
        (tmp_path / "bad.pem").write_bytes(content)
        bad = checks(command(*look, "--tls-cert-file", tmp_path / "bad.pem").output)
        assert "is no certificate in PEM" in bad["certificate"]["found"]


def test_the_end_of_a_certificate_is_read_as_openssl_reads_it(served: Certificate) -> None:
    """To the second."""
    der = subprocess.run(
        ["openssl", "x509", "-in", str(served.cert_file), "-outform", "DER"], capture_output=True, check=True
    ).stdout
    said = subprocess.run(
        ["openssl", "x509", "-in", str(served.cert_file), "-noout", "-enddate"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    import ssl  # noqa: PLC0415

    assert certificate_ends_ms(der) == ssl.cert_time_to_seconds(said.removeprefix("notAfter=")) * 1000


def test_a_service_that_anybody_can_use_is_a_warning_beyond_loopback() -> None:
    """And all well on loopback."""
    assert check_open("127.0.0.1:50051").verdict is Verdict.OK
    assert check_open("localhost:1").verdict is Verdict.OK
    assert check_open("replay.example.org:50051").verdict is Verdict.WARNING


def test_tokens_that_last_are_well() -> None:
    """Those that never end, and those that end later."""
    tokens = [Token(name="a", scope=Scope.ADMIN), Token(name="b", scope=Scope.ADMIN, expires_at_ms=20 * DAY_MS)]
    assert check_tokens(tokens, now_ms=DAY_MS).verdict is Verdict.OK
    late = check_tokens(tokens, now_ms=21 * DAY_MS)
    assert (late.verdict, "1 have expired" in late.found) == (Verdict.WARNING, True)
