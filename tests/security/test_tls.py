"""TLS and mutual TLS on both ports, of services in processes of their own, as grpc's dynamic credentials want it."""

import os
import re
import shutil
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from certificates import Authority, Certificate
from processes import ServerProcess, wait_until

from groupreplay import Client, GroupReplayError, InvalidRequestError, ServiceUnavailableError
from groupreplay_server.certificates import Certificates, TlsFiles

Serve = Callable[..., ServerProcess]
DAY_S = 86400.0
REFUSED_S = 2.0
"""Seconds that a client tries before it says that it was refused."""


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """A certificate authority of the test."""
    return Authority(tmp_path)


@pytest.fixture
def served(authority: Authority) -> Certificate:
    """The certificate that the service shows, in files that a test may replace."""
    return authority.sign("service")


@pytest.fixture
def serve(clean_redis: redis.Redis, redis_url: str, tmp_path: Path, served: Certificate) -> Iterator[Serve]:
    """Start a service with TLS."""
    process: ServerProcess | None = None

    def start(*options: str) -> ServerProcess:
        nonlocal process
        files = ["--tls-cert-file", str(served.cert_file), "--tls-key-file", str(served.key_file)]
        process = ServerProcess(tmp_path, redis_url, *files, *options, log=tmp_path / "service.log")
        process.start()
        return process

    yield start
    if process is not None:
        assert process.terminate() == 0


def list_tables(process: ServerProcess, timeout_s: float = 10.0, **options: Any) -> list[Any]:
    """Call the service over gRPC."""
    with Client(process.grpc_address, timeout_s=timeout_s, **options) as client:
        return client.list_tables()


def ready(process: ServerProcess, context: ssl.SSLContext) -> int:
    """Ask the service over HTTPS; return the status."""
    return httpx.get(f"https://{process.http_address}/readyz", verify=context).status_code


def serial_of(address: str, ca_file: Path) -> str:
    """Return the serial number of the certificate that a port shows a new connection."""
    import socket  # noqa: PLC0415

    context = ssl.create_default_context(cafile=ca_file)
    context.set_alpn_protocols(["h2", "http/1.1"])
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), 5) as plain,
        context.wrap_socket(plain, server_hostname=host) as secured,
    ):
        return str((secured.getpeercert() or {})["serialNumber"])


def replace_files(old: Certificate, new: Certificate) -> None:
    """Put new files in the place of old ones, one after the other, as a careless renewal does."""
    for target, source in ((old.cert_file, new.cert_file), (old.key_file, new.key_file)):
        copy = target.with_suffix(".tmp")
        shutil.copy(source, copy)
        copy.replace(target)


def test_both_ports_speak_tls_and_nothing_else(serve: Serve, authority: Authority) -> None:
    """Whoever trusts the authority gets in; plaintext, and whoever trusts another, does not."""
    process = serve()
    assert list_tables(process, ca_file=authority.ca_file) == []
    assert ready(process, ssl.create_default_context(cafile=authority.ca_file)) == 200
    untrusting: list[dict[str, Any]] = [{}, {"tls": True}]
    for options in untrusting:
        with pytest.raises(ServiceUnavailableError):
            list_tables(process, REFUSED_S, **options)
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://{process.http_address}/readyz")
    with pytest.raises(httpx.HTTPError):
        ready(process, ssl.create_default_context())


def left_seconds(process: ServerProcess, ca_file: Path) -> dict[str, float]:
    """Return how long the certificate of each door is good, as Prometheus reads it."""
    answer = httpx.get(f"https://{process.http_address}/metrics", verify=ssl.create_default_context(cafile=ca_file))
    found = re.findall(r'^groupreplay_certificate_left_seconds{door="(\w+)"} (\S+)$', answer.text, re.MULTILINE)
    return {door: float(left) for door, left in found}


def test_metrics_say_how_long_the_certificate_of_each_door_is_good(
    serve: Serve, authority: Authority, served: Certificate
) -> None:
    """What is good for the shortest time of a chain counts, and a renewed one at once."""
    process = serve()
    left = left_seconds(process, authority.ca_file)
    assert left.keys() == {"grpc", "http"}
    assert all(2 * DAY_S - 300 < seconds <= 2 * DAY_S for seconds in left.values())
    replace_files(served, authority.sign("longer", days=90))
    wait_until(lambda: left_seconds(process, authority.ca_file)["http"] > 89 * DAY_S, "the new one is seen")
    with served.cert_file.open("a") as chain:
        chain.write(authority.sign("shorter", days=1).cert_file.read_text())
    wait_until(lambda: left_seconds(process, authority.ca_file)["grpc"] <= DAY_S, "the shortest of the chain counts")


