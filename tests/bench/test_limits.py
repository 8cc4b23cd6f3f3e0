"""The bare limits move the bytes that the service would, and the service leaves nothing behind."""

from pathlib import Path

import pytest
from cli.in_process import IN_PROCESS
from processes import start_redis
from redis import Redis

from groupreplay import TableConfig
from groupreplay.parts import MESSAGE_BYTES
from groupreplay_admin.load.crew import Crew
from groupreplay_admin.load.shapes import SHAPES
from service import usage
from service.deployment import Watch
from service.limits import BareGrpc, GrpcDown, GrpcUp, RedisUp, messages_of
from service.stage import Effort, Stage
from service.trials import fill, insert_each, large_batch

pytestmark = IN_PROCESS
EFFORT = Effort(seconds=0.2, rounds=1, large_batch=8)


def test_messages_hold_whole_payloads_below_the_limit_of_grpc() -> None:
    """Groups larger than a message are cut; the last message of each group counts it."""
    for shape in "SDL":
        messages = messages_of(shape)
        groups = sum(message.groups for message in messages)
        assert max(len(message.data) for message in messages) <= MESSAGE_BYTES < 4 * 2**20
        mean = sum(len(message.data) for message in messages) / groups
        assert mean == pytest.approx(SHAPES[shape].mean_bytes, rel=0.25)


def test_bare_grpc_and_redis_move_groups(tmp_path: Path) -> None:
    """What comes back in a call of the bare server is the batch that was asked for, up to the end of a message."""
    redis = start_redis(tmp_path)
    url = f"unix://{tmp_path}/redis.sock"
    try:
        with Crew(1) as crew, BareGrpc() as bare:
            [up] = crew.run([GrpcUp(address=bare.address, shape="D", seconds=0.2)])
            [down] = crew.run([GrpcDown(address=bare.address, shape="D", batch_size=30, seconds=0.2)])
            [written] = crew.run([RedisUp(url=url, shape="D", seconds=0.2)])
            with Redis.from_url(url) as looking:
                assert looking.dbsize() == written.groups  # each has a key of its own
    finally:
        redis.kill()
        redis.wait()
    for tally in (up, down, written):
        assert tally.groups > 0
        assert tally.payload_bytes / tally.groups == pytest.approx(SHAPES["D"].mean_bytes, rel=0.5)
    assert down.groups % 30 == 0


def test_a_trial_measures_the_service_and_what_it_uses(tmp_path: Path) -> None:
    """A stage starts a service, watches it, and measures the memory that a batch takes."""
    with Stage(tmp_path, EFFORT) as stage:
        numbers = insert_each("S")(stage, {})
        assert numbers["groups"] > 0
        assert 0 < numbers["p50_ms"] <= numbers["p99_ms"] <= numbers["p999_ms"]
        assert numbers["server_cpu_s_per_gb"] >= 0
        assert large_batch(stage, {})["peak_share"] >= 0
        service, where = stage.empty_table(TableConfig())
        with Watch(service) as watch:
            fill(stage, where, "S", 64)
        assert service.client.describe_table(run=where.run, table=where.table).fresh == 64
        assert watch.server_cpu_s >= 0  # counted in hundredths of a second
        assert usage.cpu_seconds(service.pid) > 0
        assert 20e6 < usage.resident_bytes(service.pid) < 500e6
        assert usage.open_files(service.pid) > 5
