"""A DNS server of a test's own, whose one name stands for whichever addresses the test says."""

import asyncio
import socket
import struct
from collections.abc import Sequence
from typing import Self

_A = 1
_HEADER = struct.Struct("!6H")


class NameServer(asyncio.DatagramProtocol):
    """Answers every question for IPv4 addresses with those in `addresses`, and any other with none."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self.addresses = list(addresses)
        self.asked = 0
        """Questions for IPv4 addresses so far."""
        self._transport: asyncio.DatagramTransport | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", 0))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._transport is not None
        self._transport.close()

    @property
    def address(self) -> str:
        """host:port where it answers."""
        assert self._transport is not None
        host, port = self._transport.get_extra_info("sockname")
        return f"{host}:{port}"

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Answer one question."""
        number, *_ = _HEADER.unpack_from(data)
        end = _HEADER.size
        while data[end]:
            end += data[end] + 1
        [kind] = struct.unpack_from("!H", data, end + 1)
        question = data[_HEADER.size : end + 5]
        found = self.addresses if kind == _A else []
        self.asked += kind == _A
        answers = b"".join(
            struct.pack("!HHHLH", 0xC00C, _A, 1, 0, 4) + socket.inet_aton(address) for address in found
        )  # 0xC00C: the name of the question; may be kept for 0 seconds
        assert self._transport is not None
        self._transport.sendto(_HEADER.pack(number, 0x8580, 1, len(found), 0, 0) + question + answers, addr)