def test_mutual_tls_lets_in_only_whom_its_authority_signed(serve: Serve, authority: Authority, tmp_path: Path) -> None:
    """Over gRPC and over HTTP; no certificate and one of another authority are refused in the handshake."""
    (tmp_path / "other").mkdir()
    stranger = Authority(tmp_path / "other").sign("stranger")
    friend = authority.sign("friend")
    process = serve("--tls-client-ca-file", str(authority.ca_file))
    trusted: dict[str, Any] = {"ca_file": authority.ca_file}
    friendly: dict[str, Any] = {"cert_file": friend.cert_file, "key_file": friend.key_file}
    assert list_tables(process, **trusted, **friendly) == []
    strangers: list[dict[str, Any]] = [{}, {"cert_file": stranger.cert_file, "key_file": stranger.key_file}]
    for options in strangers:
        with pytest.raises(ServiceUnavailableError):
            list_tables(process, REFUSED_S, **trusted, **options)
    context = ssl.create_default_context(cafile=authority.ca_file)
    with pytest.raises(httpx.HTTPError):
        ready(process, context)
    context.load_cert_chain(friend.cert_file, friend.key_file)
    assert ready(process, context) == 200


def test_a_renewed_certificate_is_shown_to_new_connections_without_a_restart(
    serve: Serve, authority: Authority, served: Certificate
) -> None:
    """On both ports, and connections that are open go on; files that do not fit together change nothing."""
    process = serve()
    with Client(process.grpc_address, timeout_s=5.0, ca_file=authority.ca_file) as open_before:
        open_before.list_tables()
        before = {serial_of(it, authority.ca_file) for it in (process.grpc_address, process.http_address)}
        assert len(before) == 1
        renewed = authority.sign("renewed")
        shutil.copy(renewed.cert_file, served.cert_file)  # its key is still the old one
        assert {serial_of(it, authority.ca_file) for it in (process.grpc_address, process.http_address)} == before
        replace_files(served, renewed)
        for address in (process.grpc_address, process.http_address):
            assert serial_of(address, authority.ca_file) not in before
        assert open_before.list_tables() == []
        assert list_tables(process, ca_file=authority.ca_file) == []


def test_clients_of_an_authority_that_was_taken_out_are_refused_without_a_restart(
    serve: Serve, authority: Authority, tmp_path: Path
) -> None:
    """On both ports: this is how a stolen client certificate is shut out."""
    (tmp_path / "next").mkdir()
    successor = Authority(tmp_path / "next")
    old, new = authority.sign("old-client"), successor.sign("new-client")
    accepted = tmp_path / "accepted.pem"
    shutil.copy(authority.ca_file, accepted)
    process = serve("--tls-client-ca-file", str(accepted))
    trusted: dict[str, Any] = {"ca_file": authority.ca_file}
    assert list_tables(process, **trusted, cert_file=old.cert_file, key_file=old.key_file) == []
    shutil.copy(successor.ca_file, accepted)
    assert list_tables(process, **trusted, cert_file=new.cert_file, key_file=new.key_file) == []
    with pytest.raises(ServiceUnavailableError):
        list_tables(process, REFUSED_S, **trusted, cert_file=old.cert_file, key_file=old.key_file)
    for client, lets_in in ((new, True), (old, False)):
        context = ssl.create_default_context(cafile=authority.ca_file)
        context.load_cert_chain(client.cert_file, client.key_file)
        if lets_in:
            assert ready(process, context) == 200
        else:
            with pytest.raises(httpx.HTTPError):
                ready(process, context)


def test_tokens_travel_over_tls(serve: Serve, authority: Authority, tmp_path: Path) -> None:
    """Both together, as beyond loopback."""
    token = "0123456789abcdef" * 4
    (tmp_path / "admin.token").write_text(token)
    process = serve("--admin-token-file", str(tmp_path / "admin.token"))
    assert list_tables(process, ca_file=authority.ca_file, token=token) == []
    with pytest.raises(GroupReplayError, match="shows no token"):
        list_tables(process, ca_file=authority.ca_file)


def test_files_that_do_not_fit_stop_the_start(authority: Authority, served: Certificate, tmp_path: Path) -> None:
    """With the names of the files, before anything listens."""
    other = authority.sign("other")
    with pytest.raises(OSError, match=r"service\.pem and key .*other\.key do not fit together"):
        Certificates(TlsFiles(cert_file=served.cert_file, key_file=other.key_file))
    with pytest.raises(OSError, match=r"missing\.pem"):
        Certificates(TlsFiles(cert_file=tmp_path / "missing.pem", key_file=other.key_file))
    with pytest.raises(OSError, match="has no certificates in PEM"):
        Certificates(TlsFiles(cert_file=served.cert_file, key_file=served.key_file, client_ca_file=served.key_file))


def test_a_client_certificate_needs_its_key() -> None:
    """Said before anything is connected."""
    with pytest.raises(InvalidRequestError, match="cert_file needs its key_file"):
        Client("127.0.0.1:1", cert_file=os.devnull)
    with pytest.raises(InvalidRequestError, match="characters that no token has"):
        Client("127.0.0.1:1", token="two words")
