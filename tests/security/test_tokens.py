"""Tokens: how they are kept, checked, taken back."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import grpc.aio
import pytest
import redis
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from security.conftest import ADMIN_TOKEN, LogIn, make_token

from groupreplay import (
    AsyncClient,
    InvalidRequestError,
    NewToken,
    Policy,
    Scope,
    StoreUnavailableError,
    Token,
    TokenExistsError,
    UnauthenticatedError,
    UnknownTokenError,
)
from groupreplay.groups import now_ms
from groupreplay_server.app import RunningServer, running_server
from groupreplay_server.settings import ServerSettings
from groupreplay_server.store.backend import Backend
from groupreplay_server.store.connection import open_redis
from groupreplay_server.store.keys import TOKENS
from groupreplay_server.store.token_store import StoredToken, TokenStore
from groupreplay_server.tokens import REVOKED_WITHIN_S, Tokens


def reads(connection: redis.Redis) -> int:
    """Return how often Redis was asked for all tokens."""
    return int(connection.info("commandstats").get("cmdstat_hgetall", {}).get("calls", 0))


async def test_a_token_lets_in_until_it_is_revoked(admin: AsyncClient, log_in: LogIn) -> None:
    """Create, use, list, revoke; the server that revoked it refuses it at once."""
    await admin.create_table(run="math", table="train")
    client = await log_in(await make_token(admin, Scope.PRODUCER, run="math", name="generator-1"))
    assert (await client.get_policy(run="math")).version == 0
    listed = await admin.list_tokens()
    assert [(it.name, it.scope, it.run) for it in listed] == [("generator-1", Scope.PRODUCER, "math")]
    assert now_ms() - 60_000 < listed[0].created_at_ms <= now_ms()
    assert (await admin.revoke_token("generator-1")).run == "math"
    with pytest.raises(UnauthenticatedError, match="is not known, or its secret is another"):
        await client.get_policy(run="math")
    with pytest.raises(UnknownTokenError, match="no token 'generator-1'"):
        await admin.revoke_token("generator-1")


async def test_redis_holds_a_hash_and_no_secret(admin: AsyncClient, clean_redis: redis.Redis) -> None:
    """Whoever reads Redis, or a backup of it, cannot log in with what is there."""
    secret = await make_token(admin, Scope.CONSUMER, name="trainer")
    packed = clean_redis.hget(TOKENS, "trainer")
    assert isinstance(packed, bytes)
    part = secret.rpartition(".")[2]
    assert part.encode() not in packed
    assert json.loads(packed)["secret_sha256"] == hashlib.sha256(part.encode()).hexdigest()
    assert len(part) == 43  # 256 bits in base64
    assert secret not in repr(NewToken(token=Token(name="trainer", scope=Scope.CONSUMER), secret=secret))


async def test_creating_a_token_again_changes_nothing_and_another_of_its_name_is_refused(admin: AsyncClient) -> None:
    """The secret is the caller's, so a repeated call cannot make a second one."""
    new = NewToken.generate(Token(name="trainer", scope=Scope.CONSUMER))
    first = await admin.create_token(new)
    assert await admin.create_token(new) == first
    for other in (NewToken.generate(new.token), replace(new, token=replace(new.token, scope=Scope.ADMIN))):
        with pytest.raises(TokenExistsError, match="there is a token 'trainer' already"):
            await admin.create_token(other)
    assert await admin.list_tokens() == [first]


@pytest.mark.parametrize(
    ("shown", "message"),
    [
        ("", "the call shows no token"),
        ("nonsense", r"it is not of the form grt\.NAME\.SECRET"),
        ("grt..", r"it is not of the form"),
        ("grt.nobody.c2VjcmV0", "token 'nobody' is not known"),
        ("grt.trainer.c2VjcmV0", "token 'trainer' is not known, or its secret is another"),
        (ADMIN_TOKEN + "x", "it is not of the form"),
    ],
)
async def test_what_is_no_good_token_is_refused_without_being_quoted(
    admin: AsyncClient, log_in: LogIn, shown: str, message: str
) -> None:
    """An error travels into logs; a secret with a typing error must not."""
    await make_token(admin, Scope.CONSUMER, name="trainer")
    with pytest.raises(UnauthenticatedError, match=message) as raised:
        await (await log_in(shown)).list_tables()
    assert "c2VjcmV0" not in str(raised.value)
    assert ADMIN_TOKEN not in str(raised.value)


