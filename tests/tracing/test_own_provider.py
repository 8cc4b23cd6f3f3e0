"""Traces of a process that uses OpenTelemetry itself, and of one that does not."""

import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from samples import make_group

from groupreplay import AsyncClient, InvalidRequestError, UnknownRunError, tracing
from groupreplay.open_telemetry import trace_with
from groupreplay.tracing import TraceSettings
from groupreplay_server.app import RunningServer

OTHERS = "00-" + "ab" * 16 + "-" + "cd" * 8


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    """What was recorded."""
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> Iterator[TracerProvider]:
    """A provider of the user's, which service and client of the test both use."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with trace_with(provider):
        yield provider
    provider.shutdown()


def named(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    """Return the spans of a name."""
    return [span for span in exporter.get_finished_spans() if span.name == name]


async def test_spans_of_the_user_reach_the_service_and_come_back_with_the_group(
    provider: TracerProvider, exporter: InMemorySpanExporter, client: AsyncClient
) -> None:
    """The service's span lies under the user's, and a span that trains on the group links to it."""
    await client.create_table(run="r", table="t")
    with provider.get_tracer("mine").start_as_current_span("mine") as mine:
        await client.insert(make_group("g", tags={"own": "kept"}), run="r", table="t")
    batch = await client.next_batch(run="r", table="t", batch_size=1)
    assert batch.groups[0].group.tags["own"] == "kept"
    with tracing.span("learn") as learn:
        tracing.link_groups(batch)
        assert tracing.current() is learn
    [call] = named(exporter, "Insert") + named(exporter, "InsertStream")
    assert call.parent is not None
    assert call.parent.span_id == mine.get_span_context().span_id
    [learnt] = named(exporter, "learn")
    [link] = learnt.links
    assert link.context.span_id == mine.get_span_context().span_id
    assert dict(link.attributes or {}) == {
        "groupreplay.group_id": "g", "groupreplay.source": "fresh", "groupreplay.staleness": 0,
    }  # fmt: skip


async def test_refusals_are_told_from_faults(
    provider: TracerProvider, exporter: InMemorySpanExporter, client: AsyncClient
) -> None:
    """A refusal has its reason, and only what is the service's fault is an error."""
    with pytest.raises(UnknownRunError):
        await client.describe_table(run="r", table="no")
    [call] = named(exporter, "DescribeTable")
    assert call.attributes is not None
    assert (call.attributes["groupreplay.reason"], call.attributes["groupreplay.table"]) == ("UNKNOWN_RUN", "no")
    assert call.status.is_unset
    with pytest.raises(KeyError), tracing.span("broken"):
        raise KeyError
    assert not named(exporter, "broken")[0].status.is_ok
    assert not named(exporter, "broken")[0].status.is_unset


@pytest.mark.parametrize(("sent", "follows"), [(f"{OTHERS}-01", True), ("00-zz-01", False), ("", False)])
async def test_over_http_the_callers_trace_goes_on(
    provider: TracerProvider, exporter: InMemorySpanExporter, server: RunningServer, sent: str, follows: bool
) -> None:
    """traceparent as everywhere; what is none begins a trace of its own."""
    async with httpx.AsyncClient(base_url=f"http://{server.http_address}") as http:
        await http.get("/v1/tables", headers={"traceparent": sent})
        await http.get("/v1/tables", headers={"traceparent": f"{OTHERS}-00"})
    [call] = named(exporter, "ListTables")  # the second caller does not record its trace, and so nobody does
    assert call.context is not None
    assert (f"{call.context.trace_id:032x}" == "ab" * 16) is follows
    assert (call.parent is not None) is follows


async def test_a_group_keeps_the_span_that_it_names(
    provider: TracerProvider, exporter: InMemorySpanExporter, client: AsyncClient
) -> None:
    """And one that has as many tags as may be goes without."""
    await client.create_table(run="r", table="t")
    full = {f"tag{index}": "" for index in range(tracing.MAX_TAGS)}
    with tracing.span("insert"):
        await client.insert(make_group("own", tags={"traceparent": f"{OTHERS}-01"}), run="r", table="t")
        await client.insert(make_group("full", tags=full), run="r", table="t")
    batch = await client.next_batch(run="r", table="t", batch_size=2)
    assert [delivered.group.tags for delivered in batch.groups] == [{"traceparent": f"{OTHERS}-01"}, full]


async def test_without_traces_a_group_is_as_it_was_made(client: AsyncClient) -> None:
    """Nothing is added, and the spans that the code has all the same are nothing."""
    await client.create_table(run="r", table="t")
    with tracing.span("insert") as span:
        await client.insert(make_group("g"), run="r", table="t")
    assert span is tracing.NO_SPAN
    batch = await client.next_batch(run="r", table="t", batch_size=1)
    assert batch.groups[0].group.tags == {}


@pytest.mark.parametrize(
    ("modules", "foreign"),
    [
        ("groupreplay_generator.generator, groupreplay_trainer.trainer", "opentelemetry"),
        ("groupreplay_server.app", "groupreplay.open_telemetry"),  # redis-py looks for the library by itself
    ],
)
def test_nothing_of_opentelemetry_is_loaded_without_traces(modules: str, foreign: str) -> None:
    """Neither by the SDK nor by a process of the loop."""
    program = f"import sys, groupreplay, {modules}\nprint({foreign!r} in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


@pytest.mark.parametrize("wrong", [{"endpoint": "collector:4317"}, {"ratio": 1.5}, {"ratio": float("nan")}])
def test_settings_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    """The message says what would do."""
    with pytest.raises(InvalidRequestError, match=r"http://HOST:PORT|0 to 1"):
        TraceSettings(**wrong)  # type: ignore[arg-type]
