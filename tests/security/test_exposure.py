"""The service listens beyond loopback only when it knows who calls, or was told that it need not."""

from dataclasses import replace
from pathlib import Path

import pytest

from groupreplay_server.app import running_server
from groupreplay_server.exposure import check_exposure, is_loopback
from groupreplay_server.settings import ServerSettings

OPEN = ServerSettings()


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:50051", "localhost:0", "[::1]:50051", "127.8.9.1:80", "unix:/run/groupreplay.sock", "no-such-host.:1"],
)
def test_what_only_this_machine_reaches_needs_no_tokens(address: str) -> None:
    """The default; a name that resolves to nothing fails when the service listens there."""
    assert is_loopback("gRPC", address)
    check_exposure(replace(OPEN, grpc_listen=address))


@pytest.mark.parametrize("address", ["0.0.0.0:50051", "[::]:50051", ":50051", "10.1.2.3:80", "[2001:db8::1]:443"])
def test_what_others_reach_is_refused_with_what_to_do(address: str) -> None:
    """Until tokens are asked for, or --insecure is said."""
    for settings in (replace(OPEN, grpc_listen=address), replace(OPEN, http_listen=address)):
        with pytest.raises(OSError, match=r"openssl rand -hex 32 > admin\.token.*--admin-token-file.*--insecure"):
            check_exposure(settings)
        check_exposure(replace(settings, insecure=True))
        check_exposure(replace(settings, tokens=True))
        check_exposure(replace(settings, admin_token_file=Path("admin.token")))


@pytest.mark.parametrize("address", ["0.0.0.0", "ipv4:0.0.0.0:50051", "dns:example.org:1", "vsock:2:50051", "1.2.3.4:"])
def test_an_address_of_another_form_is_refused(address: str) -> None:
    """gRPC knows more of them, and listens everywhere for some."""
    with pytest.raises(OSError, match="it is not host:port"):
        check_exposure(replace(OPEN, grpc_listen=address, insecure=False))


async def test_a_refused_start_leaves_nothing_behind(tmp_path: Path) -> None:
    """It is refused before a Redis is started or a port is taken."""
    settings = ServerSettings(grpc_listen="0.0.0.0:0", data_dir=tmp_path / "data")
    with pytest.raises(OSError, match="is no loopback address"):
        async with running_server(settings):
            pass
    assert not (tmp_path / "data").exists()


def test_tokens_in_the_clear_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """Beyond loopback without TLS, unless it was said to be meant."""
    exposed = replace(OPEN, grpc_listen="0.0.0.0:50051", tokens=True)
    check_exposure(exposed)
    assert "0.0.0.0:50051 is without TLS" in caplog.text
    caplog.clear()
    check_exposure(replace(exposed, insecure=True))
    check_exposure(replace(exposed, tls_cert_file=Path("c"), tls_key_file=Path("k")))
    assert caplog.text == ""
