"""A run can be watched while it trains: by Prometheus, in TensorBoard, and on a terminal."""

import asyncio
import os
import pty
import struct
import sys
import termios
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import free_port
from prometheus_client.parser import text_string_to_metric_families
from tensorboardX.proto.event_pb2 import Event, SessionLog
from trainer.bench import RUN, TABLE, Bench, Killed, Live

from groupreplay import Client
from groupreplay_trainer.alarms import ALARMS
from groupreplay_trainer.metrics import ALARM, MEASURES, PREFIX, UNDONE, Kind
from groupreplay_trainer.prometheus import PrometheusEndpoint
from groupreplay_trainer.sections import AlarmSettings, MetricsSettings
from groupreplay_trainer.settings import TrainerSettings
from groupreplay_trainer.tensorboard import EventFiles
from groupreplay_trainer.watching import open_watchers

NOT_MEASURES = {
    "policy_version", "lease_id", "fresh_effective", "redelivered_group_ids", "fresh_tokens", "replay_tokens", "alarms",
    "total_groups", "total_rollouts", "total_fresh", "total_refilled", "total_updates", "total_empty_steps",
    "total_rejected_steps",
}  # fmt: skip
"""Of train.jsonl: names, sums over the run, and tokens counted once for each update."""

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(address: str) -> Samples:
    """Return what /metrics says, by name and labels."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name.removeprefix(PREFIX), frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def plain(samples: Samples, metric: str, /, **labels: str) -> float | None:
    """Return one value of /metrics; None if it is not there."""
    return samples.get((metric, frozenset(labels.items())))


async def test_prometheus_finds_every_figure_of_the_newest_step(bench: Bench) -> None:
    """Gauges are the newest line of train.jsonl, counters and histograms add up; names have a prefix and units."""
    await bench.insert(bench.make_groups(6))
    with PrometheusEndpoint("127.0.0.1:0") as endpoint:
        before = await asyncio.to_thread(scrape, endpoint.address)
        await bench.train(steps=3, watchers=[endpoint])
        after = await asyncio.to_thread(scrape, endpoint.address)
    assert plain(before, "ess") is None
    assert plain(before, "updates_total") == 0
    lines = bench.log()
    for measure in MEASURES:
        if measure.key == "publishing_s":
            continue
        values = [line[measure.key] for line in lines]
        if measure.kind is Kind.GAUGE:
            assert plain(after, measure.name, **measure.labels) == values[-1], measure.name
        elif measure.kind is Kind.COUNTER:
            assert plain(after, measure.name) == sum(values), measure.name
        else:
            assert plain(after, f"{measure.name}_sum") == pytest.approx(sum(values))
    assert plain(after, "publishing_seconds_count") == 3
    assert (plain(after, "replay_groups_total"), plain(after, "fresh_groups_total")) == (2, 6)
    assert plain(after, "undone_steps_total", reason="lease_lost") is None


async def test_every_figure_of_the_log_has_a_measure(bench: Bench) -> None:
    """A new field of train.jsonl is in Prometheus, TensorBoard and the reference, or said not to be a measure."""
    await bench.insert(bench.make_groups(2))
    await bench.train(steps=1)
    (line,) = bench.log()
    assert set(line) == {measure.key for measure in MEASURES} - {"publishing_s"} | NOT_MEASURES
    tags = [measure.tag for measure in MEASURES if measure.tag]
    assert len(set(tags)) == len(tags)
    assert all(tag.count("/") == 1 for tag in tags)


async def test_a_restart_shows_the_newest_step_and_counts_from_nothing(bench: Bench) -> None:
    """As Prometheus expects of counters; and the endpoint is closed with the trainer."""
    await bench.insert(bench.make_groups(4))
    await bench.train(steps=1)
    with PrometheusEndpoint("127.0.0.1:0") as endpoint:
        await bench.train(steps=1, watchers=[endpoint])
        resumed = await asyncio.to_thread(scrape, endpoint.address)
        address = endpoint.address
    assert (plain(resumed, "step"), plain(resumed, "updates_total")) == (1, 0)
    assert plain(resumed, "loss") == bench.log()[0]["loss"]
    with pytest.raises(OSError, match="refused"):
        await asyncio.to_thread(scrape, address)


async def test_an_alarm_is_in_the_log_and_in_the_metrics(bench: Bench) -> None:
    """Its gauge is 1 from the step that rang it, and every other alarm's is there with 0."""
    await bench.insert(bench.make_groups(4))
    with PrometheusEndpoint("127.0.0.1:0") as endpoint:
        await bench.train(steps=2, watchers=[endpoint], alarms=AlarmSettings(steps=2, effective_ratio=0.9))
        samples = await asyncio.to_thread(scrape, endpoint.address)
    assert [line["alarms"] for line in bench.log()] == [[], ["effective_ratio"]]
    shown = {alarm.name: plain(samples, ALARM.name, name=alarm.name) for alarm in ALARMS}
    assert shown == {alarm.name: float(alarm.name == "effective_ratio") for alarm in ALARMS}


