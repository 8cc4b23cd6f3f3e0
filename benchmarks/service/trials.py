"""How each subject is measured."""

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from groupreplay import Durability, Fill, RateLimit, Sampler, TableConfig
from groupreplay_admin.load.crew import Crew
from groupreplay_admin.load.jobs import Draw, InsertAtRate, InsertEach, InsertStream, Where
from groupreplay_admin.load.tally import together
from service import usage
from service.access import Access, can_be_had
from service.deployment import Deployment, Watch
from service.limits import GrpcDown, GrpcUp, RedisUp
from service.measured import Measured, measured
from service.private_redis import Keeping
from service.stage import Stage

Trial = Callable[[Stage, Mapping[str, Measured]], Measured]
"""Measures one subject; it is given what was measured before it in the round."""
CAPACITY: Final = 2**20
DRAWN: Final = {"S": 512, "M": 512, "D": 128, "L": 24, "A": 6}
"""Groups in the table that batches of a shape are drawn from."""
STREAMED: Final = {"D": 64, "L": 12, "A": 3}
"""Groups that a call of the draw stream asks for: about 40 MB."""
DRAWN_FROM: Final = TableConfig(fill=Fill.SAMPLE, sampler=Sampler.PRIORITIZED, replay_capacity=CAPACITY)


def insert_each(shape: str, *, clients: int = 1) -> Trial:
    """Clients that wait for each acknowledgement."""

    def trial(stage: Stage, _: Mapping[str, Measured]) -> Measured:
        service, where = stage.empty_table(TableConfig(fresh_capacity=CAPACITY))
        jobs = [
            InsertEach(where=where, seconds=stage.effort.seconds, shape=shape, number=number)
            for number in range(clients)
        ]
        return watched(stage, service, jobs)

    return trial


def insert_stream(
    shape: str,
    *,
    producers: int = 1,
    keeping: Keeping = "memory",
    durability: Durability = Durability.MEMORY,
    ineffective: float = 0.0,
    access: Access = "open",
) -> Trial:
    """Producers that stream."""

    def trial(stage: Stage, _: Mapping[str, Measured]) -> Measured:
        if not can_be_had(access):
            return {}
        config = TableConfig(fresh_capacity=CAPACITY, durability=durability)
        service, where = stage.empty_table(config, keeping, access=access)
        seconds = stage.effort.seconds
        jobs = [
            InsertStream(where=where, seconds=seconds, shape=shape, number=number, ineffective=ineffective)
            for number in range(producers)
        ]
        return watched(stage, service, jobs)

    return trial


def draw(
    shape: str,
    *,
    batch_size: int,
    feedback: bool = False,
    cached: bool = True,
    ahead: int = 0,
    access: Access = "open",
) -> Trial:
    """A trainer that draws from replay by priority, and commits; cached=False reads every payload from Redis."""

    def trial(stage: Stage, _: Mapping[str, Measured]) -> Measured:
        if not can_be_had(access):
            return {}
        service, where = stage.empty_table(DRAWN_FROM, cached=cached, access=access)
        fill(stage, where, shape, DRAWN[shape])
        job = Draw(
            where=service.for_trainers(where),
            seconds=stage.effort.seconds,
            call="sample",
            batch_size=batch_size,
            feedback=feedback,
            ahead=ahead,
        )
        return watched(stage, service, [job])

    return trial


def next_batches(shape: str, *, batch_size: int, groups: int) -> Trial:
    """A trainer that takes fresh groups batch by batch, until there are no more."""

    def trial(stage: Stage, _: Mapping[str, Measured]) -> Measured:
        service, where = stage.empty_table(TableConfig(fresh_capacity=CAPACITY))
        fill(stage, where, shape, groups)
        job = Draw(where=where, seconds=stage.effort.seconds, call="next_batch", batch_size=batch_size, feedback=True)
        return watched(stage, service, [job])

    return trial


def mixed(shape: str, samples_per_insert: float) -> Trial:
    """Two producers, half of whose groups are ineffective, and a trainer, held together by the rate limit."""

    def trial(stage: Stage, _: Mapping[str, Measured]) -> Measured:
        limit = RateLimit.of(samples_per_insert, min_size_to_sample=64, error_buffer=1024 * samples_per_insert)
        config = TableConfig(fill=Fill.SAMPLE, sampler=Sampler.PRIORITIZED, replay_capacity=CAPACITY, rate_limit=limit)
        service, where = stage.empty_table(config)
        seconds = stage.effort.seconds
        producers = [
            InsertStream(where=where, seconds=seconds, shape=shape, number=number, ineffective=0.5)
            for number in range(2)
        ]
        # It goes on until nothing is left that the limit lets it draw: a producer may wait for it to the end.
        trainer = Draw(where=where, seconds=20 * seconds, call="sample", batch_size=32, feedback=True, wait_s=2.0)
        with Watch(service) as watch:
            *inserted, drawn = stage.run(*producers, trainer)
        pushed = together(inserted)
        return {**measured(drawn, watch), "inserted_per_s": pushed.groups_per_s}

    return trial


