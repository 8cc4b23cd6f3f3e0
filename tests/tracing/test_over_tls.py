"""Traces go to a collector that is reached by TLS and wants to know who sends them."""

from pathlib import Path

import pytest
from certificates import Authority
from processes import ServerProcess
from tracing.collector import Collector, collecting

from groupreplay import Client, InvalidRequestError
from groupreplay.tracing import TraceSettings, traced

HEADER = ("authorization", "Bearer of-a-test")


def variables(authority: Authority) -> dict[str, str]:
    """Return what OpenTelemetry reads, as the chart sets it."""
    own = authority.sign("service")
    return {
        "OTEL_EXPORTER_OTLP_HEADERS": "=".join(HEADER).replace(" ", "%20"),
        "OTEL_EXPORTER_OTLP_CERTIFICATE": str(authority.ca_file),
        "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": str(own.cert_file),
        "OTEL_EXPORTER_OTLP_CLIENT_KEY": str(own.key_file),
    }


def trace_a_call(collector: Collector, folder: Path, environment: dict[str, str]) -> None:
    """Start a service that traces, call it, and end it, which sends what is left."""
    server = ServerProcess(folder, "", "--trace.endpoint", f"https://{collector.address}")
    server.environment |= environment
    server.start()
    with Client(server.grpc_address) as client:
        client.create_table(run="math", table="train")
    assert server.terminate() == 0


def test_spans_arrive_over_tls_with_certificate_and_headers(tmp_path: Path) -> None:
    """The collector is known by its authority, the service by its certificate, and the header comes with the spans."""
    authority = Authority(tmp_path)
    with collecting(authority) as collector:
        trace_a_call(collector, tmp_path, variables(authority))
        assert collector.spans("CreateTable", run="math", table="train")
        assert HEADER in collector.headers


STRANGERS = {
    "the collector": ["OTEL_EXPORTER_OTLP_CERTIFICATE"],
    "the service": ["OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "OTEL_EXPORTER_OTLP_CLIENT_KEY"],
}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_nothing_is_sent_where_one_side_does_not_know_the_other(tmp_path: Path, stranger: str) -> None:
    """And the service works as ever."""
    authority = Authority(tmp_path)
    environment = {name: value for name, value in variables(authority).items() if name not in STRANGERS[stranger]}
    with collecting(authority) as collector:
        trace_a_call(collector, tmp_path, environment)
        assert collector.services() == set()


def test_certificates_that_cannot_be_are_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is not there, and a certificate without its key."""
    own = Authority(tmp_path).sign("service")
    settings = TraceSettings(endpoint="https://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(tmp_path / "none.pem"))
    with (
        pytest.raises(InvalidRequestError, match=r"OTLP_CERTIFICATE '.*none\.pem' is no file"),
        traced(settings, service="s"),
    ):
        pass
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_CERTIFICATE")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CLIENT_KEY", str(own.key_file))
    with pytest.raises(InvalidRequestError, match="set both or neither"), traced(settings, service="s"):
        pass