async def test_undone_steps_are_counted_by_reason(bench: Bench) -> None:
    """Killed before a commit, and away until others took the groups."""

    class DiesBeforeCommit(Client):
        def commit(self, **call: Any) -> bool:
            raise Killed

    await bench.insert(bench.make_groups(2))
    with pytest.raises(Killed):
        await bench.train(client=DiesBeforeCommit, lease_s=1.0)
    await bench.client.next_batch(run=RUN, table=TABLE, batch_size=2, lease_id="other", timeout_s=10.0)
    with PrometheusEndpoint("127.0.0.1:0") as endpoint:
        await bench.train(steps=0, watchers=[endpoint])
        samples = await asyncio.to_thread(scrape, endpoint.address)
    assert plain(samples, UNDONE.name, reason="lease_lost") == 1
    assert plain(samples, "step") == 0
    await bench.client.release(run=RUN, table=TABLE, lease_id="other")


def events_of(folder: Path) -> Iterator[Event]:
    """Yield the events of a folder, file by file in order of their names, as TensorBoard does."""
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            yield Event.FromString(content[12 : 12 + length])
            content = content[12 + length + 4 :]


def scalars_of(folder: Path) -> list[tuple[int, str, float]]:
    """Return (step, tag, value) as TensorBoard shows them: a file that starts at a step takes back what comes after."""
    found: list[tuple[int, str, float]] = []
    for event in events_of(folder):
        if event.session_log.status == SessionLog.START:
            found = [item for item in found if item[0] < event.step]
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    return found


async def test_tensorboard_shows_each_step_once_over_restarts(bench: Bench, tmp_path: Path) -> None:
    """Also a step whose trainer was killed before it could write its events, and one that was trained twice."""

    class DiesBeforeWriting(EventFiles):
        def finished(self, record: Any) -> None:
            if record["step"] == 2 and "publishing_s" in record:
                raise Killed
            super().finished(record)

    folder = tmp_path / "events"
    await bench.insert(bench.make_groups(8))
    with pytest.raises(Killed), DiesBeforeWriting(folder) as dying:
        await bench.train(steps=2, watchers=[dying])
    with EventFiles(folder) as events:
        await bench.train(steps=4, watchers=[events])
    scalars, lines = scalars_of(folder), bench.log()
    for tag, key in (("train/loss", "loss"), ("batch/staleness_mean", "staleness_mean"), ("train/learning_rate", "lr")):
        shown = [(step, value) for step, name, value in scalars if name == tag]
        assert [step for step, _ in shown] == [line["step"] for line in lines]
        assert [value for _, value in shown] == pytest.approx([line[key] for line in lines], rel=1e-6)
    assert [value for _, name, value in scalars if name == "off_policy/ess"] == pytest.approx(
        [line["ess"] for line in lines[1:]]
    )
    assert {name for _, name, _ in scalars} >= {measure.tag for measure in MEASURES if measure.tag} - {
        "reward/all_right_ratio",
        "reward/all_wrong_ratio",
        "train/reference_kl_nats",
    }
    assert [value for _, name, value in scalars if name == "alarm/kl"] == ["kl" in line["alarms"] for line in lines]