def at_load(shape: str, share: float) -> Trial:
    """Producers that send at a share of what four clients reached in the same round."""

    def trial(stage: Stage, earlier: Mapping[str, Measured]) -> Measured:
        service, where = stage.empty_table(TableConfig(fresh_capacity=CAPACITY))
        per_s = share * earlier["capacity"]["groups_per_s"] / 2
        jobs = [
            InsertAtRate(where=where, seconds=2 * stage.effort.seconds, shape=shape, number=number, per_s=per_s)
            for number in range(2)
        ]
        return watched(stage, service, jobs)

    return trial


def grpc_up(shape: str) -> Trial:
    """Bare gRPC from a client to a server that stores nothing."""

    def trial(stage: Stage, _: Mapping[str, Measured]) -> Measured:
        job = GrpcUp(address=stage.bare_grpc.address, shape=shape, seconds=stage.effort.seconds)
        return measured(together(stage.run(job)))

    return trial


def grpc_down(shape: str, batch_size: int) -> Trial:
    """Bare gRPC from a server to a client."""

    def trial(stage: Stage, _: Mapping[str, Measured]) -> Measured:
        seconds = stage.effort.seconds
        job = GrpcDown(address=stage.bare_grpc.address, shape=shape, batch_size=batch_size, seconds=seconds)
        return measured(together(stage.run(job)))

    return trial


def redis_up(shape: str) -> Trial:
    """A client that writes into bare Redis."""

    def trial(stage: Stage, _: Mapping[str, Measured]) -> Measured:
        redis = stage.bare_redis
        redis.flush()
        before = redis.cpu_seconds()
        tally = together(stage.run(RedisUp(url=redis.url, shape=shape, seconds=stage.effort.seconds)))
        spent = {"client_cpu_s_per_gb": tally.cpu_s, "redis_cpu_s_per_gb": redis.cpu_seconds() - before}
        redis.flush()  # it may hold gigabytes, and nobody reads them
        return {**measured(tally), **{name: value / (tally.payload_bytes / 1e9) for name, value in spent.items()}}

    return trial


def reverb_insert(shape: str) -> Trial:
    """Reverb's client.insert, one call a group."""

    def trial(stage: Stage, _: Mapping[str, Measured]) -> Measured:
        return measured(stage.peer("reverb").do("insert", shape=shape, seconds=stage.effort.seconds))

    return trial


def reverb_draw(shape: str, batch_size: int) -> Trial:
    """Reverb's client.sample."""

    def trial(stage: Stage, _: Mapping[str, Measured]) -> Measured:
        reverb = stage.peer("reverb")
        reverb.do("fill", shape=shape, groups=DRAWN[shape])
        return measured(reverb.do("draw", batch_size=batch_size, seconds=stage.effort.seconds))

    return trial


def atropos_push(shape: str) -> Trial:
    """Posts of one group each."""
    return lambda stage, _: measured(stage.peer("atropos").do("push", shape=shape, groups=stage.effort.atropos_groups))


def atropos_pull(shape: str) -> Trial:
    """Batches of what was posted just before."""
    return lambda stage, _: measured(stage.peer("atropos").do("pull", shape=shape))


def large_batch(stage: Stage, _: Mapping[str, Measured]) -> Measured:
    """Return what one large batch takes of the server's memory."""
    groups = stage.effort.large_batch
    config = TableConfig(fill=Fill.SAMPLE, sampler=Sampler.FIFO, replay_capacity=CAPACITY)
    service, where = stage.empty_table(config)
    fill(stage, where, "D", groups)
    with Watch(service) as watch:
        [tally] = stage.run(Draw(where=where, seconds=60.0, call="sample", batch_size=groups, max_batches=1))
    return {**measured(tally, watch), "peak_share": watch.peak_above_idle / tally.payload_bytes}


def idle_service(stage: Stage, earlier: Mapping[str, Measured]) -> Measured:
    """Return the memory of a service that was just started and answers."""
    with Deployment(stage.folder / "idle", "memory") as service:
        service.client.list_tables()
        return {"resident_mb": usage.resident_bytes(service.pid) / 1e6}


def sdk_import(stage: Stage, earlier: Mapping[str, Measured]) -> Measured:
    """Return how long a new process takes to import the SDK."""
    code = "import time; t = time.perf_counter(); import groupreplay; print(1e3 * (time.perf_counter() - t))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=Path.home())
    return {"import_ms": float(done.stdout)}


def index_trial(call: Callable[[Deployment, int, float, Crew], Measured], groups: int | None) -> Trial:
    """Work on the index of a table of so many groups, None = the effort's largest; nothing where that is no larger."""

    def trial(stage: Stage, _: Mapping[str, Measured]) -> Measured:
        if groups and groups >= stage.effort.large_table:
            return {}
        size = groups or stage.effort.large_table
        return call(stage.deployment("memory", name="index"), size, stage.effort.seconds, stage.crew(1))

    return trial


def fill(stage: Stage, where: Where, shape: str, groups: int) -> None:
    """Put groups into a table."""
    stage.run(InsertStream(where=where, seconds=600.0, shape=shape, max_groups=groups))


def watched(
    stage: Stage, service: Deployment, jobs: Sequence[InsertEach | InsertAtRate | InsertStream | Draw]
) -> Measured:
    """Let clients work and return what came of it, and what the service used."""
    with Watch(service) as watch:
        tallies = stage.run(*jobs)
    return measured(together(tallies), watch)