@pytest.fixture
async def store(clean_redis: redis.Redis, redis_url: str) -> AsyncIterator[TokenStore]:
    """The tokens in the session's Redis."""
    async with open_redis(redis_url) as opened:
        yield TokenStore(opened)


class Time:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s

    def wall_ms(self) -> int:
        """Return it as a wall clock."""
        return int(self.s * 1000)


async def test_a_token_that_another_server_revoked_is_refused_within_the_stated_time(store: TokenStore) -> None:
    """And until then costs Redis nothing."""
    time = Time()
    here, there = Tokens(store, clock=time), Tokens(store)
    new = NewToken.generate(Token(name="t", scope=Scope.PRODUCER))
    await there.create(new.token, new.secret_sha256)
    assert (await here.authenticate(new.secret)).name == "t"
    await there.revoke("t")
    with pytest.raises(UnauthenticatedError):
        await there.authenticate(new.secret)
    time.s += REVOKED_WITHIN_S + 0.01
    with pytest.raises(UnauthenticatedError):
        await here.authenticate(new.secret)


class LateReplies(TokenStore):
    """The tokens, whose list is read at once and arrives when it may."""

    def __init__(self, redis: Backend) -> None:
        super().__init__(redis)
        self.read, self.may_arrive = asyncio.Event(), asyncio.Event()

    async def all(self) -> dict[str, StoredToken]:
        """Return what there was when it was asked."""
        found = await super().all()
        self.read.set()
        await self.may_arrive.wait()
        return found


async def test_a_revoked_token_is_refused_though_a_list_with_it_is_still_under_way(redis_url: str) -> None:
    """Revoking overtakes a reply of Redis: what that says of the token is no longer true."""
    async with open_redis(redis_url) as opened:
        store = LateReplies(opened)
        tokens = Tokens(store)
        new = NewToken.generate(Token(name="t", scope=Scope.PRODUCER))
        await tokens.create(new.token, new.secret_sha256)
        earlier = asyncio.create_task(tokens.authenticate(new.secret))
        await store.read.wait()
        await tokens.revoke("t")
        store.may_arrive.set()
        await earlier
        with pytest.raises(UnauthenticatedError):
            await tokens.authenticate(new.secret)


async def test_a_token_that_another_server_just_made_is_known(store: TokenStore) -> None:
    """Whoever made it may use it at once, at any server."""
    here, there = Tokens(store), Tokens(store)
    with pytest.raises(UnauthenticatedError):
        await here.authenticate("grt.t.x")
    new = NewToken.generate(Token(name="t", scope=Scope.PRODUCER))
    await there.create(new.token, new.secret_sha256)
    assert (await here.authenticate(new.secret)).name == "t"


async def test_calls_cost_redis_no_round_trip_and_guesses_few(store: TokenStore, clean_redis: redis.Redis) -> None:
    """A thousand calls read the tokens once; guessed names share their reads."""
    tokens = Tokens(store)
    new = NewToken.generate(Token(name="t", scope=Scope.PRODUCER))
    await tokens.create(new.token, new.secret_sha256)
    before = reads(clean_redis)
    for _ in range(1000):
        await tokens.authenticate(new.secret)
    assert reads(clean_redis) - before == 1
    before = reads(clean_redis)
    guesses = (tokens.authenticate(f"grt.guess-{index}.x") for index in range(500))
    results = await asyncio.gather(*guesses, return_exceptions=True)
    assert all(isinstance(result, UnauthenticatedError) for result in results)
    assert reads(clean_redis) - before <= 2


