"""Traces of a group's way from generator to trainer, where a process was asked for them; otherwise nothing happens.

No tracing library is imported here: groupreplay.open_telemetry has what begins to trace. A span travels with each call
to the service as W3C `traceparent`, and with each group as a tag of that name, so that whoever trains on the group can
refer to what made it.
"""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, Self

from groupreplay.errors import InvalidRequestError

if TYPE_CHECKING:
    from groupreplay.types import Batch

TRACEPARENT: Final = "traceparent"
"""Name of the metadata over gRPC, of the header over HTTP, and of the tag of a group."""
MAX_TAGS: Final = 64
"""Of a group, in the protocol."""
Value = str | int | float | bool

_W3C = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_caller: ContextVar[str] = ContextVar("groupreplay_traceparent", default="")


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSettings:
    """Where traces go; needs the extra otel.

    Raises:
        InvalidRequestError: the endpoint is no URL, or the ratio is out of range.
    """

    endpoint: str = ""
    """http://HOST:PORT of an OpenTelemetry collector that takes OTLP over gRPC, as a rule at port 4317; https = TLS.
    OTEL_EXPORTER_OTLP_HEADERS, OTEL_EXPORTER_OTLP_CERTIFICATE and OTEL_RESOURCE_ATTRIBUTES hold as everywhere. Empty =
    nothing is traced."""
    ratio: float = 1.0
    """Share of traces that are recorded, 0 to 1, where they begin here; of a caller's the caller decides."""

    def __post_init__(self) -> None:
        if self.endpoint and not re.fullmatch(r"https?://[^/\s]+:\d{1,5}/?", self.endpoint):
            raise InvalidRequestError(
                f"trace.endpoint {self.endpoint!r} is not http://HOST:PORT, for example http://127.0.0.1:4317"
            )
        if not (math.isfinite(self.ratio) and 0 <= self.ratio <= 1):
            raise InvalidRequestError(f"trace.ratio {self.ratio} is not in 0 to 1")


class Span(Protocol):
    """Something that took time. Used in a `with`, it is what calls and spans within belong to."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def note(self, **attributes: Value) -> None:
        """Add attributes; their names get the prefix `groupreplay.`."""

    def count(self, **amounts: int) -> None:
        """Add to attributes that are numbers."""

    def link(self, traceparent: str, **attributes: Value) -> None:
        """Refer to another span, which may be of another trace."""

    def failed(self, reason: str, *, fault: bool) -> None:
        """Say how it ended; a fault is an error, all else is part of normal work."""

    def end(self) -> None:
        """End it, where there is no `with`."""

    @property
    def traceparent(self) -> str:
        """What others refer to it by; empty = nobody traces."""

    @property
    def recorded(self) -> str:
        """The same; empty = it is not recorded."""


class Tracer(Protocol):
    """What makes spans."""

    def span(self, name: str, *, parent: str, is_call: bool, start_ns: int | None) -> Span:
        """Return a span; parent is a traceparent, empty = the current span, if there is one."""

    def current(self) -> Span | None:
        """Return the current span, if it is recorded."""

    def current_traceparent(self) -> str:
        """Return that of the current span, recorded or not; empty = there is none."""


class _NoSpan:
    """What there is while nobody traces."""

    traceparent = recorded = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def note(self, **attributes: Value) -> None:
        """Do nothing; as all that follows."""

    def count(self, **amounts: int) -> None: ...

    def link(self, traceparent: str, **attributes: Value) -> None: ...

    def failed(self, reason: str, *, fault: bool) -> None: ...

    def end(self) -> None: ...


NO_SPAN: Final = _NoSpan()
_tracer: Tracer | None = None


def set_tracer(tracer: Tracer | None) -> None:
    """Record spans by this from now on; None = no more."""
    global _tracer  # noqa: PLW0603  one for the process, as its log
    _tracer = tracer


@contextmanager
def traced(settings: TraceSettings, *, service: str, instance: str = "") -> Iterator[None]:
    """Trace this process as the settings say; service and instance name it.

    Raises:
        InvalidRequestError: the extra otel is not installed.
    """
    if not settings.endpoint:
        yield
        return
    try:
        from groupreplay.open_telemetry import exporting  # noqa: PLC0415  only where it is asked for
    except ModuleNotFoundError as error:
        raise InvalidRequestError(
            f"trace.endpoint {settings.endpoint} needs packages more: pip install 'groupreplay[otel]' ({error})"
        ) from error
    with exporting(settings, service=service, instance=instance):
        yield


def span(name: str, *, parent: Span | None = None, start_ns: int | None = None) -> Span:
    """Return a span of this process's own work, under `parent` or the current one, or at the head of a new trace.

    start_ns: when it began, nanoseconds since the Unix epoch; None = now.
    """
    if _tracer is None:
        return NO_SPAN
    return _tracer.span(name, parent=parent.traceparent if parent else "", is_call=False, start_ns=start_ns)


def part(name: str) -> Span:
    """Return a span of the current one; nothing where there is none, so that background work makes no traces."""
    return NO_SPAN if _tracer is None or _tracer.current() is None else span(name)


def call_span(name: str) -> Span:
    """Return the span of a call that somebody makes, under the caller's that came with it."""
    if _tracer is None:
        return NO_SPAN
    return _tracer.span(name, parent=_caller.get(), is_call=True, start_ns=None)


def enter_caller(traceparent: str | None) -> None:
    """Take note of what a call came with, for call_span."""
    if _tracer is not None:
        _caller.set(traceparent or "")


def current() -> Span:
    """Return the current span, to add to it."""
    return (_tracer.current() if _tracer is not None else None) or NO_SPAN


def current_traceparent() -> str:
    """Return what calls from here carry; empty = nobody traces."""
    return _tracer.current_traceparent() if _tracer is not None else ""


def tags_of(tags: Mapping[str, str], span: Span | None = None) -> Mapping[str, str]:
    """Return the tags of a group that is inserted in a span, or in the current one: with that, if it is recorded.

    A group that names a span keeps it, and one that has no room for a tag goes without.
    """
    inserted_in = (span or current()).recorded
    if not inserted_in or TRACEPARENT in tags or len(tags) >= MAX_TAGS:
        return tags
    return {**tags, TRACEPARENT: inserted_in}


def link_groups(batch: "Batch", span: Span | None = None) -> None:
    """Refer, in a span or the current one, to the spans that the groups of a batch were inserted in."""
    if _tracer is None:
        return
    linking = span or current()
    for delivered in batch.groups:
        if inserted_in := delivered.group.tags.get(TRACEPARENT, ""):
            linking.link(
                inserted_in,
                group_id=delivered.group.group_id,
                source=delivered.source.value,
                staleness=delivered.staleness,
            )


def split_traceparent(value: str) -> tuple[int, int, int] | None:
    """Return ids of trace and span, and the flags; None where it is no traceparent."""
    found = _W3C.fullmatch(value)
    if found is None:
        return None
    trace_id, span_id, flags = (int(part, 16) for part in found.groups())
    return (trace_id, span_id, flags) if trace_id and span_id else None
