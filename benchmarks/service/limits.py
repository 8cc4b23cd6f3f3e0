"""What the machine can do: gRPC and Redis by themselves, moving the bytes that the service moves."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Final, Self

import grpc
import grpc.aio
from redis import Redis

from groupreplay.allocator import expect_large_blocks
from groupreplay.convert import group_to_wire
from groupreplay.parts import MESSAGE_BYTES
from groupreplay_admin.load.crew import Go
from groupreplay_admin.load.producing import groups_of
from groupreplay_admin.load.shapes import SHAPES
from groupreplay_admin.load.tally import Tally

_UP: Final = "/bare.Bytes/Up"
_DOWN: Final = "/bare.Bytes/Down"
_POOL_BYTES: Final = 32 * 2**20
_READ_BYTES: Final = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Message:
    """Bytes as they cross the wire together, and how many groups end in them."""

    data: bytes
    groups: int


def messages_of(shape: str) -> list[Message]:
    """Return some megabytes of payloads, packed into messages as the service packs them."""
    size = max(2, min(256, _POOL_BYTES // SHAPES[shape].mean_bytes))
    supply = groups_of(SHAPES[shape], prefix="bare")
    found: list[Message] = []
    pending, ended = b"", 0
    for _ in range(size):
        _, payload = group_to_wire(next(supply))
        if pending and len(pending) + len(payload) > MESSAGE_BYTES:
            found.append(Message(pending, ended))
            pending, ended = b"", 0
        for start in range(0, len(payload) - MESSAGE_BYTES, MESSAGE_BYTES):
            found.append(Message(payload[start : start + MESSAGE_BYTES], 0))
            rest = payload[start + MESSAGE_BYTES :]
        pending += payload if len(payload) <= MESSAGE_BYTES else rest
        ended += 1
    return [*found, Message(pending, ended)]


class BareGrpc:
    """A grpc.aio server in a process of its own that stores nothing."""

    def __enter__(self) -> Self:
        spawn = get_context("spawn")
        ours, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self.address = f"127.0.0.1:{ours.recv()}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.join()


def _serve(connection: Connection) -> None:
    expect_large_blocks()  # as the service does
    asyncio.run(_serve_bytes(connection))


async def _serve_bytes(connection: Connection) -> None:
    pools: dict[str, list[Message]] = {}

    async def up(messages: AsyncIterator[bytes], context: Any) -> bytes:
        async for _ in messages:
            pass
        return b""

    async def down(request: bytes, context: Any) -> AsyncIterator[bytes]:
        shape, _, groups = request.decode().partition(" ")
        if shape not in pools:
            pools[shape] = messages_of(shape)
        for message in _endless(pools[shape], int(groups)):
            yield message.data

    server = grpc.aio.server()
    handlers: dict[str, Any] = {
        "Up": grpc.stream_unary_rpc_method_handler(up),
        "Down": grpc.unary_stream_rpc_method_handler(down),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bare.Bytes", handlers),))
    connection.send(server.add_insecure_port("127.0.0.1:0"))
    await server.start()
    await server.wait_for_termination()


def _endless(pool: list[Message], groups: int) -> Iterator[Message]:
    """Yield messages, round and round, until so many groups have ended in them."""
    while groups > 0:
        for message in pool:
            yield message
            groups -= message.groups
            if groups <= 0:
                return


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcUp:
    """Stream payloads to a bare server."""

    address: str
    shape: str
    seconds: float

    async def run(self, go: Go) -> Tally:
        """Stream until time is up, and wait for the answer."""
        expect_large_blocks()
        pool = messages_of(self.shape)
        groups = moved = 0

        async def messages() -> AsyncIterator[bytes]:
            nonlocal groups, moved
            for message in _endless(pool, 2**62):
                if time.perf_counter() >= until:
                    return
                groups += message.groups
                moved += len(message.data)
                yield message.data

        async with grpc.aio.insecure_channel(self.address) as channel:
            call: Any = channel.stream_unary(_UP)
            await channel.channel_ready()
            await go()
            started = time.perf_counter()
            until = started + self.seconds
            await call(messages())
            seconds = time.perf_counter() - started
        return Tally(groups=groups, payload_bytes=moved, seconds=seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcDown:
    """Receive payloads from a bare server, a batch a call."""

    address: str
    shape: str
    batch_size: int
    seconds: float

    async def run(self, go: Go) -> Tally:
        """Receive batches until time is up."""
        expect_large_blocks()
        latencies: list[float] = []
        moved = 0
        async with grpc.aio.insecure_channel(self.address) as channel:
            call: Any = channel.unary_stream(_DOWN)
            async for _ in call(f"{self.shape} 1".encode()):  # the server makes the messages
                pass
            await go()
            started = asked = time.perf_counter()
            while asked - started < self.seconds:
                async for data in call(f"{self.shape} {self.batch_size}".encode()):
                    moved += len(data)
                latencies.append(time.perf_counter() - asked)
                asked = time.perf_counter()
        return Tally(
            groups=self.batch_size * len(latencies),
            payload_bytes=moved,
            seconds=asked - started,
            latencies_s=latencies,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisUp:
    """Write payloads to a bare Redis, some megabytes a round trip, each under a new key, as the service stores them.

    A Redis that overwrites some megabytes again and again writes to memory that it has, while one that stores takes
    new pages from the kernel: 0.09 against 0.45 CPU s/GB. So whoever starts this empties Redis before it, as the
    service's is emptied before each of its trials.
    """

    url: str
    shape: str
    seconds: float

    async def run(self, go: Go) -> Tally:
        """Write until time is up."""
        expect_large_blocks()
        supply = groups_of(SHAPES[self.shape], prefix="bare")
        size = max(2, min(256, _POOL_BYTES // SHAPES[self.shape].mean_bytes))
        payloads = [group_to_wire(next(supply))[1] for _ in range(size)]
        at_once = max(1, min(len(payloads), _READ_BYTES // len(payloads[0])))
        groups = moved = 0
        with Redis.from_url(self.url) as redis:
            redis.ping()
            await go()
            started = ended = time.perf_counter()
            while ended - started < self.seconds:
                pipeline = redis.pipeline(transaction=False)
                for _ in range(at_once):
                    payload = payloads[groups % size]
                    pipeline.set(f"bare:{groups}", payload)
                    groups += 1
                    moved += len(payload)
                pipeline.execute()
                ended = time.perf_counter()
        return Tally(groups=groups, payload_bytes=moved, seconds=ended - started)