async def test_a_token_ends_when_it_said(store: TokenStore) -> None:
    """To the millisecond, without Redis being asked; one that has ended cannot be made."""
    time = Time()
    tokens = Tokens(store, clock=time, wall_clock_ms=time.wall_ms)
    new = NewToken.generate(Token(name="t", scope=Scope.PRODUCER, expires_at_ms=1_001_000))
    await tokens.create(new.token, new.secret_sha256)
    assert (await tokens.authenticate(new.secret)).name == "t"
    time.s = 1001.0
    with pytest.raises(UnauthenticatedError, match="token 't' has expired"):
        await tokens.authenticate(new.secret)
    with pytest.raises(InvalidRequestError, match="would expire at 1001000, which has passed"):
        await tokens.create(replace(new.token, name="u"), new.secret_sha256)


async def test_a_hash_of_another_length_is_refused(store: TokenStore) -> None:
    """It could never match."""
    with pytest.raises(InvalidRequestError, match="secret_sha256 is 5 bytes long"):
        await Tokens(store).create(Token(name="t", scope=Scope.PRODUCER), b"short")


async def test_the_name_of_the_admin_file_is_taken(admin: AsyncClient) -> None:
    """Or the audit log would not tell the two apart."""
    with pytest.raises(InvalidRequestError, match="is the token of --admin-token-file"):
        await make_token(admin, Scope.ADMIN, name="admin-token-file")


async def test_the_admin_file_is_read_again_when_it_changes(
    admin: AsyncClient, log_in: LogIn, settings: ServerSettings
) -> None:
    """A rotated secret takes effect without a restart; a file that is broken leaves what was."""
    file = settings.admin_token_file
    assert file is not None
    file.write_text("short")
    assert await admin.list_tables() == []
    rotated = ADMIN_TOKEN[::-1]
    file.with_suffix(".new").write_text(rotated)
    file.with_suffix(".new").replace(file)
    assert await (await log_in(rotated)).list_tables() == []
    with pytest.raises(UnauthenticatedError):
        await admin.list_tables()


async def test_an_admin_file_without_a_token_stops_the_start(settings: ServerSettings) -> None:
    """A guessable one is none; the message says how to make one."""
    assert settings.admin_token_file is not None
    settings.admin_token_file.write_text("password")
    with pytest.raises(OSError, match="openssl rand -hex 32"):
        async with running_server(settings):
            pass
    with pytest.raises(OSError, match="missing"):
        async with running_server(replace(settings, admin_token_file=Path("missing"))):
            pass


async def test_a_watcher_whose_token_is_revoked_hears_no_more(admin: AsyncClient, log_in: LogIn) -> None:
    """A stream that was let in is looked at again with every message."""
    await admin.create_table(run="math", table="train")
    client = await log_in(await make_token(admin, Scope.CONSUMER, name="watcher"))
    watching = client.watch_policy(run="math")
    assert (await anext(watching)).version == 0
    await admin.revoke_token("watcher")
    await admin.advance_policy(Policy(run="math", version=1, weights_uri="file:///w"))
    with pytest.raises(UnauthenticatedError):
        await anext(watching)


async def test_health_is_open_and_reflection_is_not(secured: RunningServer) -> None:
    """Load balancers have no token; what the service can do is for those who have."""
    async with grpc.aio.insecure_channel(secured.grpc_address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(cast(Any, channel))
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            async for _ in reflection.ServerReflectionInfo(iter([request])):
                pass
        assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
        metadata = (("authorization", f"Bearer {ADMIN_TOKEN}"),)
        assert [it async for it in reflection.ServerReflectionInfo(iter([request]), metadata=metadata)]


async def test_without_redis_only_the_admin_file_is_known(store: TokenStore, tmp_path: Path) -> None:
    """A token that cannot be looked up is not let in: the call may be made again."""
    async with open_redis(f"unix://{tmp_path}/nowhere.sock") as away:
        with pytest.raises(StoreUnavailableError):
            await Tokens(TokenStore(away)).authenticate("grt.t.x")
