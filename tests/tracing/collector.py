"""A collector of OpenTelemetry traces: what OTLP brings over gRPC, to look at."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from certificates import Authority
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as rpc


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A reference to another span."""

    trace_id: str
    span_id: str
    attributes: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A span that came."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    links: tuple[Link, ...]
    seconds: float
    is_error: bool


class Collector(rpc.TraceServiceServicer):
    """All spans that came."""

    def __init__(self) -> None:
        self.address = ""
        self.headers: set[tuple[str, str]] = set()
        """All that came with calls."""
        self._lock = threading.Lock()
        self._spans: list[Recorded] = []

    def Export(self, request: pb.ExportTraceServiceRequest, context: grpc.ServicerContext) -> Any:
        """Take spans; called by gRPC."""
        with self._lock:
            self.headers |= {(key, str(value)) for key, value in context.invocation_metadata()}
            for resource in request.resource_spans:
                service = _values(resource.resource.attributes)["service.name"]
                self._spans += [_read(service, span) for scope in resource.scope_spans for span in scope.spans]
        return pb.ExportTraceServiceResponse()

    def services(self) -> set[str]:
        """Return who has sent spans."""
        with self._lock:
            return {span.service for span in self._spans}

    def spans(self, name: str, **attributes: Any) -> list[Recorded]:
        """Return the spans of a name with these attributes of ours."""
        wanted = {f"groupreplay.{key}": value for key, value in attributes.items()}.items()
        with self._lock:
            return [span for span in self._spans if span.name == name and wanted <= span.attributes.items()]

    def one(self, trace_id: str, span_id: str) -> Recorded:
        """Return the span that somebody refers to."""
        with self._lock:
            [found] = [span for span in self._spans if (span.trace_id, span.span_id) == (trace_id, span_id)]
        return found

    def parent(self, span: Recorded) -> Recorded:
        """Return what a span is part of."""
        return self.one(span.trace_id, span.parent_id)

    def children(self, span: Recorded) -> list[Recorded]:
        """Return the parts of a span."""
        with self._lock:
            return [it for it in self._spans if (it.trace_id, it.parent_id) == (span.trace_id, span.span_id)]


@contextmanager
def collecting(authority: Authority | None = None, *, listen: str = "127.0.0.1:0") -> Iterator[Collector]:
    """Collect on a port, of loopback as a rule; with an authority over TLS, from those who show a certificate of it."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(max_workers=2))
    rpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    if authority is None:
        port = server.add_insecure_port(listen)
    else:
        port = server.add_secure_port(listen, _credentials(authority))
    collector.address = f"127.0.0.1:{port}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait()


def _credentials(authority: Authority) -> grpc.ServerCredentials:
    own = authority.sign("collector")
    pair = (own.key_file.read_bytes(), own.cert_file.read_bytes())
    return grpc.ssl_server_credentials([pair], authority.ca_file.read_bytes(), require_client_auth=True)


def _read(service: str, span: Any) -> Recorded:
    return Recorded(
        service=service,
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        attributes=_values(span.attributes),
        links=tuple(
            Link(trace_id=it.trace_id.hex(), span_id=it.span_id.hex(), attributes=_values(it.attributes))
            for it in span.links
        ),
        seconds=(span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
        is_error=span.status.code == span.status.STATUS_CODE_ERROR,
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {it.key: getattr(it.value, it.value.WhichOneof("value")) for it in attributes}
