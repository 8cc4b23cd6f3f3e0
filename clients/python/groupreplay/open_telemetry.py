"""Traces by OpenTelemetry: the only module that imports it. Needs the extra otel.

    with exporting(TraceSettings(endpoint="http://127.0.0.1:4317"), service="my-generator"):
        with tracing.span("group"):
            client.insert(group, run="math", table="train")

A process that uses OpenTelemetry itself passes its provider to `trace_with`; calls and groups then carry its spans.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from groupreplay import __version__
from groupreplay.errors import InvalidRequestError
from groupreplay.tracing import TraceSettings, Value, set_tracer, split_traceparent

_PREFIX: Final = "groupreplay."
_CURRENT: Final = otel_context.create_key("groupreplay-span")
_LINKS: Final = 4096
"""Of a span, where 128 are usual: a training step has one to each group of its batch."""
_EXPORT_S: Final = 3.0
"""For one export: a process that ends waits no longer for a collector that is away."""


@contextmanager
def exporting(settings: TraceSettings, *, service: str, instance: str = "") -> Iterator[None]:
    """Trace this process, and send what it records to a collector. The process never waits for that but at its end.

    Args:
        settings: where to, and which share.
        service: what the process is, the resource attribute service.name.
        instance: which one it is; empty = it is the only one.

    Raises:
        InvalidRequestError: the environment names a certificate that is not there, or a certificate without its key.
    """
    for prefix in ("OTEL_EXPORTER_OTLP_", "OTEL_EXPORTER_OTLP_TRACES_"):
        _check_certificates(prefix)
    names = {"service.name": service, "service.version": __version__} | (
        {"service.instance.id": instance} if instance else {}
    )
    provider = TracerProvider(
        resource=Resource.create(names),
        sampler=ParentBased(TraceIdRatioBased(settings.ratio)),
        span_limits=SpanLimits(max_links=_LINKS),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(settings.endpoint, timeout=_EXPORT_S)))
    try:
        with trace_with(provider):
            yield
    finally:
        provider.shutdown()


def _check_certificates(prefix: str) -> None:
    # The exporter logs a file that is not there and goes on without; for half of a pair gRPC aborts the process.
    own = [f"{prefix}CLIENT_CERTIFICATE", f"{prefix}CLIENT_KEY"]
    given = {name: os.environ[name] for name in (f"{prefix}CERTIFICATE", *own) if os.environ.get(name)}
    for name, path in given.items():
        if not Path(path).is_file():
            raise InvalidRequestError(f"{name} {path!r} is no file; it must be one in PEM that this process may read")
    if len(given.keys() & set(own)) == 1:
        raise InvalidRequestError(f"{own[0]} and {own[1]} are a pair, and one of them is not set; set both or neither")


@contextmanager
def trace_with(provider: trace.TracerProvider) -> Iterator[None]:
    """Trace this process with a provider of its own, which keeps its own exporters; not two of them at once."""
    set_tracer(_OtelTracer(provider.get_tracer("groupreplay", __version__)))
    try:
        yield
    finally:
        set_tracer(None)


class _OtelSpan:
    """A span, as groupreplay.tracing describes it."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span
        self._counts: dict[str, int] = {}
        self._judged = False

    def __enter__(self) -> Self:
        self._token = otel_context.attach(otel_context.set_value(_CURRENT, self, trace.set_span_in_context(self._span)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        otel_context.detach(self._token)
        if isinstance(error, Exception) and not self._judged:
            self.failed(getattr(error, "reason", type(error).__name__), fault=True)
        self.end()

    def holds(self, span: trace.Span) -> bool:
        """Whether it is this span."""
        return self._span is span

    def note(self, **attributes: Value) -> None:
        self._span.set_attributes(_named(attributes))

    def count(self, **amounts: int) -> None:
        for name, amount in amounts.items():
            self._counts[name] = self._counts.get(name, 0) + amount
        self.note(**{name: self._counts[name] for name in amounts})

    def link(self, traceparent: str, **attributes: Value) -> None:
        if (target := _parsed(traceparent)) is not None:
            self._span.add_link(target, _named(attributes))

    def failed(self, reason: str, *, fault: bool) -> None:
        self._judged = True
        self.note(reason=reason)
        if fault:
            self._span.set_status(Status(StatusCode.ERROR, reason))

    def end(self) -> None:
        self._span.end()

    @property
    def traceparent(self) -> str:
        return _written(self._span.get_span_context())

    @property
    def recorded(self) -> str:
        return self.traceparent if self._span.is_recording() else ""


class _OtelTracer:
    """Makes spans, as groupreplay.tracing describes it."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    def span(self, name: str, *, parent: str, is_call: bool, start_ns: int | None) -> _OtelSpan:
        found = _parsed(parent)
        if found is not None:
            under: otel_context.Context | None = trace.set_span_in_context(trace.NonRecordingSpan(found))
        else:
            under = otel_context.Context() if is_call else None
        kind = SpanKind.SERVER if is_call else SpanKind.INTERNAL
        return _OtelSpan(self._tracer.start_span(name, under, kind, start_time=start_ns))

    def current(self) -> _OtelSpan | None:
        span = trace.get_current_span()
        if not span.is_recording():
            return None
        ours = otel_context.get_value(_CURRENT)
        # Whoever uses OpenTelemetry beside us may have made another span current since.
        return ours if isinstance(ours, _OtelSpan) and ours.holds(span) else _OtelSpan(span)

    def current_traceparent(self) -> str:
        return _written(trace.get_current_span().get_span_context())


def _named(attributes: Mapping[str, Value]) -> dict[str, Value]:
    return {_PREFIX + name: value for name, value in attributes.items()}


def _parsed(traceparent: str) -> SpanContext | None:
    parts = split_traceparent(traceparent)
    if parts is None:
        return None
    trace_id, span_id, flags = parts
    return SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))


def _written(span: SpanContext) -> str:
    if not span.is_valid:
        return ""
    return f"00-{span.trace_id:032x}-{span.span_id:016x}-{int(span.trace_flags) & 1:02x}"