async def test_tensorboard_follows_a_trainer_that_goes_back(bench: Bench, tmp_path: Path) -> None:
    """Events of steps that were undone are taken back."""
    folder = tmp_path / "events"
    with EventFiles(folder) as events:
        events.resumed(0, None)
        for step in (1, 2, 3):
            events.finished({"step": step, "loss": float(step)})
        events.resumed(1, {"step": 1, "loss": 1.0})
        events.finished({"step": 2, "loss": 20.0})
    shown = [(step, value) for step, name, value in scalars_of(folder) if name == "train/loss"]
    assert shown == [(1, 1.0), (2, 20.0)]


async def test_the_command_line_opens_what_is_asked_for(bench: Bench, live: Live, tmp_path: Path) -> None:
    """Prometheus and TensorBoard, from the settings; an address in use ends the trainer with 1."""
    await bench.insert(bench.make_groups(2))
    metrics = {"listen": f"127.0.0.1:{free_port()}", "tensorboard": str(tmp_path / "events")}
    assert await live(bench.as_request(steps=1, metrics=metrics)) == 0
    assert any(name == "train/loss" for _, name, _ in scalars_of(tmp_path / "events"))
    with PrometheusEndpoint(metrics["listen"]):
        assert await live(bench.as_request(steps=1, metrics=metrics)) == 1


def test_tensorboard_without_its_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is not part of the trainer's extra."""
    monkeypatch.delitem(sys.modules, "groupreplay_trainer.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    settings = TrainerSettings(metrics=MetricsSettings(tensorboard=tmp_path))
    with pytest.raises(ModuleNotFoundError, match=r"groupreplay\[tensorboard\]"), open_watchers(settings):
        pass


def test_a_metrics_address_has_host_and_port() -> None:
    """So that nothing listens on all interfaces by accident."""
    for wrong in ("9101", ":9101", "127.0.0.1:", "127.0.0.1:70000"):
        with pytest.raises(ValueError, match="must be host:port"):
            MetricsSettings(listen=wrong)


async def test_a_terminal_shows_a_bar_and_a_file_lines(bench: Bench, live: Live, tmp_path: Path) -> None:
    """The bar has the step, seconds per step, time left and the figures to watch; --no-progress turns it off."""
    await bench.insert(bench.make_groups(8))
    on_terminal = await on_a_terminal(live, bench.as_request(steps=2))
    assert "2/2" in on_terminal
    for figure in ("reward=", "effective=0.5", "replay=0.5", "staleness="):
        assert figure in on_terminal
    assert "step 2: " not in on_terminal
    assert "all 2 steps are done" in on_terminal
    without = await on_a_terminal(live, bench.as_request(steps=3, progress=False))
    assert "step 3: 2 groups" in without
    assert "3/3" not in without
    log = tmp_path / "log"
    log.touch()
    assert await live(bench.as_request(steps=4, stderr=str(log))) == 0
    assert "step 4: 2 groups" in log.read_text()
    assert "4/4" not in log.read_text()


async def on_a_terminal(live: Live, settings: dict[str, Any]) -> str:
    """Run one life whose standard error is a terminal of 200 columns, and return what it showed."""
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (50, 200))
    shown = bytearray()

    def read() -> None:
        try:
            while chunk := os.read(terminal, 65536):
                shown.extend(chunk)
        except OSError:  # what Linux says when the last writer is gone
            return

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert await live(settings | {"stderr": os.ttyname(end)}) == 0
    finally:
        os.close(end)
        reader.join(timeout=20)
        os.close(terminal)
    return shown.decode()
