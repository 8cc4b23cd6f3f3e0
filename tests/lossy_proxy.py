"""A TCP proxy that loses or delays the answer to a request which was applied, and breaks connections."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

_HTTP2_DATA, _HTTP2_HEADERS = 0, 1
_CHUNK = 256 * 1024

IsAnswer = Callable[["Exchange", bytes], bool]


@dataclass(slots=True)
class Exchange:
    """One connection through the proxy."""

    last_request: bytes = b""
    """What the client sent since the last answer."""
    frame_left: int = 0
    """Bytes of an HTTP/2 frame that the next chunk continues."""
    header: bytes = field(default=b"")


def is_grpc_answer(exchange: Exchange, chunk: bytes) -> bool:
    """Whether a chunk from the server holds headers or data of a call, not only HTTP/2's own talk."""
    found = False
    while chunk:
        if exchange.frame_left:
            skipped = min(exchange.frame_left, len(chunk))
            exchange.frame_left -= skipped
            chunk = chunk[skipped:]
            continue
        wanted = 9 - len(exchange.header)
        exchange.header += chunk[:wanted]
        chunk = chunk[wanted:]
        if len(exchange.header) == 9:
            exchange.frame_left = int.from_bytes(exchange.header[:3], "big")
            found = found or exchange.header[3] in {_HTTP2_DATA, _HTTP2_HEADERS}
            exchange.header = b""
    return found


def is_redis_answer_to(command: bytes) -> IsAnswer:
    """Return a test for answers to requests that contain this command."""

    def is_answer(exchange: Exchange, _: bytes) -> bool:
        return command in exchange.last_request

    return is_answer


class LossyProxy:
    """Passes everything on, until it is told to lose or to hold the next answers."""

    def __init__(self, target: str, is_answer: IsAnswer) -> None:
        self._target = target
        self._is_answer = is_answer
        self._to_lose = 0
        self._released = asyncio.Event()
        self._released.set()
        self.lost = 0
        """Answers that were lost so far."""
        self.holding = asyncio.Event()
        """Set when an answer is being held."""
        self.address = ""

    def lose_answers(self, count: int = 1) -> None:
        """Break the connection in place of each of the next answers."""
        self._to_lose = count

    def hold_answers(self) -> None:
        """Keep answers back until release_answers."""
        self.holding.clear()
        self._released.clear()

    def release_answers(self) -> None:
        """Send on what was held."""
        self._released.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connect one client with the target until either side ends."""
        exchange = Exchange()
        try:
            up_reader, up_writer = await self._connect()
        except OSError:  # the target is away, and so is what stands before it
            writer.transport.abort()
            return
        except BaseException:
            writer.transport.abort()
            raise
        ends = [
            asyncio.create_task(self._requests(exchange, reader, up_writer)),
            asyncio.create_task(self._answers(exchange, up_reader, writer)),
        ]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in (writer, up_writer):
                each.transport.abort()
            for task in ends:
                task.cancel()
            await asyncio.gather(*ends, return_exceptions=True)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._target.startswith("unix://"):
            return await asyncio.open_unix_connection(self._target.removeprefix("unix://"))
        host, _, port = self._target.rpartition(":")
        return await asyncio.open_connection(host, int(port))

    @staticmethod
    async def _requests(exchange: Exchange, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(_CHUNK):
            exchange.last_request = (exchange.last_request + chunk)[-_CHUNK:]
            writer.write(chunk)
            await writer.drain()

    async def _answers(self, exchange: Exchange, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(_CHUNK):
            if self._is_answer(exchange, chunk):
                if self._to_lose:
                    self._to_lose -= 1
                    self.lost += 1
                    return
                if not self._released.is_set():
                    self.holding.set()
                    await self._released.wait()
            exchange.last_request = b""
            writer.write(chunk)
            await writer.drain()


@asynccontextmanager
async def lossy_proxy(target: str, is_answer: IsAnswer) -> AsyncIterator[LossyProxy]:
    """Run a proxy before host:port or unix://path."""
    proxy = LossyProxy(target, is_answer)
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(proxy.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    proxy.address = f"{host}:{port}"
    try:
        yield proxy
    finally:
        proxy.release_answers()
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
