"""Limits on calls and bytes per second of each token."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import pytest
import redis
from samples import make_group
from security.conftest import ADMIN_TOKEN, make_token

from groupreplay import AsyncClient, RateLimitedError, RolloutGroup, Scope
from groupreplay_server.app import RunningServer, running_server
from groupreplay_server.rate_limiter import BURST_S, MAX_CALLERS, RateLimiter, RateLimits, TokenBucket
from groupreplay_server.settings import ServerSettings


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


def test_a_bucket_lets_through_its_rate_and_a_burst() -> None:
    """Whatever the order of calls: over ten seconds ten seconds' worth, beside the burst that it began with."""
    clock = Clock()
    bucket = TokenBucket(5.0, clock)
    taken = 0
    for _ in range(1000):
        if not bucket.wait_s():
            bucket.take(1)
            taken += 1
        clock.s += 0.01
    assert taken == pytest.approx(5.0 * (10 + BURST_S), abs=1.01)


def test_what_was_taken_beyond_is_owed() -> None:
    """A call of a hundred seconds' worth of bytes is paid for by the calls after it."""
    clock = Clock()
    bucket = TokenBucket(10.0, clock)
    bucket.take(1000)
    assert bucket.wait_s() == pytest.approx((1000 - 10 * BURST_S) / 10)
    clock.s += bucket.wait_s() + 1e-9
    assert bucket.wait_s() == 0


def test_callers_do_not_share_and_are_forgotten_in_turn() -> None:
    """Memory is bounded, however many names there are."""
    limiter = RateLimiter(RateLimits(calls_per_s=0.5), Clock())
    limiter.admit("a")
    limiter.admit("a")  # the burst is one call, and one may be owed
    with pytest.raises(RateLimitedError, match=r"caller 'a' is over 0\.5 calls/s.*--max-calls-per-s") as raised:
        limiter.admit("a")
    assert raised.value.retry_after_s == pytest.approx(2.0)
    for index in range(MAX_CALLERS + 5):
        limiter.admit(f"caller-{index}")
    assert len(limiter._callers) == MAX_CALLERS


@pytest.fixture
async def limited(clean_redis: redis.Redis, settings: ServerSettings) -> AsyncIterator[RunningServer]:
    """A service that allows each token two calls a second."""
    async with running_server(replace(settings, max_calls_per_s=2.0)) as running:
        yield running


async def test_a_caller_over_its_limit_is_told_when_to_come_again(limited: RunningServer) -> None:
    """Over both doors, in the header that HTTP has for it; the SDK waits and then gets through. Others are let in."""
    async with AsyncClient(limited.grpc_address, token=ADMIN_TOKEN, timeout_s=20) as admin:
        await admin.create_table(run="math", table="train")
        secret = await make_token(admin, Scope.CONSUMER)
        headers = {"authorization": f"Bearer {secret}"}
        async with httpx.AsyncClient(base_url=f"http://{limited.http_address}", headers=headers) as http:
            answers = [await http.get("/v1/runs/math/policy") for _ in range(12)]
        refused = [it for it in answers if it.status_code == 429]
        assert refused
        assert refused[0].json()["reason"] == "RATE_LIMITED"
        assert int(refused[0].headers["retry-after"]) >= 1
        assert answers[0].status_code == 200
        async with AsyncClient(limited.grpc_address, token=secret, timeout_s=20) as patient:
            for _ in range(3):
                assert (await patient.get_policy(run="math")).version == 0
        async with AsyncClient(limited.grpc_address, token=secret, timeout_s=0.05) as hasty:
            ended = await asyncio.gather(*(hasty.get_policy(run="math") for _ in range(10)), return_exceptions=True)
        refusals = [it for it in ended if isinstance(it, RateLimitedError)]
        assert refusals
        assert all(it.retry_after_s for it in refusals)


async def test_bytes_are_limited_too(clean_redis: redis.Redis, settings: ServerSettings) -> None:
    """A group larger than the burst is taken, and the next call pays for it."""
    async with (
        running_server(replace(settings, max_bytes_per_s=1000.0)) as server,
        AsyncClient(server.grpc_address, token=ADMIN_TOKEN, timeout_s=20) as client,
        AsyncClient(server.grpc_address, token=ADMIN_TOKEN, timeout_s=0.05) as hasty,
    ):
        await client.create_table(run="math", table="train")
        await client.insert(make_group("a", prompt_text="x" * 4000), run="math", table="train")
        with pytest.raises(RateLimitedError, match="over 1000 bytes/s"):
            await hasty.list_tables()
        assert (await client.describe_table(run="math", table="train")).fresh == 1


async def test_the_bytes_of_an_answer_are_counted(clean_redis: redis.Redis, settings: ServerSettings) -> None:
    """A small request for much is paid for, too."""
    async with (
        running_server(settings) as server,
        AsyncClient(server.grpc_address, token=ADMIN_TOKEN, timeout_s=20) as client,
    ):
        await client.create_table(run="math", table="train")
    async with (
        running_server(replace(settings, max_bytes_per_s=20.0)) as server,
        AsyncClient(server.grpc_address, token=ADMIN_TOKEN, timeout_s=20) as client,
        AsyncClient(server.grpc_address, token=ADMIN_TOKEN, timeout_s=0.05) as hasty,
    ):
        await client.describe_table(run="math", table="train")
        with pytest.raises(RateLimitedError, match="over 20 bytes/s"):
            await hasty.list_tables()


async def test_a_stream_waits_for_the_bytes_that_it_owes(clean_redis: redis.Redis, settings: ServerSettings) -> None:
    """Five seconds' worth, less the burst, take three seconds at least."""
    async with (
        running_server(replace(settings, max_bytes_per_s=1e6)) as server,
        AsyncClient(server.grpc_address, token=ADMIN_TOKEN, timeout_s=30) as client,
    ):
        await client.create_table(run="math", table="train")
        large = make_group("large", prompt_text="x" * 5_000_000)

        async def groups() -> AsyncIterator[RolloutGroup]:
            yield large

        started = time.monotonic()
        [result] = [it async for it in client.insert_many(groups(), run="math", table="train")]
        assert result.error is None
        assert time.monotonic() - started > 5.0 - BURST_S - 0.1


def test_a_limit_of_nothing_is_refused() -> None:
    """It would refuse every call."""
    with pytest.raises(OSError, match="--max-calls-per-s 0 must be finite and above 0"):
        ServerSettings(max_calls_per_s=0).rate_limits()
