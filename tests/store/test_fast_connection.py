"""Commands are the same bytes whoever packs them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio.connection import Connection

from groupreplay_server.store.fast_connection import fast_connections


def view(data: bytes) -> memoryview:
    """Return a view, as payloads come from messages."""
    return memoryview(data)


ARGUMENTS = st.lists(
    st.one_of(
        st.text(max_size=20),
        st.binary(max_size=300),
        st.integers(-(2**63), 2**63),
        st.floats(allow_nan=False),
        st.binary(max_size=9).map(view),
    ),
    max_size=30,
)


def packed(connection_class: Any, *arguments: Any) -> bytes:
    """Return a command as a connection would send it."""
    return b"".join(bytes(piece) for piece in connection_class().pack_command(*arguments))


@given(st.sampled_from(["EVALSHA", "SET", "MSET", "MGET", "CONFIG GET", b"HSET"]), ARGUMENTS)
def test_fast_packing_is_the_packing_of_redis_py(name: str | bytes, arguments: list[Any]) -> None:
    """For text, bytes, views and numbers, in commands of one word and of two."""
    assert packed(fast_connections(Connection), name, *arguments) == packed(Connection, name, *arguments)


@given(
    st.sampled_from(["SET", "MSET"]),
    st.lists(st.tuples(st.text(max_size=20), st.one_of(st.binary(max_size=99), st.binary().map(view), st.text()))),
)
def test_a_write_is_packed_as_by_redis_py(name: str, items: list[tuple[str, bytes | memoryview | str]]) -> None:
    """Whatever the values are, small or large, one or many."""
    arguments = [part for item in items for part in item]
    assert packed(fast_connections(Connection), name, *arguments) == packed(Connection, name, *arguments)


def test_a_payload_is_not_copied() -> None:
    """The bytes of a large value go out as they are."""
    payload = memoryview(bytes(100_000))
    assert any(piece is payload for piece in fast_connections(Connection)().pack_command("SET", "key", payload))


def test_what_cannot_be_sent_is_refused_as_before() -> None:
    """An argument that Redis has no bytes for is a DataError."""
    with pytest.raises(Exception, match="Invalid input of type: 'NoneType'"):
        packed(fast_connections(Connection), "GET", None)
